"""The score of a set of images: distances and shares, whole and by class, and beside them what real images score."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pocketdiff import rng
from pocketdiff.data import DataInfo, Dataset, Images
from pocketdiff.evaluate.classifiers import build, features, read, train_classifier, training_length
from pocketdiff.evaluate.distances import (
    Estimate,
    EvaluationError,
    frechet_estimate,
    kernel_estimate,
    mean_estimate,
    neighbours,
    share_estimate,
)
from pocketdiff.evaluate.memorization import Nearest, nearest_features
from pocketdiff.evaluate.reference import LEAST, Memory, Part, Reference, Track, part_of, tracked, untracked
from pocketdiff.generate import ImageModel

K = 5
"""Neighbourhood size of precision, recall, density and coverage, as in Naeem et al. 2020."""
_CLASS_RESAMPLES = 100
"""Half of the usual: a score has as many of these intervals as classes."""
METRICS = (
    "frechet_train", "frechet_test", "frechet_classes", "kernel_train", "precision", "recall", "density", "coverage",
    "accuracy", "memorized_share", "memorized_share_features",
)  # fmt: skip

Metrics = dict[str, Estimate | None]
"""A figure for each of `METRICS`; None where the images allow none."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Images to be scored, and the class that each should show, if that is known."""

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.pixels)


class ClassScore(NamedTuple):
    """The score of one class's images."""

    name: str
    images: int
    frechet_train: Estimate | None
    """To the class's training images; None where there are too few of either."""
    accuracy: Estimate
    read_as: dict[str, int]
    """How many of them are read as each class, the classes that none is read as left out."""


@dataclass(frozen=True)
class Score:
    """What `score` gives; a figure for each image stands in the order of the images."""

    metrics: Metrics
    classes: list[ClassScore]
    """Empty where no labels are known."""
    confusion: Int[Tensor, "k k"] | None
    """How many images of each class, a row, are read as each class, a column."""
    realism: Float[Tensor, " n"]
    """Of each image: how many times nearer it could be to a real image and yet be as far as that one's neighbours."""
    read: Int[Tensor, " n"]
    """The class that the reader sees in each image."""
    nearest: Nearest | None
    """Each image's nearest training image; None where memorization was not asked for."""


def score(sample: Sample, reference: Reference, seed: int = 0, track: Track = untracked) -> Score:
    """Scores images against a data set.

    The figures do not depend on the order of the images, which are brought into one of their own.

    Args:
        sample: At least `LEAST` images, of the data's shape.
        reference: What they are scored against. If it has a memory, each image's nearest training image is looked for,
            which takes longer than all the rest.
        seed: Of the bootstrap.
        track: Told of the progress.

    Raises:
        EvaluationError: If no sound score can be made: the images are too few, all alike, or of another shape.
    """
    check(sample, reference.data.info)
    order = _canonical(sample)
    pixels, labels = sample.pixels[order], None if sample.labels is None else sample.labels[order]
    n, nets = len(pixels), reference.classifiers
    fake = torch.cat(tracked(features(nets.features.net, pixels), "features", n, track))
    seen = torch.cat(tracked(read(nets.reader.net, pixels), "reading labels", n, track))
    real = reference.train_features[reference.train_part(n)]
    around = neighbours(real=real, fake=fake, k=K)
    metrics: Metrics = {
        **dict.fromkeys(METRICS),
        "frechet_train": frechet_estimate(real=reference.train, fake=fake, seed=seed),
        "frechet_test": None if reference.test is None else frechet_estimate(real=reference.test, fake=fake, seed=seed),
        "kernel_train": kernel_estimate(real=real, fake=fake),
        "precision": share_estimate(around.faithful),
        "recall": share_estimate(around.recalled),
        "density": mean_estimate(around.crowd),
        "coverage": share_estimate(around.covered),
    }
    classes, confusion, nearest = [], None, None
    if labels is not None:
        metrics["accuracy"] = share_estimate(seen == labels)
        k = len(reference.data.info.classes)
        confusion = torch.bincount(labels * k + seen, minlength=k * k).reshape(k, k)
        classes = [_class_score(index, fake, labels, seen, reference, seed) for index in labels.unique().tolist()]
        metrics["frechet_classes"] = _mean_of([row.frechet_train for row in classes])
    if (memory := reference.memory) is not None:
        nearest = Nearest.joined(tracked(memory.images.of(pixels), "nearest training images", n, track))
        metrics |= _memorized(memory, nearest, nearest_features(fake, reference.train_features))
    back = order.argsort()
    return Score(
        metrics, classes, confusion, around.realism[back], seen[back], None if nearest is None else nearest.at(back)
    )


def floor(reference: Reference, n: int, seed: int = 0, track: Track = untracked) -> Score | None:
    """What as many real test images score, or all if there are not so many: no model can be expected to do better.

    To the test split itself it is as many training images whose distance is given. None where there are fewer than
    `LEAST` test images.
    """
    if reference.test is None:
        return None
    part = reference.test_part(n)
    test = reference.data.test
    scored = score(Sample(test.pixels[part], test.labels[part]), replace(reference, memory=None), seed, track)
    if (memory := reference.memory) is not None:
        scored.metrics.update(_memorized(memory, memory.pixels.test.at(part), memory.features.test.at(part)))
    fake = reference.train_features[reference.train_part(n)]
    scored.metrics["frechet_test"] = frechet_estimate(real=reference.test, fake=fake, seed=seed)
    return scored


def controls(reference: Reference, n: int, seed: int = 0) -> dict[str, Sample]:
    """Images that must score worse than real ones, each made of as many test images.

    Noise: every pixel an independent draw. Blurred: a Gaussian of one pixel. Shuffled labels: the images as they are,
    with one another's labels, which only accuracy and the classes' distances can tell.
    """
    part = reference.test_part(n)
    pixels, labels = reference.data.test.pixels[part], reference.data.test.labels[part]
    drawn = rng.generator(seed, rng.Stream.CONTROL)
    noise = torch.from_numpy(drawn.integers(0, 256, tuple(pixels.shape), dtype=np.uint8))
    shuffled = labels[torch.from_numpy(drawn.permutation(len(labels)))]
    return {
        "noise": Sample(noise, labels),
        "blurred": Sample(_blurred(pixels), labels),
        "shuffled_labels": Sample(pixels, shuffled),
    }


def train_on_synthetic(sample: Sample, data: Dataset, seed: int = 0, track: Track = untracked) -> dict[str, Estimate]:
    """Trains a new reader on the images, and another on as many training images; both read the real test split.

    The classification accuracy score of Ravuri and Vinyals 2019, with the bar beside it.

    Returns:
        The share of the test split that each reads right, as ``cas`` and ``cas_real``.

    Raises:
        EvaluationError: If the images have no labels.
    """
    if sample.labels is None:
        raise EvaluationError("without labels no classifier can learn from the images; give images with labels")
    order = _canonical(sample)
    drawn = Images(sample.pixels[order], sample.labels[order])
    part = part_of(len(data.train), len(sample), Part.AS_MANY, seed)
    real = Images(data.train.pixels[part], data.train.labels[part])
    shares = {}
    for name, images in (("cas", drawn), ("cas_real", real)):
        net = build("reader", data.info)
        for seen in train_classifier(net, images, seed):
            track(f"training a reader for {name}", seen, training_length(len(images)))
        shares[name] = share_estimate(torch.cat(list(read(net, data.test.pixels))) == data.test.labels)
    return shares


def check(sample: Sample, info: DataInfo) -> None:
    """Sees that images can be scored.

    Raises:
        EvaluationError: If they are too few, all alike, of another shape, or a label is none of the classes.
    """
    shape, wanted = tuple(sample.pixels.shape[1:]), (info.channels, info.height, info.width)
    if shape != wanted:
        raise EvaluationError(
            f"the images are {_shape(shape)}, and those of the data {_shape(wanted)}; make them equal"
        )
    if len(sample) < LEAST:
        raise EvaluationError(f"{len(sample):,} images are too few: a sound score needs {LEAST} or more")
    if bool((sample.pixels == sample.pixels[0]).all()):
        raise EvaluationError(f"the {len(sample):,} images are all alike; there is no score of a constant set")
    if sample.labels is not None and not 0 <= int(sample.labels.min()) <= int(sample.labels.max()) < len(info.classes):
        raise EvaluationError(
            f"the labels are {int(sample.labels.min())} to {int(sample.labels.max())}, and the data's classes 0 to "
            f"{len(info.classes) - 1}; give class indices"
        )


def draw(model: ImageModel, reference: Reference, n: int, seed: int, track: Track = untracked) -> Sample:
    """Images of a model, each class as frequent as in the training split; those of two seeds have no noise in common.

    Args:
        model: Draws them. If it knows no labels, the images have none.
        reference: Its data.
        n: How many.
        seed: Below 2^31; image i is drawn from the seed ``seed * 2^32 + i``.
        track: Told of the progress.

    Raises:
        RequestError: If the sampling cannot be done.
        SamplingError: If the network gives values that are not finite.
    """
    labels = labels_like(reference.data.train.labels, n) if model.conditional else [model.null] * n
    chunks = model.chunks(labels, range(seed << 32, (seed << 32) + n))
    pixels = torch.cat(tracked(chunks, "drawing", n, track))
    return Sample(pixels, torch.tensor(labels) if model.conditional else None)


def some_of(sample: Sample, n: int, seed: int) -> Sample:
    """At most n of the images, chosen by the seed, whatever their order."""
    if len(sample) <= n:
        return sample
    some = _canonical(sample)[part_of(len(sample), n, Part.GIVEN, seed)].sort().values
    return Sample(sample.pixels[some], None if sample.labels is None else sample.labels[some])


def labels_like(labels: Int[Tensor, " t"], n: int) -> list[int]:
    """As many labels as asked for, each class as frequent among them as among ``labels``, in order."""
    return labels.sort().values[((torch.arange(n) + 0.5) * len(labels) / n).long()].tolist()


def _class_score(index: int, fake: Tensor, labels: Tensor, seen: Tensor, reference: Reference, seed: int) -> ClassScore:
    of_class, names = labels == index, reference.data.info.classes
    real, fake = reference.train_features[reference.data.train.labels == index], fake[of_class]
    try:
        distance = frechet_estimate(real=real, fake=fake, seed=seed, resamples=_CLASS_RESAMPLES)
    except EvaluationError:  # Of either there are too few, or all are alike.
        distance = None
    counts = torch.bincount(seen[of_class]).tolist()
    read_as = {names[other]: count for other, count in enumerate(counts) if count}
    return ClassScore(names[index], len(fake), distance, share_estimate(seen[of_class] == index), read_as)


def _mean_of(estimates: list[Estimate | None]) -> Estimate | None:
    """The mean of independent figures; None if one is missing."""
    known = [estimate for estimate in estimates if estimate is not None]
    if len(known) < len(estimates):
        return None
    values, lows, highs = (np.array(part) for part in zip(*known, strict=True))
    below, above = (float(np.sqrt(np.square(ends - values).sum()) / len(known)) for ends in (lows, highs))
    return Estimate(float(values.mean()), float(values.mean()) - below, float(values.mean()) + above)


def _memorized(memory: Memory, pixels: Nearest, features: Nearest) -> Metrics:
    return {
        "memorized_share": share_estimate(memory.pixels.near(pixels)),
        "memorized_share_features": share_estimate(memory.features.near(features)),
    }


def _canonical(sample: Sample) -> Int[Tensor, " n"]:
    """An order of the images that depends only on what they are."""
    n = len(sample)
    labels = np.zeros(n, np.int64) if sample.labels is None else sample.labels.numpy()
    columns = [labels.astype(">i8").view(np.uint8).reshape(n, 8), sample.pixels.flatten(1).numpy()]
    rows = np.ascontiguousarray(np.hstack(columns))
    return torch.from_numpy(rows.view(f"V{rows.shape[1]}")[:, 0].argsort(kind="stable"))


def _blurred(pixels: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    taps = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    flat = F.pad(pixels.flatten(0, 1)[:, None].float(), (3, 3, 3, 3), mode="replicate")
    return F.conv2d(flat, kernel).round().to(torch.uint8).reshape(pixels.shape)


def _shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height} x {width} pixels {'in grey' if channels == 1 else f'of {channels} channels'}"
