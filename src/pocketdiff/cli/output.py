"""Standard output and standard error. Output that nobody reads is dropped: it stops no work and changes no status."""

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any

_GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET}
"""Errors of a pipe, a terminal or a connection whose other end is gone."""


class Output:
    """A text stream whose writes raise no OSError; after the first one, what is written is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.fault: OSError | None = None
        """Why output that somebody expects is missing, such as a full disk; None if there is none, or no reader."""

    def write(self, text: str) -> int:
        """Writes, or drops, a text; returns its length."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, call: Any, *given: str) -> None:
        try:
            call(*given)
        except OSError as error:
            if error.errno not in _GONE:
                self.fault = error
            with contextlib.suppress(OSError):  # What the stream still holds, and what others write, goes nowhere too.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


def protect() -> Output:
    """Makes standard output and standard error, also closed ones, never fail; returns standard output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # Closed. A file that is opened later must not get its number, and the output of others.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name) or Path(os.devnull).open("w")  # noqa: SIM115
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Output(stream))
    return sys.stdout  # type: ignore[return-value]


def visible(text: str) -> str:
    r"""The text with every unprintable character as an escape, such as ``\x1b``; new lines are kept."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )
