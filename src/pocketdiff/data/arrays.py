"""Data sets in one ``.npz`` file."""

import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pocketdiff.data.source import MAX_BYTES, Source, Split, read_array
from pocketdiff.errors import DataError


def read_npz(path: Path) -> Source:
    """Reads ``images``, ``labels``, ``test_images`` and ``test_labels``, or None for those that the file lacks.

    Never unpickles, and never reads more than an array's header promises, or more than `MAX_BYTES`.

    Raises:
        DataError: If the file is damaged, or an array is too large.
    """
    keys = ("images", "labels", "test_images", "test_labels")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = {key: _array(archive, path, key) for key in keys if f"{key}.npy" in names}
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again with numpy.savez") from error
    train, test = (Split(found.get(f"{part}images"), found.get(f"{part}labels")) for part in ("", "test_"))
    return Source(train, test if {"test_images", "test_labels"} & found.keys() else None)


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
        if dtype.hasobject:
            raise DataError(f"{path}: {key} holds Python objects; save plain numbers")
        return read_array(file.read, shape, f"{path}: {key}", dtype, fortran)
