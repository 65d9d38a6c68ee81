"""What the verbs share: output on the screen, progress, signals, the device, and files that are written."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType

import platformdirs
import torch
from rich import console, progress

from pocketdiff.cli.flags import UsageError
from pocketdiff.cli.output import visible
from pocketdiff.files import write_file

INTERRUPTED = 130
_PLAIN_SECONDS = 5.0
"""Time between two lines of progress where there is no terminal."""
_MEASURED_SECONDS = 1.0
"""Time of work after which its speed is known."""
_HANGUP = getattr(signal, "SIGHUP", None)
"""The signal of a lost terminal; Windows has none."""
_SAME_SIGNAL = 0.1
"""Signals within so many seconds are one: `timeout` sends its signal twice."""


def say(message: str) -> None:
    """Prints a result, on standard output."""
    print(visible(message), flush=True)


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(visible(f"pocketdiff: {record.getMessage()}"), file=sys.stderr, flush=True)
        else:
            say(record.getMessage())


def show_messages() -> None:
    """Prints the library's log: information on standard output, warnings on standard error."""
    logger = logging.getLogger("pocketdiff")
    if not any(isinstance(handler, _Messages) for handler in logger.handlers):
        logger.addHandler(_Messages())
        logger.setLevel(logging.INFO)


def warn(message: str) -> None:
    """Prints a warning, on standard error."""
    logging.getLogger("pocketdiff.cli").warning("%s", message)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one.

    Raises:
        UsageError: If it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in {"cpu", "cuda", "mps"}:
        raise UsageError("there is no such device; use cpu, cuda, mps or auto", f"--device {name}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError("torch finds no such device here; use --device cpu", f"--device {name}") from error


def cache_folder() -> Path:
    """Where the classifiers and features of data sets are kept."""
    return platformdirs.user_cache_path("pocketdiff") / "classifiers"


def check_free(path: Path, overwrite: bool, flag: str = "--out") -> None:
    """Checks, before long work, that its result can be written afterwards; leaves nothing behind.

    Raises:
        UsageError: If it cannot.
    """
    if path.is_dir():
        raise UsageError(f"is an existing folder; take another {flag}", str(path))
    if path.exists() and not overwrite:
        raise UsageError(f"exists already; take another {flag}, or add --overwrite", str(path))
    place = path.absolute().parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"is a file; take another {flag}", str(place))
    try:  # Only an attempt finds read-only file systems and every other cause.
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UsageError(
            f"the folder cannot be written to ({error.strerror}); take another {flag}", str(place)
        ) from error


def finish(files: Mapping[Path, str], table: str) -> int:
    """Writes the results, then prints the table and the names of the files; the exit status."""
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    say("\n".join([table, *(f"wrote {path}" for path in files)]))
    return 0


class Bar:
    """Progress on standard error: a bar on a terminal, otherwise a plain line every few seconds.

    It is a `pocketdiff.progress.Progress`: call it with the name of the work, the amount done, and the total. A new
    name starts a new bar. Where all of the amount is done, other work follows: the bar then pulses, and shows no
    percentage and no time. At the end it is erased.
    """

    def __init__(self) -> None:
        # Results that go into a pipe must not go through the bar on the terminal.
        self.progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False), progress.BarColumn(20),
            progress.TextColumn("{task.fields[words]}", markup=False),
            console=console.Console(stderr=True), redirect_stdout=sys.stdout.isatty(), transient=True,
        )  # fmt: skip
        screen = self.progress.console
        self.plain = not screen.is_terminal or screen.is_dumb_terminal
        self.what, self.task = "", progress.TaskID(0)
        self.first, self.began, self.last_line = 0.0, 0.0, time.perf_counter()
        self.left: float | None = None
        """Seconds until all is done, from the average speed since this bar began; None while that is not known."""

    def __enter__(self) -> "Bar":
        if not self.plain:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.plain:
            self.progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Moves the bar of this work."""
        self.show(what, done, total, amount(done, total))

    def show(self, what: str, done: int | float, total: int | float, *words: str) -> None:
        """Moves the bar of this work to ``done / total``; the words stand behind it."""
        now = time.perf_counter()
        if what != self.what:
            if self.what:
                self.progress.remove_task(self.task)
            self.what, self.first, self.began = what, float(done), now
            self.task = self.progress.add_task(visible(what), words="")
        self.left, share, left = None, "", ""
        counted = done < total and total > 1
        if counted:
            share = f"{100 * done / total:.0f}%" if done < 0.99 * total else "99%"
            if done > self.first and now - self.began >= _MEASURED_SECONDS:
                self.left = (now - self.began) / (done - self.first) * (total - done)
                left = f"{timedelta(seconds=max(1, round(self.left)))} left"
        text = visible(", ".join(filter(None, [share, words[0], left, *words[1:]])))
        if not self.plain:
            self.progress.update(self.task, completed=done, words=text)
            self.progress.tasks[0].total = total if counted else None  # None: the bar pulses.
        elif now - self.last_line >= _PLAIN_SECONDS:
            self.last_line = now
            print(f"{visible(what)} {text}".rstrip(), file=sys.stderr, flush=True)


def amount(done: int, total: int) -> str:
    """How much is done, in words; nothing for work that is one whole."""
    return f"{done:,} of {total:,}" if total > 1 else ""


class Stop:
    """Notes SIGINT, SIGTERM and SIGHUP, so that work can stop where nothing is lost. A second signal exits at once.

    SIGHUP, the loss of the terminal, never exits at once, because a shell and the system both send it; where it is
    ignored, as after nohup, it stays so.
    """

    def __init__(self) -> None:
        self.requested = False
        self.since = 0.0
        self.before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM, _HANGUP):
            if number is not None and (number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Leaves work that can stop anywhere.

        Raises:
            KeyboardInterrupt: If a signal came.
        """
        if self.requested:
            raise KeyboardInterrupt

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now, terminal = time.monotonic(), os.isatty(2)
        if not self.requested:
            self.requested, self.since = True, now
            self._tell(b"\n" * terminal + b"stopping after this step; press again to exit at once\n")
        elif number != _HANGUP and now - self.since > _SAME_SIGNAL:
            self._tell(b"\x1b[?25h\n" if terminal else b"")  # The bar had hidden the cursor.
            os._exit(INTERRUPTED)

    @staticmethod
    def _tell(text: bytes) -> None:
        with contextlib.suppress(OSError):  # The work must be saved also if nobody can read this.
            os.write(2, text)
