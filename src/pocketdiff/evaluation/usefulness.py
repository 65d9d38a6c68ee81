"""Does generated data help a classifier? ``pocketdiff evaluate --augment``.

A reader is trained on real images alone, on real images shifted and rotated at random, and on real plus generated
images, with few real images per class and with all, and tested on the real test split.
"""

import logging
import statistics

import torch
from jaxtyping import Int
from torch import Tensor

from pocketdiff.data import Dataset, Images
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation.classifiers import build, duration, read, seconds_per_image, train_classifier
from pocketdiff.evaluation.distances import Estimate, share_estimate
from pocketdiff.evaluation.records import Metrics, Usefulness, UsefulnessRow, metered
from pocketdiff.evaluation.reference import Choice, choose
from pocketdiff.evaluation.sample import Sample
from pocketdiff.progress import Progress, silent

log = logging.getLogger(__name__)
SIZES = (10, 100)
"""Real images per class of the first rows; the last row has all images."""
REPEATS = 3
"""Subsets of the real images for each of the first rows."""
_WAYS = ("real", "jittered", "generated")
_PASSES, _MIN_LENGTH = 4, 40_000
"""Length of a training: passes over real and generated images together, and the least number of images."""


def usefulness(sample: Sample, data: Dataset, seed: int = 0, progress: Progress = silent) -> Usefulness:
    """Trains readers with and without the generated images, and tests them on the real test split.

    All readers of a row learn for the same number of images, repeats counted. A size that a class lacks has no row. The
    order of the images does not matter. Raises EvaluationError if they have no labels.
    """
    if sample.labels is None:
        raise EvaluationError("without labels no classifier can learn from the images; use images with labels")
    order, train, test = sample.canonical_order(), data.train, data.test
    drawn = Images(sample.pixels[order], sample.labels[order])
    rows, done, total = [], 0, _work(data, len(drawn))
    for size in _sizes(data):
        repeats, length = range(1 if size is None else REPEATS), _length(data, size, len(drawn))
        shares: dict[str, list[Estimate]] = {way: [] for way in _WAYS}
        for repeat in repeats:
            chosen = _subset(train.labels, size, seed, repeat)
            real = Images(train.pixels[chosen], train.labels[chosen])
            both = Images(torch.cat([real.pixels, drawn.pixels]), torch.cat([real.labels, drawn.labels]))
            for way in _WAYS:
                net, part = build("reader", data.info), both if way == "generated" else real
                for seen, _ in train_classifier(net, part, repeat, length=length, jitter=way == "jittered"):
                    progress("does generated data help a classifier?", done + seen, total)
                done += length
                shares[way].append(share_estimate(torch.cat(list(read(net, test.pixels))) == test.labels))
        metrics: Metrics = {way: _covering(found) for way, found in shares.items()}
        rows.append(UsefulnessRow(**metered(metrics), per_class=size, images=len(real), subsets=len(repeats)))
    left_out = tuple(size for size in SIZES if size > int(train.labels.bincount().min()))
    return Usefulness(rows=rows, generated=len(drawn), left_out=left_out)


def announce(data: Dataset, n: int) -> None:
    """Measures the speed of training, and logs how long `usefulness` of n images will take."""
    trainings = sum(1 if size is None else REPEATS for size in _sizes(data)) * len(_WAYS)
    seconds = _work(data, n) * seconds_per_image("reader", data)
    log.info("does generated data help? training %d classifiers will take about %s", trainings, duration(seconds))


def _sizes(data: Dataset) -> list[int | None]:
    """The real images per class of each row; None: all images."""
    few = int(data.train.labels.bincount().min())
    return [size for size in SIZES if size <= few and size * len(data.info.classes) < len(data.train)] + [None]


def _subset(labels: Int[Tensor, " n"], size: int | None, seed: int, repeat: int) -> Int[Tensor, " m"]:
    """Indices of ``size`` images of each class, or of all images."""
    if size is None:
        return torch.arange(len(labels))
    classes = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    return torch.cat([part[choose(len(part), size, Choice.FEW, seed + (repeat << 32))] for part in classes])


def _length(data: Dataset, size: int | None, n: int) -> int:
    real = len(data.train) if size is None else size * len(data.info.classes)
    return max(_PASSES * (real + n), _MIN_LENGTH)


def _work(data: Dataset, n: int) -> int:
    """All images that the trainings will see."""
    counts = {size: len(_WAYS) * (1 if size is None else REPEATS) for size in _sizes(data)}
    return sum(count * _length(data, size, n) for size, count in counts.items())


def _covering(estimates: list[Estimate]) -> Estimate:
    """The mean, with an interval that covers the intervals of all."""
    values, lows, highs = zip(*estimates, strict=True)
    return Estimate(statistics.mean(values), min(lows), max(highs))
