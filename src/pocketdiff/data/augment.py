"""Augmentation of training images. To add one, write its function and add it to ``AUGMENTATIONS``."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from pocketdiff.registry import Registry
from pocketdiff.rng import Stream, uniform


@runtime_checkable
class Augmentation(Protocol):
    """A random change of uint8 images (b, c, h, w); each depends only on its pixels, the seed and its index in the run.

    So draw from ``rng`` with ``Stream.AUGMENT`` and ``indices``.
    """

    def __call__(self, pixels: Tensor, seed: int, indices: range, /) -> Tensor:
        """The changed images, of the same shape."""


def none(pixels: UInt8[Tensor, "b c h w"], seed: int, indices: range) -> UInt8[Tensor, "b c h w"]:  # noqa: ARG001
    """No augmentation."""
    return pixels


def flip(pixels: UInt8[Tensor, "b c h w"], seed: int, indices: range) -> UInt8[Tensor, "b c h w"]:
    """Horizontal flips of half of the images."""
    flipped = (uniform(seed, Stream.AUGMENT, indices) < 0.5).to(pixels.device)
    return torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)


AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation", "pocketdiff.augmentations", {"none": none, "flip": flip}
)
