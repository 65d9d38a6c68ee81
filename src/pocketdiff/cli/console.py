"""What the verbs share: words on the screen, progress, signals, the device, and the lock on a run's folder."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pocketdiff.cli.flags import UsageError

INTERRUPTED = 130
_PLAIN_SECONDS = 5.0
"""Time between two lines of progress where there is no terminal."""


def say(message: str) -> None:
    """What a verb has to say, on standard output."""
    print(message, flush=True)


def warn(message: str) -> None:
    """A word of caution, on standard error."""
    print(f"pocketdiff: {message}", file=sys.stderr, flush=True)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one.

    Raises:
        UsageError: If it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"--device {name}: there is no such device; use cpu, cuda, mps or auto")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no such device here; use --device cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: torch knows no such device here; use cpu or cuda") from error


def make_folder(path: Path, flag: str = "--out") -> None:
    """Makes a folder, and those above it, where they are not there yet.

    Raises:
        UsageError: If that cannot be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{path}: is a file; take another {flag}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be made ({error.strerror}); take another {flag}") from error


def check_free(path: Path, overwrite: bool, flag: str = "--out") -> None:
    """Sees that a file may be written there.

    Raises:
        UsageError: If a folder is there, or a file that is not to be overwritten.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder that is there already; take another {flag}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: is there already; take another {flag}, or add --overwrite")


def make_room(outputs: Mapping[Path, str], overwrite: bool) -> None:
    """Sees, before long work, that each of its outputs can be written after it; ``outputs`` has the flag of each.

    Raises:
        UsageError: If one cannot.
    """
    for path, flag in outputs.items():
        check_free(path, overwrite, flag)
        make_folder(path.parent, flag)
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"{flag} {path}: nothing can be written there; take another {flag}")


class Bar:
    """Progress on standard error: a bar on a terminal, else a plain line every few seconds."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self.began, self.first = time.perf_counter(), done
        self.last_line = self.began
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True),
        )  # fmt: skip
        self.plain = not self.progress.console.is_terminal
        self.task = self.progress.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        if not self.plain:
            self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.plain:
            self.progress.stop()

    def update(self, done: int, note: str = "") -> None:
        """Moves the bar to ``done``, with a note behind it."""
        self.done = done
        if not self.plain:
            self.progress.update(self.task, completed=done, note=note)
        elif time.perf_counter() - self.last_line >= _PLAIN_SECONDS:
            self.last_line = time.perf_counter()
            words = [f"{self.what} {done:,} of {self.total:,}", note]
            if self.first < done < self.total:
                left = (self.last_line - self.began) / (done - self.first) * (self.total - done)
                words.append(f"{timedelta(seconds=round(left))} left")
            print(", ".join(filter(None, words)), file=sys.stderr, flush=True)


class Work:
    """Many pieces of work, a bar each: call it with the name of one, how much of it is done, and how much it is."""

    def __init__(self) -> None:
        self.bar: Bar | None = None

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.__exit__(kind, error, at)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Moves the bar of a piece of work, or begins it."""
        if self.bar is None or self.bar.what != what:
            self.__exit__(None, None, None)
            self.bar = Bar(what, total).__enter__()
        self.bar.update(done)


class Stop:
    """Notes SIGINT and SIGTERM so that work can stop where nothing is lost; a second one ends the program at once.

    Work that may stop anywhere runs in `at_once`, where the first signal is a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.asked = self.now = False
        self.before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal, also one that came before, break off what is done here.

        Raises:
            KeyboardInterrupt: At the first signal.
        """
        self.now = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self.now = False

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        terminal = os.isatty(2)
        if self.asked:
            os.write(2, b"\x1b[?25h\n" if terminal else b"")  # The bar had hidden the cursor.
            os._exit(INTERRUPTED)
        self.asked = True
        if self.now:
            self.now = False  # Once is enough: what is open must be closed.
            raise KeyboardInterrupt
        os.write(2, b"\n" * terminal + b"stopping after this step; once more to leave at once\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process alone; the lock goes with the process, however it ends.

    Raises:
        UsageError: If another process holds it.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another process is training there; wait for it, or take another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)
