"""The GANs' networks: a generator, which maps noise to images, and a discriminator, which tells them from real ones.

`mlp` is a plain pair of multilayer perceptrons without labels. `conv` is a small modern convolutional pair that is
conditioned on labels. ``LOSSES`` holds their losses.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from pocketdiff.frozen import Frozen
from pocketdiff.nets.unet import FOLD, MAX_EMBEDDING, MAX_WIDTH, Block, Widths
from pocketdiff.registry import Registry

_SLOPE = 0.2  # of the leaky ReLUs, for negative inputs


class Verdict(NamedTuple):
    """A discriminator's output."""

    real: Float[Tensor, " b"]
    """Logits; higher means more real."""
    classes: Float[Tensor, "b k"] | None
    """Logits of the classes; None for a discriminator that does not classify."""


class GanLosses(NamedTuple):
    """The loss of each network, from the logits of equal numbers of real and generated images."""

    discriminator: Float[Tensor, ""]
    generator: Float[Tensor, ""]


def nonsaturating(real: Float[Tensor, " b"], fake: Float[Tensor, " b"]) -> GanLosses:
    """The discriminator classifies real against generated; the generator maximizes the logits of its images.
    Source: Goodfellow et al. 2014, section 3, with the generator loss that has stronger gradients.
    """
    return GanLosses(F.softplus(-real).mean() + F.softplus(fake).mean(), F.softplus(-fake).mean())


def relativistic(real: Float[Tensor, " b"], fake: Float[Tensor, " b"]) -> GanLosses:
    """Each generated image is compared with one real image of its class: which of the two is more real?

    It reduces mode collapse. Source: Jolicoeur-Martineau 2018, section 4.2; Huang et al. 2024 (R3GAN), equation 2.
    """
    return GanLosses(F.softplus(fake - real).mean(), F.softplus(real - fake).mean())


LOSSES: Registry[Callable[[Tensor, Tensor], GanLosses]] = Registry(
    "GAN loss", "pocketdiff.gan_losses", {"nonsaturating": nonsaturating, "relativistic": relativistic}
)


class Gan(nn.Module):
    """A generator, which maps noise (n, latent) and labels (n,) to images (n, c, h, w) in [-1, 1], and a discriminator,
    which maps images and labels to a `Verdict`.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


Hidden = Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...], Field(min_length=1, max_length=8)]
"""Widths of hidden layers."""


class MlpGanConfig(Frozen):
    """A plain GAN of multilayer perceptrons, without labels."""

    kind: Literal["mlp"] = "mlp"
    conditional: ClassVar[bool] = False
    latent: int = Field(100, ge=1, le=MAX_EMBEDDING)
    """Size of the generator's noise vector."""
    generator: Hidden = (256, 512, 1024)
    """Widths of the generator's hidden layers."""
    discriminator: Hidden = (512, 256)
    """Widths of the discriminator's hidden layers."""
    common: ClassVar = ("generator", "discriminator")

    def build(self, shape: tuple[int, int, int], num_classes: int) -> Gan:  # noqa: ARG002 (no labels)
        """New networks for images of this shape (c, h, w)."""
        return Gan(MlpGenerator(shape, self.latent, self.generator), MlpDiscriminator(shape, self.discriminator))


class MlpGenerator(nn.Module):
    """Fully connected layers; all but the last have batch norm and a leaky ReLU."""

    def __init__(self, shape: tuple[int, int, int], latent: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((latent, *hidden)):
            layers += [nn.Linear(inputs, outputs), BatchNorm(outputs), nn.LeakyReLU(_SLOPE)]
        size = torch.Size(shape)
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], size.numel()), nn.Tanh(), nn.Unflatten(1, size))

    def forward(self, z: Float[Tensor, "b z"], label: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:  # noqa: ARG002
        """Images in [-1, 1]."""
        return self.layers(z)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that uses its running statistics for a batch of one image, which has no variance."""

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        """Features with about unit variance."""
        if len(x) > 1:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class MlpDiscriminator(nn.Module):
    """Fully connected layers with leaky ReLUs."""

    def __init__(self, shape: tuple[int, int, int], hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = (torch.Size(shape).numel(), *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1), nn.Flatten(0))

    def forward(self, x: Float[Tensor, "b c h w"], label: Int[Tensor, " b"]) -> Verdict:  # noqa: ARG002
        """A logit for each image."""
        return Verdict(self.layers(x), None)


class ConvGanConfig(Frozen):
    """A small convolutional GAN, conditioned on labels."""

    kind: Literal["conv"] = "conv"
    conditional: ClassVar[bool] = True
    latent: int = Field(64, ge=1, le=MAX_EMBEDDING)
    """Size of the generator's noise vector."""
    widths: Widths = (32, 64)
    """Channels at each level, multiples of 8. The first level has half the image's size, each next one half of that."""
    embedding: int = Field(64, ge=8, le=MAX_EMBEDDING)
    """Size of the label embedding."""
    common: ClassVar = ("widths",)

    def build(self, shape: tuple[int, int, int], num_classes: int) -> Gan:
        """New networks for images of this shape (c, h, w) and labels 0 to num_classes - 1."""
        return Gan(ConvGenerator(self, shape, num_classes), ConvDiscriminator(self, shape, num_classes))


class ConvGenerator(nn.Module):
    """Maps noise and label to a small image, then upsamples level by level; both also modulate every block.

    As in the fast U-Net, no level has the image's full size. With group norm instead of batch norm an image does not
    depend on the other images of its batch.
    """

    def __init__(self, config: ConvGanConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        latent, widths, embedding = config.latent, config.widths, config.embedding
        channels, self.height, self.width = shape
        smallest = [-(-side // FOLD ** len(widths)) for side in shape[1:]]
        self.label = nn.Embedding(num_classes, embedding)
        self.known = nn.Sequential(nn.Linear(latent + embedding, embedding), nn.SiLU())
        narrow = widths[-1] // 2
        self.seed = nn.Sequential(
            nn.Linear(latent + embedding, narrow * smallest[0] * smallest[1]), nn.Unflatten(1, (narrow, *smallest))
        )
        grow: list[nn.Module] = [nn.Conv2d(narrow, widths[-1], 1)]
        for below, width in pairwise(reversed(widths)):
            grow.append(nn.Sequential(nn.Conv2d(below, width * FOLD**2, 1), nn.PixelShuffle(FOLD)))
        self.grow = nn.ModuleList(grow)
        self.blocks = nn.ModuleList(Block(width, width, embedding) for width in reversed(widths))
        self.last = nn.Sequential(
            nn.GroupNorm(widths[0] // 8, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels * FOLD**2, 3, padding=1)
        )

    def forward(self, z: Float[Tensor, "b z"], label: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1]."""
        both = torch.cat([z, self.label(label)], 1)
        emb = self.known(both)
        h = self.seed(both).contiguous(memory_format=torch.channels_last)
        for grow, block in zip(self.grow, self.blocks, strict=True):
            h = block(grow(h), emb)
        return F.pixel_shuffle(self.last(h), FOLD)[..., : self.height, : self.width].tanh()


class ConvDiscriminator(nn.Module):
    """Residual blocks at a half, a quarter, ... of the image's size, with a projection of the label.

    No normalization: the gradient penalty keeps it smooth. The projection is the dot product of label embedding and
    features (Miyato and Koyama 2018); the same features classify the images (Odena et al. 2017).
    """

    def __init__(self, config: ConvGanConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        widths = config.widths
        self.multiple = FOLD ** len(widths)
        self.shrink = nn.ModuleList(
            nn.Conv2d(inputs * FOLD**2, outputs, 1 if level else 3, padding=0 if level else 1)
            for level, (inputs, outputs) in enumerate(zip((channels, *widths), widths, strict=False))
        )
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths)
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, stride=2, padding=1)
        smallest = [-(-side // (FOLD * self.multiple)) for side in (height, width)]
        self.features = nn.Linear(widths[-1] * smallest[0] * smallest[1], 2 * widths[-1])
        self.logit = nn.Linear(2 * widths[-1], 1)
        self.label = nn.Embedding(num_classes, 2 * widths[-1])
        self.classes = nn.Linear(2 * widths[-1], num_classes)

    def forward(self, x: Float[Tensor, "b c h w"], label: Int[Tensor, " b"]) -> Verdict:
        """A logit for each image, given its label, and logits of its class."""
        height, width = x.shape[-2:]
        h = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        for shrink, block in zip(self.shrink, self.blocks, strict=True):
            h = block(shrink(F.pixel_unshuffle(h, FOLD).contiguous(memory_format=torch.channels_last)))
        h = F.leaky_relu(self.last(F.leaky_relu(h, _SLOPE)), _SLOPE).flatten(1)
        features = F.leaky_relu(self.features(h), _SLOPE)
        real = self.logit(features)[:, 0] + (self.label(label) * features).sum(1)
        return Verdict(real, self.classes(features))


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Features of the same shape."""
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, _SLOPE)), _SLOPE))
