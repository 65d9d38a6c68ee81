"""An independent classifier: which share of generated digits does it read as their label?

    python benchmarks/judge.py samples.npz [...] [--weights runs/judge.safetensors]

Reads files that ``pocketdiff sample --out samples.npz`` wrote, or folders with a sub-folder for each digit. The first
call trains a convolutional network on MNIST's training images with random rotation, scale, shear and shift (seven
minutes on two cores), checks that it classifies more than 99.4% of the 10,000 test images correctly, and keeps it. It
shares nothing with the package but the data.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketdiff.data import Images, load_data, load_images, to_data_units

NEEDED = 0.994
EPOCHS, BATCH = 6, 128


def build() -> nn.Sequential:
    """Six 3 x 3 convolutions, 32 to 128 channels, at 28, 14 and 7 pixels."""

    def convolution(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    layers = [convolution(1, 32), convolution(32, 32), nn.MaxPool2d(2), convolution(32, 64), convolution(64, 64)]
    layers += [nn.MaxPool2d(2), convolution(64, 128), convolution(128, 128), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 10)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def jittered(x: Tensor) -> Tensor:
    """Rotates each image by up to 10 degrees, scales it by up to a tenth, shears it, and shifts it by two pixels."""
    n = len(x)
    angle, scale, shear = (torch.rand(n) - 0.5) * 0.35, 1 + (torch.rand(n) - 0.5) * 0.2, (torch.rand(n) - 0.5) * 0.3
    move = (torch.rand(n, 2) - 0.5) * 0.28
    top = torch.stack([scale * angle.cos(), shear - scale * angle.sin(), move[:, 0]], 1)
    low = torch.stack([scale * angle.sin(), scale * angle.cos(), move[:, 1]], 1)
    grid = F.affine_grid(torch.stack([top, low], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # Background comes in from outside.


@torch.no_grad()
def read(net: nn.Module, pixels: Tensor) -> Tensor:
    """The digit in each uint8 image (n, 1, 28, 28)."""
    net.eval()
    return torch.cat([net(to_data_units(chunk)).argmax(1) for chunk in pixels.split(500)])


def accuracy(net: nn.Module, images: Images) -> float:
    """The share of the images that are read as their label."""
    return (read(net, images.pixels) == images.labels).double().mean().item()


def train() -> nn.Sequential:
    """A new judge."""
    torch.manual_seed(0)
    data = load_data("mnist")
    net = build()
    steps = len(data.train) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * steps)
    began = time.perf_counter()
    for epoch in range(EPOCHS):
        net.train()
        for indices in torch.randperm(len(data.train))[: steps * BATCH].split(BATCH):
            x, label = data.train.batch(indices)
            x = jittered(x).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            F.cross_entropy(net(x), label, label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
        print(f"judge: epoch {epoch + 1} of {EPOCHS}, {time.perf_counter() - began:.0f} s", flush=True)
    return net


def main() -> None:
    """Trains the classifier if there is none, and reads the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="*", help="an .npz file with images and labels, or a folder of images")
    parser.add_argument("--weights", type=Path, default=Path("runs/judge.safetensors"), help="where the classifier is")
    flags = parser.parse_args()
    net, data = build(), load_data("mnist")
    if flags.weights.exists():
        net.load_state_dict(load_file(flags.weights))
    else:
        net = train()
        flags.weights.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, flags.weights)
    share = accuracy(net, data.test)
    print(f"the judge classifies {share:.2%} of the 10,000 test images correctly")
    if share <= NEEDED:
        raise SystemExit(f"it must be more than {NEEDED:.1%}; remove {flags.weights} to train another")
    for name in flags.samples:
        pixels, labels = load_images(name, data.info)
        if labels is None:
            raise SystemExit(f"{name}: has no labels; sample it with pocketdiff sample --out FILE.npz")
        print(f"{name}: {accuracy(net, Images(pixels, labels)):.2%} of {len(labels):,} images are read as their label")


if __name__ == "__main__":
    main()
