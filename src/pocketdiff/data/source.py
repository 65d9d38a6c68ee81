"""What readers of data sets return, and what files and arrays share: checks, sizes, the limit of memory."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from pocketdiff.errors import DataError

Size = tuple[int, int]
"""(height, width) in pixels."""

MIN_SIDE, MAX_SIDE = 16, 64
"""The supported image sizes, in pixels."""
MAX_BYTES = 2**31
"""Limit of the unpacked size of one file, and of the images of one split; all images are kept in memory."""
_FEWER = "use fewer or smaller images"
_log = logging.getLogger(__name__)


_PIECE = 2**24
"""Bytes read at once: to read the size that a header claims would allocate it, however short the file."""


class Split(NamedTuple):
    """Images and labels as they were read: numpy arrays or tensors, checked by `check_images` and `check_labels`."""

    images: Any
    labels: Any


class Source(NamedTuple):
    """A data set as it was read. ``load_data`` checks it, and makes a test split if there is none."""

    train: Split
    test: Split | None = None
    classes: Sequence[str] | None = None
    """The names of the labels 0, 1, 2, ...; None: each label that occurs is a class, and its number is the name."""


Reader = Callable[[], Source]
"""Reads a data set; faults of its files are DataErrors."""


def read_array(
    read: Callable[[int], bytes], shape: tuple[int, ...], what: str, dtype: "np.dtype[Any]", fortran: bool = False
) -> np.ndarray:
    """The rest of a file, whose ``read`` this is, as an array; reads no more than its shape needs, or than `MAX_BYTES`.

    Raises:
        DataError: If the shape needs more, or the rest has another size; the message begins with ``what``.
    """
    size = count_bytes(shape, what, dtype)
    body = bytearray()
    while len(body) <= size and (piece := read(min(size + 1 - len(body), _PIECE))):
        body += piece
    if len(body) != size:
        found = f"ends after {len(body):,}" if len(body) < size else "has more"
        raise DataError(f"{what} of shape {shape} takes {size:,} bytes, but the file {found}; replace it")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def count_bytes(shape: tuple[int, ...], what: str, dtype: "np.dtype[Any]") -> int:
    """The bytes of an array. Raises DataError if they exceed `MAX_BYTES`; the message begins with ``what``."""
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise DataError(f"{what} claims {size:,} bytes, over the limit of {MAX_BYTES:,}; {_FEWER}")
    return size


def check_images(values: Any, what: str) -> UInt8[np.ndarray, "n h w c"]:
    """Images as (n, h, w, c).

    Raises:
        DataError: If they are not uint8, or not grey or RGB images; the message begins with ``what``.
    """
    array = _array(values, what)
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise DataError(
            f"{what} is {array.dtype} of shape {array.shape}; it must be uint8, (n, h, w), (n, h, w, c) or "
            "(n, c, h, w), with c = 1 or 3"
        )
    return images


def check_labels(values: Any, what: str, n: int) -> Int[np.ndarray, " {n}"]:
    """Labels of ``n`` images as int64.

    Raises:
        DataError: If they are not ``n`` integers of 64 bits in one dimension; the message begins with ``what``.
    """
    array = check_label_shape(values, what, n)
    if array.dtype.kind == "u" and array.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{what} holds {array.max()}, more than a label can be ({2**63 - 1}); use smaller numbers")
    return array.astype(np.int64)


def check_label_shape(values: Any, what: str, n: int) -> np.ndarray:
    """Labels as an array of their own type. Raises DataError as `check_labels`, but reads no label."""
    array = _array(values, what)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(f"{what} is {array.dtype} of shape {array.shape}; it must be integers, (n,)")
    if len(array) != n:
        raise DataError(f"{what} has {len(array):,} entries for {n:,} images; give one for each image")
    return array


def _array(values: Any, what: str) -> np.ndarray:
    if values is None:
        raise DataError(f"{what} is missing; add it")
    try:
        return values.numpy(force=True) if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} is not an array ({error}); give a numpy array or a tensor") from error


def common_size(sizes: Int[np.ndarray, "n 2"], source: str) -> Size:
    """The size of all images of a data set: their own if they have one size of 16 to 64 pixels a side.

    Otherwise the medians of their heights and widths, scaled down until the longer side is at most 64, each rounded to
    a multiple of 4 and at least 16. A line of the log then says so; it begins with ``source``.
    """
    areas = sizes.prod(1)
    first, last = sizes[areas.argmin()].tolist(), sizes[areas.argmax()].tolist()
    same = bool((sizes == sizes[0]).all())
    if same and MIN_SIDE <= min(first) <= max(first) <= MAX_SIDE:
        return tuple(first)
    sides = np.median(sizes, axis=0)
    sides = sides * min(1, MAX_SIDE / sides.max())
    height, width = (max(MIN_SIDE, 4 * round(side / 4)) for side in sides.tolist())
    found = f"of {first[0]} x {first[1]}" if same else f"from {first[0]} x {first[1]} to {last[0]} x {last[1]}"
    _log.info(
        "%s: %s images %s pixels, scaled to %d x %d; --size (size=) chooses another",
        source, f"{len(sizes):,}", found, height, width,
    )  # fmt: skip
    return height, width


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Scales an image until it covers ``size``, then crops it at the center."""
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)


def resize(images: UInt8[np.ndarray, "n h w c"], size: Size, what: str) -> UInt8[np.ndarray, "n h2 w2 c"]:
    """All images in this size; unchanged if it is their own. Raises DataError if they then exceed `MAX_BYTES`."""
    if images.shape[1:3] == size:
        return images
    n, channels = len(images), images.shape[3]
    resized = new_images((n, *size, channels), what)
    for place, image in zip(resized, images[..., 0] if channels == 1 else images, strict=True):
        place[:] = np.asarray(fit(Image.fromarray(image), size)).reshape(place.shape)
    return resized


def new_images(shape: tuple[int, int, int, int], what: str) -> UInt8[np.ndarray, "n h w c"]:
    """Memory for images. Raises DataError if it exceeds `MAX_BYTES`; the message begins with ``what``."""
    size = math.prod(shape)
    if size > MAX_BYTES:
        n, height, width, _ = shape
        raise DataError(
            f"{what}: {n:,} images of {height} x {width} pixels need {size:,} bytes of memory, over the limit of "
            f"{MAX_BYTES:,}; {_FEWER}"
        )
    return np.empty(shape, np.uint8)
