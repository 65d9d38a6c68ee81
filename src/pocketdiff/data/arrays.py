"""Data sets in one ``.npz`` file."""

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pocketdiff.data.source import (
    MAX_BYTES,
    Source,
    Split,
    check_images,
    check_label_shape,
    count_bytes,
    read_array,
)
from pocketdiff.errors import DataError

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those that numpy uses; the others cannot unpack in pieces."""


def read_npz(path: Path) -> Source:
    """Reads ``images``, ``labels``, ``test_images`` and ``test_labels``, or None for those that the file lacks.

    Never unpickles, and never reads more than an array's header promises, or more than `MAX_BYTES`. All headers are
    checked before an array is read.

    Raises:
        DataError: If the file is damaged, an array is too large, or the arrays do not fit each other.
    """
    keys = ("images", "labels", "test_images", "test_labels")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            headers = {key: _header(archive, path, key) for key in keys if f"{key}.npy" in names}
            for part in ("", "test_"):
                _check(headers.get(f"{part}images"), headers.get(f"{part}labels"), f"{path}: {part}")
            found = {key: _array(archive, path, key) for key in headers}
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again with numpy.savez") from error
    train, test = (Split(found.get(f"{part}images"), found.get(f"{part}labels")) for part in ("", "test_"))
    return Source(train, test if {"test_images", "test_labels"} & found.keys() else None)


def _check(images: np.ndarray | None, labels: np.ndarray | None, start: str) -> None:
    """Checks the headers of a split, so that nothing is read in vain."""
    if images is not None:
        images = check_images(images, f"{start}images")
        if labels is not None:
            check_label_shape(labels, f"{start}labels", len(images))


def _header(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    """An array with the shape and type that a header promises, but without memory of its own."""
    if archive.getinfo(f"{key}.npy").compress_type not in _COMPRESSIONS:
        raise DataError(f"{path}: {key} has a compression that numpy does not use; write it again with numpy.savez")
    with archive.open(f"{key}.npy") as file:
        shape, _, dtype = _parse(file, path, key)
    count_bytes(shape, f"{path}: {key}", dtype)
    return np.broadcast_to(np.zeros((), dtype), shape)


def _array(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as file:
        shape, fortran, dtype = _parse(file, path, key)
        return read_array(file.read, shape, f"{path}: {key}", dtype, fortran)


def _parse(file: Any, path: Path, key: str) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Reads a header: shape, whether the order is Fortran's, and type."""
    if np.lib.format.read_magic(file) != (1, 0):  # Later versions allow headers of 4 GiB.
        raise DataError(f"{path}: {key} is not in version 1.0 of numpy's format; write it again with numpy.savez")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about headers from Python 2.
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy parses the header as Python, so any error is possible.
        raise DataError(f"{path}: {key} has a damaged header; write it again with numpy.savez") from error
    if not all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape):
        raise DataError(f"{path}: {key} claims an impossible shape; write it again with numpy.savez")
    if dtype.hasobject:
        raise DataError(f"{path}: {key} holds Python objects; save plain numbers")
    return shape, fortran, dtype
