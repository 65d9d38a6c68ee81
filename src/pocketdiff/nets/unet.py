"""The fast network: a U-Net without a level at the image's full size.

Space-to-depth moves each 2 x 2 square of pixels into channels before the first convolution. For a 28 x 28 digit, all
convolutions run at 14 x 14 and 7 x 7, where they use a CPU well.
"""

from typing import Annotated, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from pocketdiff.frozen import Frozen

FOLD = 2
"""Side of the square of pixels that space-to-depth moves into channels, at the input and between levels."""

MAX_WIDTH = 1024
"""The most channels or features of a layer, here and in the GANs."""
MAX_EMBEDDING = 4096

Layer = TypeVar("Layer", bound=nn.Module)


def _grouped(widths: tuple[int, ...]) -> tuple[int, ...]:
    if any(width not in range(8, MAX_WIDTH + 1, 8) for width in widths):
        raise ValueError(f"widths must be multiples of 8, at most {MAX_WIDTH}, not {widths}")
    return widths


Widths = Annotated[tuple[int, ...], Field(min_length=1, max_length=5), AfterValidator(_grouped)]
"""Channels at each level, in groups of 8 for group norm."""


class UNetConfig(Frozen):
    """The fast U-Net."""

    kind: Literal["unet"] = "unet"
    widths: Widths = (32, 64)
    """Channels at each level, multiples of 8. The first level has half the image's size, each next one half of that."""
    blocks: int = Field(2, ge=1, le=16)
    """Residual blocks at each level on the way down, and the same number on the way up."""
    embedding: int = Field(128, ge=8, le=MAX_EMBEDDING)
    """Size of the embedding of noise level and label."""
    common: ClassVar = ("widths",)

    def build(self, shape: tuple[int, int, int], num_classes: int) -> "UNet":
        """A new network for images of this shape (c, h, w)."""
        return UNet(shape[0], num_classes, self.widths, self.blocks, self.embedding)


class UNet(nn.Module):
    """Maps a noisy image, its noise input and its label to a target of the image's shape.

    Images have any size: they are padded to a multiple of ``2 ** len(widths)``, and the output is cropped. Labels are
    0 to num_classes; num_classes is the null label. `UNetConfig` describes the other arguments.
    """

    adam_only = ("embedding", "first", "last")
    """Modules at input and output, which Muon does not suit."""

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
        """The predicted target for scaled images ``x``; ``noise`` has about unit scale."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        h = self.first(F.pixel_unshuffle(padded, FOLD).contiguous(memory_format=torch.channels_last))
        h = self.last(self.levels(h, self.embedding(noise, label)))
        return F.pixel_shuffle(h, FOLD)[..., :height, :width]


class Level(nn.Module):
    """One level of the U-Net, with skip connections between its blocks, and the smaller levels inside it."""

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

    def forward(self, h: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        """Features of the same shape; ``emb`` is the embedding of noise level and label."""
        skips = []
        for block in self.down:
            h = block(h, emb)
            skips.append(h)
        if self.inner is not None:
            h = F.pixel_shuffle(self.grow(self.inner(self.shrink(F.pixel_unshuffle(h, FOLD)), emb)), FOLD)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], 1), emb)
        return h


class Block(nn.Module):
    """A residual block with adaptive group norm: the embedding scales and shifts the second convolution's input.

    The last convolution is zero-initialized: a new block with equal ``inputs`` and ``outputs`` is the identity.
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

    def forward(self, x: Float[Tensor, "b i h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b o h w"]:
        """Features with ``outputs`` channels."""
        scale, shift = self.modulate(emb)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(F.silu(h))


class Embedding(nn.Module):
    """The sum of a Fourier embedding of the noise level and a label embedding, followed by a layer."""

    frequencies: Tensor

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", torch.pi * 2 ** torch.linspace(-3, 3, size // 4, device="cpu"), persistent=False
        )
        self.noise = nn.Linear(size // 4 * 2, size)
        self.label = nn.Embedding(num_classes + 1, size)
        self.out = nn.Linear(size, size)

    def forward(self, noise: Float[Tensor, " b"], label: Int[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """One vector for each image."""
        angle = noise[:, None] * self.frequencies
        h = self.noise(torch.cat([angle.cos(), angle.sin()], 1)) + self.label(label)
        return F.silu(self.out(F.silu(h)))


def zeroed(layer: Layer) -> Layer:
    """A zero-initialized layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
