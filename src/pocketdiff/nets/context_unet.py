"""The original experiment's network: DDPM-MNIST's ContextUnet, weight for weight.

A U-Net of two levels and a bottleneck of one pixel for every 28 x 28 of the image. The label scales and the noise level
shifts what comes up from below. The modules' names are the script's, and with them the keys of its state dict.
docs/ddpm.md walks through it block by block.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from pocketdiff.frozen import Frozen

SIDE = 28
"""The image's side that the network is made for: two halvings leave 7 pixels, which the bottleneck makes one."""


class ContextUnetConfig(Frozen):
    """The network of the original experiment."""

    kind: Literal["context_unet"] = "context_unet"
    n_feat: int = Field(128, ge=8, le=1024, multiple_of=8)
    """Channels at the image's full size, a multiple of 8; there are twice as many below."""

    def build(self, channels: int, num_classes: int) -> "ContextUnet":
        """The network, newly initialised."""
        return ContextUnet(channels, self.n_feat, num_classes)


class ContextUnet(nn.Module):
    """Maps a noisy image, its time t / T and its label to the noise in it.

    Takes any size: images are padded inside to multiples of 28, and the output is cut back.

    Args:
        in_channels: Of the image.
        n_feat: Channels at full size.
        n_classes: Labels are 0 to n_classes, the last one the null label.
    """

    edges = ("init_conv", "timeembed1", "timeembed2", "contextembed1", "contextembed2", "out")
    """Modules at input and output, which Muon leaves to Adam."""

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
        # Times -1 where the label is kept: the script turns its mask round, and its weights are used to that.
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
    """Two convolutions, each with batch norm and GELU; with ``is_res`` around the input, or around the first of them
    where the number of channels changes. The division by 1.414 keeps a sum of two equal variances at one of them.
    """

    def __init__(self, in_channels: int, out_channels: int, is_res: bool = False) -> None:
        super().__init__()
        self.is_res = is_res
        self.same_channels = in_channels == out_channels
        self.conv1 = self._layer(in_channels, out_channels)
        self.conv2 = self._layer(out_channels, out_channels)

    @staticmethod
    def _layer(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.GELU())

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Features of ``out_channels`` channels."""
        x1 = self.conv1(x)
        x2 = self.conv2(x1)
        if not self.is_res:
            return x2
        return ((x if self.same_channels else x1) + x2) / 1.414


class UnetDown(nn.Module):
    """A level on the way down: convolutions, then the largest of each 2 x 2 pixels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(ResidualConvBlock(in_channels, out_channels), nn.MaxPool2d(2))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Features at half the size."""
        return self.model(x)


class UnetUp(nn.Module):
    """A level on the way up: features from below, beside those of the same size on the way down, at twice the size."""

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
    """Two linear layers that make a vector of features, one value for all pixels, from the time or the label."""

    def __init__(self, input_dim: int, emb_dim: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(input_dim, emb_dim), nn.GELU(), nn.Linear(emb_dim, emb_dim))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b e 1 1"]:
        """One vector an image."""
        return self.model(x)[:, :, None, None]
