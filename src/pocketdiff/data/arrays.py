"""Data sets in one ``.npz`` file."""

import math
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pocketdiff.data.idx import MAX_BYTES
from pocketdiff.data.source import Source, Split, check_images, check_labels
from pocketdiff.errors import DataError


def read_npz(path: Path) -> Source:
    """Reads ``images`` and ``labels``, and ``test_images`` and ``test_labels`` if the file has them.

    Never unpickles, and never reads more than an array's header promises, or more than `MAX_BYTES`.

    Raises:
        DataError: If the file is damaged, or an array is too large.
    """
    found = _arrays(path, "images", "labels", "test_images", "test_labels")
    train, test = (Split(found.get(f"{part}images"), found.get(f"{part}labels")) for part in ("", "test_"))
    return Source(train, test if {"test_images", "test_labels"} & found.keys() else None)


def read_loose_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads ``images``, and ``labels`` if the file has them, with the limits of `read_npz`.

    Raises:
        DataError: As `read_npz`, or if an array has the wrong type or shape.
    """
    found = _arrays(path, "images", "labels")
    images = check_images(found.get("images"), f"{path}: images")
    labels = check_labels(found["labels"], f"{path}: labels", len(images)) if "labels" in found else None
    return images, labels


def _arrays(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """Those of the arrays ``keys`` that the file has."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return {key: _array(archive, path, key) for key in keys if f"{key}.npy" in names}
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again with numpy.savez") from error


def _array(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # The others cannot unpack in pieces.
        raise DataError(f"{path}: {key} has a compression that numpy does not use; write it again with numpy.savez")
    with archive.open(info) as file:
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
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size > MAX_BYTES:
            fault = "holds Python objects" if dtype.hasobject else f"claims {size:,} bytes, over {MAX_BYTES:,}"
            raise DataError(f"{path}: {key} {fault}; save plain numbers")
        body = file.read(size + 1)
    if len(body) != size:
        found = f"ends after {len(body):,}" if len(body) < size else "has more"
        raise DataError(f"{path}: {key} of shape {shape} takes {size:,} bytes and {found}; write the file again")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
