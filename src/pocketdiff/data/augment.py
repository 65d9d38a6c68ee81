"""Augmentation of training images. To add one, write its function and add it to ``AUGMENTATIONS``."""

from collections.abc import Callable

import torch
from jaxtyping import UInt8
from torch import Tensor

from pocketdiff.registry import Registry
from pocketdiff.rng import Stream, uniform

Augmentation = Callable[[Tensor, int, range], Tensor]
"""(pixels, seed, indices in the run) to changed pixels, both uint8 (b, c, h, w). Each image depends only on its pixels,
the seed and its index: draw from ``rng`` with ``Stream.AUGMENT`` and the indices."""


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
