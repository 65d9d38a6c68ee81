"""The IDX format of MNIST's files: a magic number, the dimensions, then the bytes.

Source: the description on the MNIST page by LeCun, Cortes and Burges. Only unsigned bytes are read: all files in
MNIST's layout have this type.
"""

import gzip
import hashlib
import re
import string
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
_CAPITALS, _DIGITS = tuple(string.ascii_uppercase), tuple(string.digits)
_FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

KNOWN = {
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9": _FASHION,  # Unpacked.
    "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17": _KUZUSHIJI,  # KMNIST's own .gz file.
}
"""The class names of published data sets, by the SHA-256 of their file of training labels, as it is or unpacked."""

EMNIST = {
    "balanced": (*_DIGITS, *_CAPITALS, *"abdefghnqrt"),
    "byclass": (*_DIGITS, *_CAPITALS, *string.ascii_lowercase),
    "bymerge": (*_DIGITS, *_CAPITALS, *"abdefghnqrt"),
    "digits": _DIGITS,
    "letters": _CAPITALS,  # Of either case; the labels are 1 to 26.
    "mnist": _DIGITS,
}
"""The class names of EMNIST's splits. Source: Cohen et al. 2017 and the mapping files of the data set."""


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
    """Whether a folder holds any of the four files of MNIST's layout, or any of EMNIST's files."""
    return path.is_dir() and (any(_find(path, stem) for stem in _FILES) or bool(_emnist_splits(path)))


def read_idx_folder(path: Path) -> Source:
    """Reads the four files of MNIST's layout, with or without ``.gz``, which Fashion-MNIST and KMNIST also use; or the
    four files of one split of EMNIST under its own names, whose images lie on their side and are turned upright.

    Known data sets have class names: those of ``KNOWN`` by the hash of their labels, EMNIST by the names of its files.

    Raises:
        DataError: If one is missing or faulty, or the numbers of images and labels differ.
    """
    stems, classes = list(_FILES), None
    if found := _emnist_splits(path):
        if len(found) > 1 or any(_find(path, stem) for stem in _FILES):
            raise DataError(f"{path}: holds more than one data set ({', '.join(found)}); give each a folder of its own")
        classes = EMNIST[found[0]]
        stems = [f"emnist-{found[0]}-{stem.replace('t10k', 'test')}" for stem in _FILES]
    arrays: list[np.ndarray] = []
    for stem in stems:
        if (file := _find(path, stem)) is None:
            raise DataError(f"{path}: {stem}, plain or .gz, is missing; the layout needs {', '.join(stems)}")
        array = read_idx(file, 3 if "images" in stem else 1)
        if "labels" in stem:
            if len(array) != len(arrays[-1]):
                fault = f"holds {len(array):,} labels for {len(arrays[-1]):,} images"
                raise DataError(f"{file}: {fault}; download both again")
            if classes is None and stem == stems[1]:
                with file.open("rb") as content:
                    classes = KNOWN.get(_sha256(array)) or KNOWN.get(hashlib.file_digest(content, "sha256").hexdigest())
        arrays.append(array)
    if found:
        arrays = [array.transpose(0, 2, 1) if array.ndim == 3 else array for array in arrays]
        if found == ["letters"]:
            arrays = [array - np.int64(1) if array.ndim == 1 else array for array in arrays]
    return Source(Split(*arrays[:2]), Split(*arrays[2:]), classes)


def read_mnist() -> Source:
    """MNIST's 60,000 and 10,000 digits, from the package itself.

    Raises:
        DataError: If the SHA-256 of a file is not that of the published one.
    """
    folder = Path(__file__).with_name("mnist")
    source = read_idx_folder(folder)
    for (stem, expected), array in zip(_FILES.items(), [*source.train, *(source.test or ())], strict=True):
        if _sha256(array) != expected:
            raise DataError(f"{folder / stem}: its SHA-256 is not that of the published file; install pocketdiff again")
    return source


def _sha256(array: UInt8[np.ndarray, "..."]) -> str:
    """The SHA-256 of an array's uncompressed file."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return hashlib.sha256(header + array.tobytes()).hexdigest()


def _emnist_splits(folder: Path) -> list[str]:
    """The splits of EMNIST with a file in a folder."""
    found = (re.match(r"emnist-([a-z]+)-.*-ubyte(\.gz)?$", file.name) for file in folder.glob("emnist-*"))
    return sorted({match[1] for match in found if match and match[1] in EMNIST})


def _find(folder: Path, stem: str) -> Path | None:
    return next((file for file in (folder / stem, folder / f"{stem}.gz") if file.is_file()), None)
