"""The IDX format of MNIST's files: a magic number, the dimensions, then the bytes.

Source: the description on the MNIST page by LeCun, Cortes and Burges. Only unsigned bytes are read: all files in
MNIST's layout have this type.
"""

import gzip
import hashlib
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pocketdiff.data.source import Source, Split, read_array
from pocketdiff.errors import DataError

# The files of MNIST's layout, with the SHA-256 of MNIST's own, uncompressed.
_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def read_idx(path: Path, dims: int) -> UInt8[np.ndarray, "..."]:
    """Reads an IDX file of unsigned bytes, plain or gzip-compressed; its first bytes decide, not its name.

    Never reads more than the header promises, or more than `MAX_BYTES`. ``dims`` is the expected number of dimensions:
    3 for images (n, h, w), 1 for labels (n,).

    Raises:
        DataError: If the file is missing, empty, truncated, too long, damaged, or has another type or shape.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if zipped else file as content:
                return _parse(content, path, dims)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path}: cannot be read ({reason}); download it again") from error


def _parse(file: BufferedIOBase, path: Path, dims: int) -> UInt8[np.ndarray, "..."]:
    head = file.read(4 + 4 * dims)
    if not head:
        raise DataError(f"{path}: the file is empty; download it again")
    magic = bytes([0, 0, 8, dims])
    if head[:4] != magic:
        raise DataError(
            f"{path}: starts with {head[:4].hex()}, but an IDX file of bytes with {dims} dimension(s) starts with "
            f"{magic.hex()}; check that it is the right file"
        )
    if len(head) < 4 + 4 * dims:
        raise DataError(f"{path}: ends within its header; download it again")
    shape = tuple(int(n) for n in np.frombuffer(head, ">u4", offset=4))
    if 0 in shape:
        raise DataError(f"{path}: it is empty, with dimensions {shape}; download it again")
    return read_array(file.read, shape, f"{path}: its array", np.dtype(np.uint8))


def is_idx_folder(path: Path) -> bool:
    """Whether a folder holds any of the four files of MNIST's layout."""
    return path.is_dir() and any(_find(path, stem) for stem in _FILES)


def read_idx_folder(path: Path) -> Source:
    """Reads the four files of MNIST's layout, with or without ``.gz``, which Fashion-MNIST and KMNIST also use.

    Raises:
        DataError: If one is missing or faulty, or the numbers of images and labels differ.
    """
    arrays: list[np.ndarray] = []
    for stem in _FILES:
        if (file := _find(path, stem)) is None:
            raise DataError(f"{path}: {stem}, plain or .gz, is missing; the layout needs {', '.join(_FILES)}")
        array = read_idx(file, 3 if "images" in stem else 1)
        if "labels" in stem and len(array) != len(arrays[-1]):
            raise DataError(f"{file}: holds {len(array):,} labels for {len(arrays[-1]):,} images; download both again")
        arrays.append(array)
    return Source(Split(*arrays[:2]), Split(*arrays[2:]))


def read_mnist() -> Source:
    """MNIST's 60,000 and 10,000 digits, from the package itself.

    Raises:
        DataError: If the SHA-256 of a file is not that of the published one.
    """
    folder = Path(__file__).with_name("mnist")
    source = read_idx_folder(folder)
    for (stem, expected), array in zip(_FILES.items(), [*source.train, *(source.test or ())], strict=True):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        if hashlib.sha256(header + array.tobytes()).hexdigest() != expected:
            raise DataError(f"{folder / stem}: its SHA-256 is not that of the published file; install pocketdiff again")
    return source


def _find(folder: Path, stem: str) -> Path | None:
    return next((file for file in (folder / stem, folder / f"{stem}.gz") if file.is_file()), None)
