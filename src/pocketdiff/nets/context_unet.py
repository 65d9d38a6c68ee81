"""The original experiment's network: DDPM-MNIST's ContextUnet, weight for weight.

A U-Net with two levels and a bottleneck of one pixel for each 28 x 28 pixels of the image. On the way up, the label
scales the features and the noise level shifts them. The module names, and so the state-dict keys, are the script's.
docs/ddpm.md walks through it block by block.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from pocketdiff.frozen import Frozen

SIDE = 28
"""The image side of the original network: two poolings leave 7 pixels, and the bottleneck pools them to one."""


class ContextUnetConfig(Frozen):
    """The network of the original experiment."""

    kind: Literal["context_unet"] = "context_unet"
    n_feat: int = Field(128, ge=8, le=1024, multiple_of=8)
    """Channels at the image's full size, a multiple of 8; the lowest level has twice as many."""
    common: ClassVar = ("n_feat",)

    def build(self, shape: tuple[int, int, int], num_classes: int) -> "ContextUnet":
        """A new network for images of this shape (c, h, w)."""
        return ContextUnet(shape[0], self.n_feat, num_classes)


class ContextUnet(nn.Module):
    """Maps a noisy image, its time t / T and its label to the noise in it.

    Images have any size: they are padded to multiples of 28, and the output is cropped. Labels are 0 to n_classes;
    n_classes is the null label.
    """

    adam_only = ("init_conv", "timeembed1", "timeembed2", "contextembed1", "contextembed2", "out")
    """Modules at input and output, which Muon does not suit."""

    def __init__(self, in_channels: int, n_feat: int, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.init_conv = ResidualConvBlock(in_channels, n_feat, is_res=True)
        self.down1 = UnetDown(n_feat, n_feat)
        self.down2 = UnetDown(n_feat, 2 * n_feat)
        self.to_vec = nn.Sequential(nn.AvgPool2d(SIDE // 4), nn.GELU())
        self.timeembed1 = EmbedFC(1, 2 * n_feat)
        self.timeembed2 = EmbedFC(1, n_feat)
        self.contextembed1 = EmbedFC(n_classes, 2 * n_feat)
        self.contextembed2 = EmbedFC(n_classes, n_feat)
        self.up0 = nn.Sequential(
            nn.ConvTranspose2d(2 * n_feat, 2 * n_feat, SIDE // 4, SIDE // 4), nn.GroupNorm(8, 2 * n_feat), nn.ReLU()
        )
        self.up1 = UnetUp(4 * n_feat, n_feat)
        self.up2 = UnetUp(2 * n_feat, n_feat)
        self.out = nn.Sequential(
            nn.Conv2d(2 * n_feat, n_feat, 3, 1, 1),
            nn.GroupNorm(8, n_feat),
            nn.ReLU(),
            nn.Conv2d(n_feat, in_channels, 3, 1, 1),
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], noise: Float[Tensor, " b"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The predicted noise in scaled images ``x``; ``noise`` is the time t / T."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % SIDE, 0, -height % SIDE), mode="replicate")
        # The script inverts its mask: a kept label is -1 in the one-hot vector. Its weights were trained this way.
        context = -F.one_hot(label, self.n_classes + 1)[:, : self.n_classes].to(noise)
        c1, t1 = self.contextembed1(context), self.timeembed1(noise[:, None])
        c2, t2 = self.contextembed2(context), self.timeembed2(noise[:, None])
        x = self.init_conv(x)
        d1 = self.down1(x)
        d2 = self.down2(d1)
        h = self.up0(self.to_vec(d2))
        h = self.up1(c1 * h + t1, d2)
        h = self.up2(c2 * h + t2, d1)
        return self.out(torch.cat([h, x], 1))[..., :height, :width]


class ResidualConvBlock(nn.Module):
    """Two convolutions, each with batch norm and GELU; with ``is_res`` a residual block.

    The skip connection starts at the input, or after the first convolution if the number of channels changes. Dividing
    by 1.414 keeps the variance of a sum of two equal variances.
    """

    def __init__(self, in_channels: int, out_channels: int, is_res: bool = False) -> None:
        super().__init__()
        self.is_res = is_res
        self.same_channels = in_channels == out_channels
        self.conv1, self.conv2 = (
            nn.Sequential(nn.Conv2d(inputs, out_channels, 3, 1, 1), nn.BatchNorm2d(out_channels), nn.GELU())
            for inputs in (in_channels, out_channels)
        )

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Features with ``out_channels`` channels."""
        x1 = self.conv1(x)
        x2 = self.conv2(x1)
        return ((x if self.same_channels else x1) + x2) / 1.414 if self.is_res else x2


class UnetDown(nn.Module):
    """A level on the way down: two convolutions, then max pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(ResidualConvBlock(in_channels, out_channels), nn.MaxPool2d(2))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Features at half the size."""
        return self.model(x)


class UnetUp(nn.Module):
    """A level on the way up: concatenates the skip connection, upsamples by two, then convolves."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(in_channels, out_channels, 2, 2),
            ResidualConvBlock(out_channels, out_channels),
            ResidualConvBlock(out_channels, out_channels),
        )

    def forward(self, x: Float[Tensor, "b i h w"], skip: Float[Tensor, "b j h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Features at twice the size."""
        return self.model(torch.cat([x, skip], 1))


class EmbedFC(nn.Module):
    """Two linear layers that embed the time or the label; each feature has one value for all pixels."""

    def __init__(self, input_dim: int, emb_dim: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(input_dim, emb_dim), nn.GELU(), nn.Linear(emb_dim, emb_dim))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b e 1 1"]:
        """One vector for each image."""
        return self.model(x)[:, :, None, None]
