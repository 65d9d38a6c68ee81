"""A whole class-conditional diffusion model: trains on MNIST for a minute or two, then draws the digits 0 to 9.

    python examples/minimal.py [--images 20000] [--out minimal.png]

A noisy image is ``x = x0 + sigma * eps``. Training shows a network noisy images and their labels; it learns to predict
the clean image ``x0``. Drawing starts from pure noise and moves to the prediction in a few steps.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor

import pocketdiff as pd
from pocketdiff import pictures
from pocketdiff.data import Images, to_uint8
from pocketdiff.nets.unet import UNet
from pocketdiff.optim import learning_rate, make_optimizers, take_step, update_ema

BATCH = 32
LEVELS = pd.LogNormal()  # Noise levels of training: log sigma has a normal distribution, as in EDM.


def train(denoiser: pd.Denoiser, data: Images, images: int) -> pd.Denoiser:
    """Trains on this number of images; returns the denoiser with averaged weights, which draws better."""
    average = copy.deepcopy(denoiser).requires_grad_(False)
    optimizers = make_optimizers(denoiser.net, muon_lr=0.015, adam_lr=3e-3)
    steps = max(1, images // BATCH)
    for step in range(steps):
        x0, label = data.batch(torch.randint(len(data), (BATCH,)))  # Images in [-1, 1], and their classes.
        eps = torch.randn_like(x0)
        sigma = LEVELS(torch.rand(BATCH))
        label = label.masked_fill(torch.rand(BATCH) < 0.1, denoiser.null)  # Guidance also needs "no label".

        denoiser.zero_grad()
        loss = denoiser.loss(x0, eps, sigma, label).mean()  # Squared error of the network's prediction.
        loss.backward()
        take_step(optimizers, learning_rate(step / steps, warmup=0.02))
        update_ema(average, denoiser, step + 1, power=17.0)
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}, loss {loss.item():.3f}")
    return average


def draw(denoiser: pd.Denoiser, label: Tensor, shape: tuple[int, int, int], steps: int, scale: float) -> Tensor:
    """Draws one image for each label, as uint8 (n, c, h, w); a scale above 1 makes the label count for more."""
    sigmas = pd.grid(pd.Karras(sigma_min=0.05), steps)  # From 80, pure noise, down to 0.
    x = sigmas[0] * torch.randn(len(label), *shape)
    denoise = pd.guide(denoiser, label, scale)  # (x, sigma) -> predicted x0
    for step in pd.dpmpp_2m(denoise, x, sigmas):
        x = step.x
    return to_uint8(x)


def main() -> None:
    """Trains, draws, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="training images, repeats counted")
    parser.add_argument("--out", type=Path, default=Path("minimal.png"), help="the picture")
    flags = parser.parse_args()

    torch.manual_seed(0)
    data = pd.load_data("mnist")
    shape, classes = (data.info.channels, data.info.height, data.info.width), len(data.info.classes)
    net = UNet(channels=shape[0], num_classes=classes, widths=(32, 64), blocks=2, embedding=128)
    # "flow": the network predicts eps - x0 of a rectified flow; "eps", "v" and "x0" work too.
    denoiser = pd.Denoiser(net, "flow", sigma_data=0.5, num_classes=classes, noise_input=LEVELS.noise_input)
    average = train(denoiser, data.train, flags.images)

    label = torch.arange(classes).repeat(4)
    images = draw(average, label, shape, steps=10, scale=2.4)
    flags.out.write_bytes(pictures.png(pictures.tile(images, classes, data.info.ink, zoom=2)))
    print(f"wrote {flags.out}")


if __name__ == "__main__":
    main()
