"""The two classifiers behind every score: one gives features; the other, with another architecture, reads labels.

They are trained separately on the training split, so no network is both judge and feature extractor. The package ships
those of MNIST (`SHIPPED`), whose training had a fixed length; others are trained until they stop improving, when they
are first needed.
"""

import logging
import time
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
from pocketdiff.optim import make_optimizers, rise, take_step
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
"""The shortest planned training, in images, repeats counted."""
_WARMUP = 0.05
"""The share of the planned length in which the learning rate rises."""
_HELD = 2000
"""The most training images that are held out to detect a plateau; at most a tenth of all."""
_MEASURED = 1.0
"""Seconds of training that measure its speed."""
_CHECKS, _PATIENCE = 40, 6
"""Checks in the planned length, and how many of them without a better accuracy make a plateau."""


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
    """The planned length of a classifier's training on ``n`` images, in images, repeats counted."""
    return max(_EPOCHS * n, _MIN_LENGTH)


def train_classifier(
    net: nn.Module, data: Images, seed: int, *, length: int | None = None, jitter: bool = True, plateau: bool = False
) -> Iterator[tuple[int, int]]:
    """Trains a classifier in place; yields the images seen and the length after each step, and ends in eval mode.

    The learning rate rises, then falls linearly to 0 until the end. With ``plateau`` it is constant until the accuracy
    on a tenth of the images, held out until then, stops improving; then it falls in a last third, on all images.

    Args:
        net: A network with logits as output.
        data: The images to learn from.
        seed: Decides the order, the jitter and the images held out.
        length: The length, or with ``plateau`` the greatest; by default `training_length`.
        jitter: Whether the images are shifted, rotated, scaled and sheared at random.
        plateau: Whether training may end early.
    """
    n, planned = len(data), length or training_length(len(data))
    order = rng.permutation(seed, rng.Stream.HELD, 0, n)
    held, kept = order.split([count := min(_HELD, max(1, n // 10)), n - count])
    fall, end, every = planned if plateau else 0, planned, max(1, planned // _CHECKS)
    best, stale, seen = -1.0, 0, 0
    optimizers = make_optimizers(net, 0.02, 3e-3)
    net.train()
    while seen < end:
        ahead = range(seen, min(seen + _BATCH, end))
        waiting = seen < fall
        chosen = kept[rng.visit_order(seed, ahead, len(kept))] if waiting else rng.visit_order(seed, ahead, n)
        x, label = data.batch(chosen)
        net.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(_jittered(x, seed, seen // _BATCH) if jitter else x), label)
        loss.backward()
        warm = rise(seen / planned, _WARMUP)
        take_step(optimizers, warm if waiting else warm * (1 - (seen - fall) / (end - fall)))
        before, seen = seen, ahead[-1] + 1
        if waiting and seen // every > before // every:
            accuracy = _accuracy(net.eval(), data.pixels[held], data.labels[held])
            net.train()
            best, stale = (accuracy, 0) if accuracy > best else (best, stale + 1)
            if stale == _PATIENCE or 3 * seen >= 2 * planned:
                fall, end = seen, min(planned, 3 * seen // 2 // _BATCH * _BATCH)
        yield seen, end
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
    share = _accuracy(net, data.test.pixels, data.test.labels)
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


def train_and_test(
    data: Dataset, kinds: Sequence[str] = tuple(KINDS), progress: Progress = silent
) -> Iterator[Classifier]:
    """Yields new classifiers, trained on a data set until they stop improving, and tested on its test split.

    It first measures the speed of each, and logs how long the training of all takes at most.
    """
    planned = training_length(len(data.train))
    seconds = planned * sum(seconds_per_image(kind, data) for kind in kinds)
    what, before = "training both classifiers" if len(kinds) > 1 else f"training the {kinds[0]} classifier", 0
    log.info("%s of these data takes at most about %s, once for all evaluations", what, duration(seconds))
    for left, kind in zip(range(len(kinds))[::-1], kinds, strict=True):
        net = build(kind, data.info)
        for seen, length in train_classifier(net, data.train, list(KINDS).index(kind), plateau=True):
            progress(what, before + seen, before + length + left * planned)
        before += seen
        classifier = finished(kind, net, data)
        log.info("%s classifies %.2f%% of the test images correctly", classifier.name, 100 * classifier.accuracy)
        yield classifier


def seconds_per_image(kind: str, data: Dataset) -> float:
    """The training time of an image, measured for about a second."""
    steps = train_classifier(build(kind, data.info), data.train, 0, length=2**31)
    first, _ = next(steps)  # The first step is slower.
    began = time.perf_counter()
    while True:
        seen, _ = next(steps)
        if (elapsed := time.perf_counter() - began) >= _MEASURED:
            return elapsed / (seen - first)


def duration(seconds: float) -> str:
    """A time in words, such as "3 min"."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def find_or_train_classifiers(data: Dataset, cache: Path | None = None, progress: Progress = silent) -> Classifiers:
    """The two classifiers of a data set: those in the package or in a folder, or else newly trained ones.

    Example:
        >>> classifiers = find_or_train_classifiers(pd.load_data("mnist"))
        >>> classifiers.features.name, classifiers.reader.accuracy
        ('features-7852666c', 0.996)

    New ones are saved in the folder ``cache``; to train them takes minutes. Raises EvaluationError if the data set has
    fewer than `MIN_IMAGES` training images.
    """
    if (n := len(data.train)) < MIN_IMAGES:
        raise EvaluationError(f"the data have {n:,} training images, but a score needs {MIN_IMAGES} or more; add some")
    folders = [SHIPPED] if cache is None else [SHIPPED, cache]
    found = {kind: known for kind in KINDS if (known := find_classifier(kind, data.info, folders))}
    if missing := [kind for kind in KINDS if kind not in found]:
        for classifier in train_and_test(data, missing, progress):
            found[classifier.kind] = classifier
            try:
                if cache is not None:
                    save_classifier(cache, classifier, data.info)
            except OSError as error:
                log.warning(
                    "%s: the classifier cannot be saved there (%s); next time it is trained again", cache, error
                )
    return Classifiers(**found)


def _accuracy(net: nn.Module, pixels: UInt8[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> float:
    """The share of images that a network classifies correctly."""
    return float((torch.cat(list(read(net, pixels))) == labels).double().mean())


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
