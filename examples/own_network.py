"""An own network, schedule and loss weighting in one file outside the package.

From Python: train in a run's folder, evaluate, save, load, and draw again.

    python examples/own_network.py [--images 60000] [--out runs/mixer]

From the command line, which imports this file first:

    pocketdiff train --plugin examples/own_network.py --net.kind mixer --schedule.kind laplace \
        --loss-weighting sigmoid --images 60000 --out runs/mixer
    pocketdiff sample runs/mixer --plugin examples/own_network.py --labels 0-9 --out digits.png

Both train the same model. Its file records that it needs this plug-in.
"""

import argparse
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import pocketdiff as pd
from pocketdiff.denoiser import Scaling
from pocketdiff.frozen import Frozen
from pocketdiff.nets.unet import Embedding, zeroed
from pocketdiff.schedule import Range


class MixerConfig(Frozen):
    """An MLP-Mixer (Tolstikhin et al. 2021): layers that mix all patches, then all channels."""

    kind: Literal["mixer"] = "mixer"
    patch: int = Field(4, ge=1)
    """Side of a patch in pixels."""
    width: int = Field(128, ge=8)
    """Channels of a patch."""
    depth: int = Field(4, ge=1)
    """Mixer blocks."""

    def build(self, shape: tuple[int, int, int], num_classes: int) -> "Mixer":
        """A new network for images of this shape (c, h, w)."""
        return Mixer(shape, num_classes, self.patch, self.width, self.depth)


class Mixer(nn.Module):
    """Maps a noisy image, its noise input and its label to a target of the image's shape."""

    adam_only = ("embedding", "first", "last")  # Muon trains all other weights of two or more dimensions.

    def __init__(self, shape: tuple[int, int, int], num_classes: int, patch: int, width: int, depth: int) -> None:
        super().__init__()
        channels, height, width_of_image = shape
        self.grid = -(-height // patch), -(-width_of_image // patch)
        self.patch = patch
        self.embedding = Embedding(num_classes, width)
        self.first = nn.Linear(channels * patch**2, width)
        self.blocks = nn.ModuleList(Block(self.grid[0] * self.grid[1], width) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), zeroed(nn.Linear(width, channels * patch**2)))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        """The predicted target for scaled images (b, c, h, w)."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.patch, 0, -height % self.patch), mode="replicate")
        h = self.first(F.pixel_unshuffle(padded, self.patch).flatten(2).mT)
        emb = self.embedding(noise, label)
        for block in self.blocks:
            h = block(h, emb)
        h = self.last(h).mT.unflatten(2, self.grid)
        return F.pixel_shuffle(h, self.patch)[..., :height, :width]


class Block(nn.Module):
    """Mixes the patches, then the channels; noise level and label scale and shift the input of both."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zeroed(nn.Linear(width, 4 * width))
        self.patches = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Features (b, patches, width) of the same shape."""
        scale, shift, scale2, shift2 = self.modulate(emb)[:, None].chunk(4, 2)
        h = h + self.patches((self.norm(h) * (1 + scale) + shift).mT).mT
        return h + self.channels(self.norm(h) * (1 + scale2) + shift2)


class Laplace(Range):
    """``log sigma`` has a Laplace distribution for uniform ``u``, clipped to the range. Source: Hang et al. 2024."""

    kind: Literal["laplace"] = "laplace"
    mean: float = 0.0
    """Mean of log sigma."""
    spread: float = Field(0.8, gt=0)
    """Mean distance of log sigma from its mean."""

    def __call__(self, u: Tensor) -> Tensor:
        """Maps coordinates in [0, 1] to noise levels."""
        away = u.double() - 0.5
        log_sigma = self.mean - self.spread * away.sign() * torch.log1p(-2 * away.abs())
        return log_sigma.exp().clamp(self.sigma_min, self.sigma_max).to(u.dtype)


def sigmoid(sigma: Tensor, scaling: Scaling, sigma_data: float) -> Tensor:
    """The squared error of the predicted noise has the weight ``1 / (1 + SNR)``.

    Source: Kingma and Gao 2023 (sigmoid weighting, bias 0).
    """
    snr = (sigma_data / sigma) ** 2
    return (scaling.out / sigma) ** 2 / (1 + snr)


pd.NETS["mixer"] = MixerConfig
pd.SCHEDULES["laplace"] = Laplace
pd.WEIGHTINGS["sigmoid"] = sigmoid


def main() -> None:
    """Trains, evaluates, saves, loads and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000, help="training images, repeats counted")
    parser.add_argument("--n", type=int, default=2000, help="images in the evaluation")
    parser.add_argument("--out", type=Path, default=Path("runs/mixer"), help="the run's folder")
    parser.add_argument("--data", default="mnist", help="data set: a name or a path")
    flags = parser.parse_args()

    config = pd.DiffusionConfig(images=flags.images, net=MixerConfig(), schedule=Laplace(), loss_weighting="sigmoid")
    data = pd.load_data(flags.data)
    run = pd.Run(config, data, flags.out)
    for report in run:
        if report.step % 100 == 0:
            print(f"{report.seen:,} images, loss {report.losses['loss']:.4f}")
    print(pd.evaluate(run.model, data, n=flags.n).table())

    run.model.save(flags.out / "copy.safetensors")
    model = pd.load(flags.out / "copy.safetensors")
    print(model)
    print("draws the same images:", torch.equal(model(range(10)), run.model(range(10))))


if __name__ == "__main__":
    main()
