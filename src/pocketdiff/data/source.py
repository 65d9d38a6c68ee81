"""What readers of data sets return, and the checks that files and arrays share."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

from pocketdiff.errors import DataError

Size = tuple[int, int]
"""(height, width) in pixels."""


class Split(NamedTuple):
    """Images and labels as they were read; `check_images` and `check_labels` say what they must be."""

    images: np.ndarray
    labels: np.ndarray


class Source(NamedTuple):
    """A data set as it was read. ``load_data`` checks it, and makes a test split if there is none."""

    train: Split
    test: Split | None = None
    classes: Sequence[str] | None = None
    """The names of the labels 0, 1, 2, ...; None: each label that occurs is a class, and its number is the name."""

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray], where: object, classes: Sequence[str] | None = None) -> "Source":
        """The arrays ``images`` and ``labels``, and ``test_images`` and ``test_labels`` if given, as a source.

        Raises:
            DataError: If an array is missing; ``where`` names the source.
        """
        has_test = "test_images" in arrays or "test_labels" in arrays
        for key in ("images", "labels", *(("test_images", "test_labels") if has_test else ())):
            if key not in arrays:
                raise DataError(f"{where}: has no array {key!r}; give both images and labels")
        test = Split(arrays["test_images"], arrays["test_labels"]) if has_test else None
        return Source(Split(arrays["images"], arrays["labels"]), test, classes)


@runtime_checkable
class Reader(Protocol):
    """Reads a data set by name: an entry of ``DATASETS``."""

    def __call__(self) -> Source:
        """The data set; whatever is wrong with its files is a DataError."""


def check_images(array: np.ndarray, what: str) -> UInt8[np.ndarray, "n h w c"]:
    """Images as (n, h, w, c).

    Raises:
        DataError: If they are not uint8, or not grey or RGB images; ``what`` names them.
    """
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise DataError(
            f"{what} is {array.dtype} of shape {array.shape}; it must be uint8, (n, h, w), (n, h, w, c) or "
            "(n, c, h, w), with c = 1 or 3"
        )
    return images


def check_labels(array: np.ndarray, what: str) -> Int[np.ndarray, " n"]:
    """Labels as int64.

    Raises:
        DataError: If they are not integers in one dimension; ``what`` names them.
    """
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(f"{what} is {array.dtype} of shape {array.shape}; it must be integers, (n,)")
    return array.astype(np.int64)


def check_lengths(images: np.ndarray, labels: np.ndarray, where: object) -> None:
    """Raises DataError if the numbers of images and labels differ; ``where`` names the source."""
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images):,} images but {len(labels):,} labels; give one label for each image")


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
