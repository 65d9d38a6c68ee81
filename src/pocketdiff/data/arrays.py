"""Data sets in one ``.npz`` file."""

import contextlib
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pocketdiff.data.idx import MAX_BYTES
from pocketdiff.data.source import Source, Split
from pocketdiff.errors import DataError


def read_npz(path: Path) -> Source:
    """Reads ``images`` and ``labels``, and ``test_images`` and ``test_labels`` where they are.

    Never unpickles, and never reads more than an array's header promises, nor more than `MAX_BYTES`.

    Raises:
        DataError: If the file is damaged, or an array is missing, too large or of another type or shape.
    """
    with _opened(path) as archive:
        train = Split(_images(archive, path, "images"), _labels(archive, path, "labels"))
        if not {"test_images.npy", "test_labels.npy"} & set(archive.namelist()):
            return Source(train)
        return Source(train, Split(_images(archive, path, "test_images"), _labels(archive, path, "test_labels")))


def read_loose_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads ``images``, and ``labels`` where they are, as `read_npz` does.

    Raises:
        DataError: As `read_npz`, or if there are not as many labels as images.
    """
    with _opened(path) as archive:
        images = _images(archive, path, "images")
        labels = _labels(archive, path, "labels") if "labels.npy" in archive.namelist() else None
    if labels is not None and len(labels) != len(images):
        raise DataError(f"{path}: {len(images):,} images but {len(labels):,} labels; they must be equally many")
    return images, labels


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file as an archive; whatever is wrong with it is a DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again with numpy.savez") from error


def _images(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    images = _array(archive, path, key)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise DataError(
            f"{path}: {key} is {images.dtype} of shape {images.shape}; it must be uint8, (n, h, w) or (n, h, w, 1 or 3)"
        )
    return images


def _labels(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    labels = _array(archive, path, key)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path}: {key} is {labels.dtype} of shape {labels.shape}; it must be integers, (n,)")
    return labels.astype(np.int64)


def _array(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    if f"{key}.npy" not in archive.namelist():
        raise DataError(f"{path}: has no array {key!r}; it must hold images and labels")
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # Only these unpack in bounded pieces.
        raise DataError(f"{path}: {key} is compressed in another way than numpy's; write it again with numpy.savez")
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):  # Others may claim a header of 4 GiB; numpy has no need of them.
            raise DataError(f"{path}: {key} is not in version 1.0 of numpy's format; write it again with numpy.savez")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # What numpy says of headers by old writers helps nobody here.
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # numpy parses the header as Python, and any error may come of it.
            raise DataError(f"{path}: {key} has a damaged header; write it again with numpy.savez") from error
        if not all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape):
            raise DataError(f"{path}: {key} claims an impossible shape; write it again with numpy.savez")
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size > MAX_BYTES:
            fault = "holds Python objects" if dtype.hasobject else f"claims {size:,} bytes, over {MAX_BYTES:,}"
            raise DataError(f"{path}: {key} {fault}; write it again as plain numbers")
        body = file.read(size + 1)
    if len(body) != size:
        found = f"ends after {len(body):,}" if len(body) < size else "goes on after them"
        raise DataError(f"{path}: {key} of shape {shape} takes {size:,} bytes and {found}; write the file again")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
