"""The two classifiers behind every score: one gives features; the other, with another architecture, reads labels.

They are trained separately on the training split, so no network is both judge and feature extractor. The package ships
those of MNIST (`SHIPPED`); others are trained when they are first needed.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pocketdiff import rng
from pocketdiff.data import DataInfo, Dataset, Images, to_data_units
from pocketdiff.errors import CheckpointError, EvaluationError
from pocketdiff.optim import learning_rate, make_optimizers, take_step
from pocketdiff.progress import Progress, silent
from pocketdiff.tensors import fingerprint, read_tensors, write_tensors

log = logging.getLogger(__name__)
NUM_FEATURES = 64
MIN_IMAGES = 2 * NUM_FEATURES
"""The fewest images that can be scored, and the fewest training images of a data set."""
SHIPPED = Path(__file__).parent / "weights"
"""The folder of the classifiers in the package."""

_CHUNK = 500
_BATCH = 128
_EPOCHS = 8
_MIN_LENGTH = 100_000
"""The shortest training, in images, repeats counted."""


class FeatureNet(nn.Module):
    """3 x 3 convolutions at 1/2 and 1/4 of the image's size; the 64 features are global averages.

    Half of the features come from a shallow layer and describe strokes; the other half come from a deep layer and
    describe shapes. Each has mean near 0 and variance near 1 over the training images, so all have equal weight.
    """

    adam_only = ("stem", "head")

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
    """5 x 5 convolutions at full resolution, then a fully connected hidden layer, after LeCun et al. 1998."""

    adam_only = ("first", "head")

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
    """A trained classifier and the facts that a score reports about it."""

    kind: str
    net: FeatureNet | Reader
    accuracy: float
    """Share of the test split that it classifies correctly."""
    sha256: str
    """Of its weights, kind, accuracy and data."""

    @property
    def name(self) -> str:
        """Its kind and the first digits of its hash."""
        return f"{self.kind}-{self.sha256[:8]}"


class Classifiers(NamedTuple):
    """The two classifiers of a data set."""

    features: Classifier
    reader: Classifier


def build(kind: str, info: DataInfo) -> FeatureNet | Reader:
    """A new classifier; its kind decides the initial weights."""
    with rng.initial_weights(list(KINDS).index(kind)):
        return KINDS[kind](info.channels, len(info.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def training_length(n: int) -> int:
    """The length of a classifier's training on ``n`` images, in images, repeats counted."""
    return max(_EPOCHS * n, _MIN_LENGTH)


def train_classifier(net: nn.Module, data: Images, seed: int) -> Iterator[int]:
    """Trains a classifier in place, with jitter; yields the images seen after each step, and ends in eval mode."""
    n, length = len(data), training_length(len(data))
    optimizers = make_optimizers(net, 0.02, 3e-3)
    net.train()
    for step, seen in enumerate(range(0, length, _BATCH)):
        ahead = range(seen, min(seen + _BATCH, length))
        x, label = data.batch(rng.visit_order(seed, ahead, n))
        net.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(_jittered(x, seed, step)), label)
        loss.backward()
        take_step(optimizers, learning_rate(seen / length, 0.05))
        yield ahead[-1] + 1
    net.eval()


@torch.no_grad()
def features(net: FeatureNet | Reader, pixels: UInt8[Tensor, "n c h w"]) -> Iterator[Float[Tensor, "m d"]]:
    """Yields the features of images, batch by batch."""
    for chunk in pixels.split(_CHUNK):
        yield net.features(_padded(chunk))[: len(chunk)]


@torch.no_grad()
def read(net: nn.Module, pixels: UInt8[Tensor, "n c h w"]) -> Iterator[Int[Tensor, " m"]]:
    """Yields the class that a classifier reads in each image, batch by batch."""
    for chunk in pixels.split(_CHUNK):
        yield net(_padded(chunk))[: len(chunk)].argmax(1)


def finished(kind: str, net: FeatureNet | Reader, data: Dataset) -> Classifier:
    """A trained network as a classifier, with its accuracy and its hash."""
    share = float((torch.cat(list(read(net, data.test.pixels))) == data.test.labels).double().mean())
    about = _about(kind, share, data.info)
    return Classifier(kind, net.eval().requires_grad_(False), share, fingerprint(net.state_dict(), about))


def save_classifier(folder: Path, classifier: Classifier, info: DataInfo) -> Path:
    """Writes a trained classifier into a folder, under the hash of its data; returns the file."""
    path = _path(folder, classifier.kind, info)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(path, classifier.net.state_dict(), _about(classifier.kind, classifier.accuracy, info))
    return path


def find_classifier(kind: str, info: DataInfo, folders: Sequence[Path]) -> Classifier | None:
    """The classifier of a kind for a data set from the first folder with an intact file; None if there is none."""
    for folder in folders:
        try:
            tensors, about = read_tensors(_path(folder, kind, info))
            share = float(about["accuracy"])
            if about != _about(kind, share, info):
                continue
            net = build(kind, info)
            net.load_state_dict(tensors)
        except (CheckpointError, RuntimeError, KeyError, ValueError, TypeError, OverflowError):
            continue  # Missing or damaged.
        return Classifier(kind, net.eval().requires_grad_(False), share, fingerprint(tensors, about))
    return None


def train_and_test(kind: str, data: Dataset, progress: Progress = silent) -> Classifier:
    """A new classifier, trained on a data set and tested on its test split."""
    net, n = build(kind, data.info), training_length(len(data.train))
    for seen in train_classifier(net, data.train, list(KINDS).index(kind)):
        progress(f"training the {kind} classifier", seen, n)
    classifier = finished(kind, net, data)
    log.info("%s classifies %.2f%% of the test images correctly", classifier.name, 100 * classifier.accuracy)
    return classifier


def find_or_train_classifiers(data: Dataset, cache: Path | None = None, progress: Progress = silent) -> Classifiers:
    """The two classifiers of a data set: those in the package or in a folder, or else newly trained ones.

    Example:
        >>> classifiers = find_or_train_classifiers(pd.load_data("mnist"))
        >>> classifiers.features.name, classifiers.reader.accuracy
        ('features-7852666c', 0.996)

    New ones are saved in the folder ``cache``; to train one takes minutes. Raises EvaluationError if the data set has
    fewer than `MIN_IMAGES` training images.
    """
    if (n := len(data.train)) < MIN_IMAGES:
        raise EvaluationError(f"the data have {n:,} training images, but a score needs {MIN_IMAGES} or more; add some")
    folders = [SHIPPED] if cache is None else [SHIPPED, cache]

    def new(kind: str) -> Classifier:
        log.info("these data have no %s classifier yet; training one, once for all evaluations", kind)
        classifier = train_and_test(kind, data, progress)
        try:
            if cache is not None:
                save_classifier(cache, classifier, data.info)
        except OSError as error:
            log.warning("%s: the classifier cannot be saved there (%s); next time it is trained again", cache, error)
        return classifier

    return Classifiers(*(find_classifier(kind, data.info, folders) or new(kind) for kind in KINDS))


def _about(kind: str, accuracy: float, info: DataInfo) -> dict[str, object]:
    return {"kind": kind, "accuracy": accuracy, "data": info.sha256}


def _convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _jittered(x: Float[Tensor, "n c h w"], seed: int, step: int) -> Float[Tensor, "n c h w"]:
    """Rotates by up to 0.15 radians, scales by up to 10%, shears by up to 0.15, and shifts by up to two pixels."""
    draws = rng.generator(seed, rng.Stream.JITTER, step).uniform(-1, 1, (5, len(x)))
    turn, scale, shear, down, right = torch.from_numpy(draws).to(x)
    angle, scale, shear = 0.15 * turn, 1 + 0.1 * scale, 0.15 * shear
    down, right = 4 / x.shape[2] * down, 4 / x.shape[3] * right
    upper = torch.stack([scale * angle.cos(), shear - scale * angle.sin(), right], 1)
    lower = torch.stack([scale * angle.sin(), scale * angle.cos(), down], 1)
    grid = F.affine_grid(torch.stack([upper, lower], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _padded(pixels: UInt8[Tensor, "m c h w"]) -> Float[Tensor, "n c h w"]:
    """Images in data units, padded to a full batch: rounding may depend on the batch size."""
    blank = torch.zeros(_CHUNK - len(pixels), *pixels.shape[1:], dtype=torch.uint8, device=pixels.device)
    return to_data_units(torch.cat([pixels, blank])).contiguous(memory_format=torch.channels_last)


def _path(folder: Path, kind: str, info: DataInfo) -> Path:
    return folder / f"{kind}-of-{str(info.sha256)[:16]}.safetensors"
