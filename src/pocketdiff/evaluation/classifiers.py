"""The two classifiers behind every score: one gives features, the other, of another build, reads labels.

Both learn from the training split and know nothing of each other, so that nothing is both judge and feature. Those of
MNIST come with the package (`SHIPPED`); others are trained where they are needed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pocketdiff import rng
from pocketdiff.checkpoint import CheckpointError, fingerprint, read_tensors, write_tensors
from pocketdiff.data import DataInfo, Dataset, Images, to_data_units
from pocketdiff.optim import learning_rate, make_optimizers, take_step

NUM_FEATURES = 64
SHIPPED = Path(__file__).parent / "weights"
"""Where the classifiers that come with the package lie."""

_CHUNK = 500
_BATCH = 128
_PASSES = 8
"""How often training sees each image."""
_LEAST = 100_000
"""How many images it sees at least, repeats counted."""


class FeatureNet(nn.Module):
    """3 x 3 convolutions at a half and a quarter of the image's size; its 64 features are means over the whole image.

    Half of the features are shallow, and see what strokes look like wherever they are; the other half are deep, and see
    what they make up. Each has a mean near 0 and a variance near 1 over the images it learned from: all count alike.
    """

    edges = ("stem", "head")

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        half = NUM_FEATURES // 2
        self.stem = _convolution(4 * channels, half, 3)
        self.shallow = nn.Sequential(_convolution(half, half, 3), _convolution(half, half, 3))
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), _convolution(half, 64, 3), _convolution(64, 64, 3), _convolution(64, 64, 3),
            _convolution(64, half, 3),
        )  # fmt: skip
        self.norm = nn.BatchNorm1d(NUM_FEATURES, affine=False)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features of images in data units."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        shallow = self.shallow(self.stem(F.pixel_unshuffle(x, 2)))
        return self.norm(torch.cat([shallow.mean((2, 3)), self.deep(shallow).mean((2, 3))], 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The logits of the classes."""
        return self.head(self.features(x))


class Reader(nn.Module):
    """5 x 5 convolutions on whole pixels, then a hidden layer that knows positions, after LeCun et al. 1998."""

    edges = ("first", "head")

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_convolution(channels, 32, 5), nn.MaxPool2d(2))
        self.second = nn.Sequential(_convolution(32, 64, 5), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(7), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(64 * 7 * 7, 96, bias=False), nn.BatchNorm1d(96), nn.ReLU())
        self.head = nn.Linear(96, num_classes)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The hidden layer of images in data units."""
        return self.hidden(self.second(self.first(x)))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The logits of the classes."""
        return self.head(self.features(x))


KINDS: dict[str, type[FeatureNet | Reader]] = {"features": FeatureNet, "reader": Reader}


class Classifier(NamedTuple):
    """A trained classifier, and what a score must say of it."""

    kind: str
    net: FeatureNet | Reader
    accuracy: float
    """Share of the test split that it reads right."""
    sha256: str
    """Of its weights and of all that is said of them."""

    @property
    def name(self) -> str:
        """Its kind, and the first digits of its hash."""
        return f"{self.kind}-{self.sha256[:8]}"


class Classifiers(NamedTuple):
    """Both classifiers of a data set."""

    features: Classifier
    reader: Classifier


def build(kind: str, info: DataInfo) -> FeatureNet | Reader:
    """A new classifier, its first weights decided by its kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(list(KINDS).index(kind))
        return KINDS[kind](info.channels, len(info.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def training_length(n: int) -> int:
    """How many images a classifier's training sees, repeats counted, of ``n`` that there are."""
    return max(_PASSES * n, _LEAST)


def train_classifier(net: nn.Module, data: Images, seed: int) -> Iterator[int]:
    """Trains a classifier, in place, on images that are turned, scaled and moved a little; it ends ready to read.

    Yields:
        How many images are seen, after each step.
    """
    n, length = len(data), training_length(len(data))
    optimizers = make_optimizers(net, 0.02, 3e-3)
    net.train()
    for step, seen in enumerate(range(0, length, _BATCH)):
        ahead = range(seen, min(seen + _BATCH, length))
        x, label = data.batch(rng.visits(seed, ahead, n))
        net.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(_jittered(x, seed, step)), label)
        loss.backward()
        take_step(optimizers, learning_rate(seen / length, 0.05))
        yield ahead[-1] + 1
    net.eval()


@torch.no_grad()
def features(net: FeatureNet | Reader, pixels: UInt8[Tensor, "n c h w"]) -> Iterator[Float[Tensor, "m d"]]:
    """The features of images, some at a time."""
    for chunk in pixels.split(_CHUNK):
        yield net.features(_filled(chunk))[: len(chunk)]


@torch.no_grad()
def read(net: nn.Module, pixels: UInt8[Tensor, "n c h w"]) -> Iterator[Int[Tensor, " m"]]:
    """The class that a classifier sees in each image, some at a time."""
    for chunk in pixels.split(_CHUNK):
        yield net(_filled(chunk))[: len(chunk)].argmax(1)


def finished(kind: str, net: FeatureNet | Reader, data: Dataset) -> Classifier:
    """A classifier whose training has ended, with its accuracy and its hash."""
    share = float((torch.cat(list(read(net, data.test.pixels))) == data.test.labels).double().mean())
    about = _about(kind, share, data.info)
    return Classifier(kind, net.eval().requires_grad_(False), share, fingerprint(net.state_dict(), about))


def save_classifier(folder: Path, classifier: Classifier, info: DataInfo) -> Path:
    """Writes a trained classifier under the name of its data.

    Raises:
        OSError: If it cannot be written.
    """
    path = _place(folder, classifier.kind, info)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(path, classifier.net.state_dict(), _about(classifier.kind, classifier.accuracy, info))
    return path


def find_classifier(kind: str, info: DataInfo, folders: Sequence[Path]) -> Classifier | None:
    """The classifier of a kind for a data set, from the first folder that has it whole; None if none has."""
    for folder in folders:
        try:
            tensors, about = read_tensors(_place(folder, kind, info))
            share = float(about["accuracy"])
            if about != _about(kind, share, info):
                continue
            net = build(kind, info)
            net.load_state_dict(tensors)
        except (CheckpointError, RuntimeError, KeyError, ValueError, TypeError, OverflowError):
            continue  # Not there, or damaged: the next one, or a new one.
        return Classifier(kind, net.eval().requires_grad_(False), share, fingerprint(tensors, about))
    return None


def _about(kind: str, accuracy: float, info: DataInfo) -> dict[str, object]:
    return {"kind": kind, "accuracy": accuracy, "data": info.sha256}


def _convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _jittered(x: Float[Tensor, "n c h w"], seed: int, step: int) -> Float[Tensor, "n c h w"]:
    """Each image turned by up to 0.15 radians, scaled by up to a tenth, sheared, and moved by up to two pixels."""
    draws = rng.generator(seed, rng.Stream.JITTER, step).uniform(-1, 1, (5, len(x)))
    turn, scale, shear, down, right = torch.from_numpy(draws).to(x)
    angle, scale, shear = 0.15 * turn, 1 + 0.1 * scale, 0.15 * shear
    down, right = 4 / x.shape[2] * down, 4 / x.shape[3] * right
    upper = torch.stack([scale * angle.cos(), shear - scale * angle.sin(), right], 1)
    lower = torch.stack([scale * angle.sin(), scale * angle.cos(), down], 1)
    grid = F.affine_grid(torch.stack([upper, lower], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _filled(pixels: UInt8[Tensor, "m c h w"]) -> Float[Tensor, "n c h w"]:
    """A chunk in data units, filled up to a whole one: a kernel may round by the size of its batch."""
    blank = torch.zeros(_CHUNK - len(pixels), *pixels.shape[1:], dtype=torch.uint8, device=pixels.device)
    return to_data_units(torch.cat([pixels, blank])).contiguous(memory_format=torch.channels_last)


def _place(folder: Path, kind: str, info: DataInfo) -> Path:
    return folder / f"{kind}-of-{str(info.sha256)[:16]}.safetensors"
