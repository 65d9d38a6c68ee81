"""What readers of data sets return, and the checks that files and arrays share."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from pocketdiff.errors import DataError

Size = tuple[int, int]
"""(height, width) in pixels."""


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


@runtime_checkable
class Reader(Protocol):
    """An entry of ``DATASETS``."""

    def __call__(self) -> Source:
        """Reads the data set; faults of its files are DataErrors."""


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
        DataError: If they are not ``n`` integers in one dimension; the message begins with ``what``.
    """
    array = _array(values, what)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(f"{what} is {array.dtype} of shape {array.shape}; it must be integers, (n,)")
    if len(array) != n:
        raise DataError(f"{what} has {len(array):,} entries for {n:,} images; give one for each image")
    return array.astype(np.int64)


def _array(values: Any, what: str) -> np.ndarray:
    if values is None:
        raise DataError(f"{what} is missing; add it")
    try:
        return values.numpy(force=True) if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} is not an array ({error}); give a numpy array or a tensor") from error


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Scales an image until it covers ``size``, then crops it at the center."""
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)


def resize(images: UInt8[np.ndarray, "n h w c"], size: Size | None) -> UInt8[np.ndarray, "n h2 w2 c"]:
    """All images in this size; unchanged if ``size`` is None or their own."""
    if size is None or images.shape[1:3] == size:
        return images
    channels = images.shape[3]
    pixels = [np.asarray(fit(Image.fromarray(image), size)) for image in (images[..., 0] if channels == 1 else images)]
    return np.stack(pixels).reshape(-1, *size, channels)
