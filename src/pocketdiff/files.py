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
    try:
        with _renamed_to(path) as temporary, temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # The error of a write or a flush does not name the file.
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it is renamed to ``path`` when the block ends without an error.

    Raises:
        OSError: If ``path`` exists and is not empty, or cannot be made.
    """
    with _renamed_to(path) as temporary:
        temporary.mkdir(parents=True)
        yield temporary


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that a killed process left in a folder or below it; of a link, only the link."""
    for path in folder.rglob(".*.tmp"):
        _remove(path)


@contextlib.contextmanager
def _renamed_to(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder; it is renamed when the block ends, and removed after an error."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise
    if os.name == "posix":  # Makes the rename durable; Windows cannot open folders and needs no such call.
        descriptor = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # Some mounts cannot; the file itself is flushed.
            os.fsync(descriptor)
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
