"""Writes files so that nothing half-written ever has its final name."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a temporary file, flushes it to the disk and renames it; an existing file is replaced at once.

    Raises:
        OSError: If that fails; an existing file is then untouched.
    """
    temporary = _beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # The error of a write or a flush does not name the file.
        raise
    _flush_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it is renamed to ``path`` when the block ends without an error.

    Raises:
        OSError: If ``path`` exists and is not empty, or cannot be made.
    """
    temporary = _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that a killed process left in a folder or below it."""
    for path in folder.rglob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _flush_folder(path: Path) -> None:
    """Makes a rename durable; Windows cannot open folders and needs no such call."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # Some mounts cannot; the file itself is flushed.
            os.fsync(descriptor)
        os.close(descriptor)
