"""The fast network: a U-Net that never works at the image's full size.

Images are folded 2 x 2 into channels before the first convolution (space-to-depth), so that a 28 x 28 digit is worked
on at 14 x 14 and 7 x 7 only, where a CPU's convolutions reach a good share of its peak.
"""

from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from pocketdiff.frozen import Frozen

FOLD = 2
"""Side of the square of pixels that is folded into channels, at the input and from one level to the next."""

Layer = TypeVar("Layer", bound=nn.Module)


def _grouped(widths: tuple[int, ...]) -> tuple[int, ...]:
    if any(width < 8 or width % 8 for width in widths):
        raise ValueError(f"widths must be multiples of 8, not {widths}")
    return widths


Widths = Annotated[tuple[int, ...], Field(min_length=1, max_length=5), AfterValidator(_grouped)]
"""Channels at each level, in groups of 8."""


class UNetConfig(Frozen):
    """The fast U-Net."""

    kind: Literal["unet"] = "unet"
    widths: Widths = (32, 64)
    """Channels at each level, multiples of 8; the first works at half the image's size, each next at half of that."""
    blocks: int = Field(2, ge=1)
    """Residual blocks on the way down, and again on the way up, at each level."""
    embedding: int = Field(128, ge=8)
    """Size of the vector that carries noise level and label."""

    def build(self, channels: int, num_classes: int) -> "UNet":
        """The network, newly initialised."""
        return UNet(channels, num_classes, self.widths, self.blocks, self.embedding)


class UNet(nn.Module):
    """Maps a noisy image, its noise input and its label to a target shaped like the image.

    Takes any size: images are padded inside to a multiple of ``2 ** len(widths)``, and the output is cut back.

    Args:
        channels: Of the image.
        num_classes: Labels are 0 to num_classes, the last one the null label.
        widths: Channels at each level.
        blocks: Residual blocks down, and again up, at each level.
        embedding: Size of the embedding of noise level and label.
    """

    edges = ("embedding", "first", "last")
    """Modules at input and output, which Muon leaves to Adam."""

    def __init__(self, channels: int, num_classes: int, widths: tuple[int, ...], blocks: int, embedding: int) -> None:
        super().__init__()
        folded = channels * FOLD**2
        self.multiple = FOLD ** len(widths)
        self.embedding = Embedding(num_classes, embedding)
        self.first = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.levels = Level(widths, blocks, embedding)
        self.last = nn.Sequential(
            nn.GroupNorm(widths[0] // 8, widths[0]), nn.SiLU(), zeroed(nn.Conv2d(widths[0], folded, 3, padding=1))
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], noise: Float[Tensor, " b"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The network's own target for scaled images ``x``; ``noise`` is of about unit scale."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        h = self.first(F.pixel_unshuffle(padded, FOLD).contiguous(memory_format=torch.channels_last))
        h = self.last(self.levels(h, self.embedding(noise, label)))
        return F.pixel_shuffle(h, FOLD)[..., :height, :width]


class Level(nn.Module):
    """One size of the U-Net, with all smaller ones inside it; each block on the way up sees what its twin gave."""

    def __init__(self, widths: tuple[int, ...], blocks: int, embedding: int) -> None:
        super().__init__()
        width, *deeper = widths
        self.down = nn.ModuleList(Block(width, width, embedding) for _ in range(blocks))
        self.up = nn.ModuleList(Block(2 * width, width, embedding) for _ in range(blocks))
        self.inner = None
        if deeper:
            self.shrink = nn.Conv2d(width * FOLD**2, deeper[0], 1)
            self.inner = Level(tuple(deeper), blocks, embedding)
            self.grow = nn.Conv2d(deeper[0], width * FOLD**2, 1)

    def forward(self, h: Float[Tensor, "b c h w"], known: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        """Features of the same shape; ``known`` is the embedding of noise level and label."""
        skips = []
        for block in self.down:
            h = block(h, known)
            skips.append(h)
        if self.inner is not None:
            h = F.pixel_shuffle(self.grow(self.inner(self.shrink(F.pixel_unshuffle(h, FOLD)), known)), FOLD)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], 1), known)
        return h


class Block(nn.Module):
    """A residual block whose second convolution's input is scaled and shifted by the embedding (adaptive group norm).

    Its last convolution starts at zero, so that a new block passes its input on.
    Source: Dhariwal and Nichol 2021, section 3.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(inputs // 8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulate = zeroed(nn.Linear(embedding, 2 * outputs))
        self.norm2 = nn.GroupNorm(outputs // 8, outputs, affine=False)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "b i h w"], known: Float[Tensor, "b e"]) -> Float[Tensor, "b o h w"]:
        """Features of ``outputs`` channels."""
        scale, shift = self.modulate(known)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(F.silu(h))


class Embedding(nn.Module):
    """What a network knows beside the image: the noise level, in sines and cosines, and the label, as one vector."""

    frequencies: Tensor

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.pi * 2 ** torch.linspace(-3, 3, size // 4), persistent=False)
        self.noise = nn.Linear(size // 4 * 2, size)
        self.label = nn.Embedding(num_classes + 1, size)
        self.out = nn.Linear(size, size)

    def forward(self, noise: Float[Tensor, " b"], label: Int[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """One vector an image."""
        angle = noise[:, None] * self.frequencies
        h = self.noise(torch.cat([angle.cos(), angle.sin()], 1)) + self.label(label)
        return F.silu(self.out(F.silu(h)))


def zeroed(layer: Layer) -> Layer:
    """A layer that gives zeros until it is trained."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
