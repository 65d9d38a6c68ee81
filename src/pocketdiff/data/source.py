"""What every reader of data returns, before it is checked and split."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

Size = tuple[int, int]
"""(height, width) in pixels."""


class Split(NamedTuple):
    """Images and their labels as the source has them."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]


class Source(NamedTuple):
    """A data set as its source has it: perhaps without a test split, perhaps without names for its labels."""

    train: Split
    test: Split | None = None
    classes: tuple[str, ...] | None = None

    def resized(self, size: Size | None) -> "Source":
        """All images brought to ``size``, or this source where there is none or they have it already."""
        return self._replace(
            train=_resized(self.train, size), test=None if self.test is None else _resized(self.test, size)
        )


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Scales an image until it covers ``size`` and cuts it to ``size`` about the centre."""
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)


def _resized(split: Split, size: Size | None) -> Split:
    if size is None or split.images.shape[1:3] == size:
        return split
    channels = split.images.shape[3]
    images = split.images[..., 0] if channels == 1 else split.images
    pixels = [np.asarray(fit(Image.fromarray(image), size)) for image in images]
    return Split(np.stack(pixels).reshape(-1, *size, channels), split.labels)
