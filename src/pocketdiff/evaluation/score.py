"""Scores: the table of metrics, and what they are computed from.

Add a metric before a score is made, and it appears in tables, pages, JSON, comparisons, sweeps and a run's log::

    def contrast(m: Measurements) -> Estimate:
        return mean_estimate(m.sample.pixels.double().flatten(1).std(1))

    METRICS["contrast"] = Metric("contrast", "mean standard deviation of an image's pixels", contrast)
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pocketdiff.data import Dataset, Images
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation import distances
from pocketdiff.evaluation.classifiers import build, features, read, train_classifier
from pocketdiff.evaluation.distances import Estimate, Neighbours, frechet_estimate, kernel_estimate, share_estimate
from pocketdiff.evaluation.memorization import Nearest, nearest_features
from pocketdiff.evaluation.records import ClassRecord, Metrics, metered
from pocketdiff.evaluation.reference import Choice, Reference, choose, gathered
from pocketdiff.evaluation.sample import Sample, check_sample
from pocketdiff.progress import Progress, silent
from pocketdiff.registry import Registry

K = 5
"""Neighbourhood size of precision, recall, density and coverage, as in Naeem et al. 2020."""
MAIN = ("frechet_train", "accuracy", "recall")
"""The metrics in the plots of a run and of a sweep."""
_CLASS_RESAMPLES = 100
"""Bootstrap resamples for one class: half as many as elsewhere."""


class Measurements:
    """What metrics are computed from. Each part is computed when a metric first needs it.

    The sample is kept in its canonical order, so the given order of the images does not matter.
    """

    def __init__(self, sample: Sample, reference: Reference, seed: int = 0, progress: Progress = silent) -> None:
        self.order = sample.canonical_order()
        self.sample, self.reference, self.seed, self.progress = sample.at(self.order), reference, seed, progress
        self.cas: Metrics = {}
        """The result of `train_on_synthetic`, if it was requested."""

    @cached_property
    def features(self) -> Float[Tensor, "n d"]:
        """Features of the images."""
        found = features(self.reference.classifiers.features.net, self.sample.pixels)
        return torch.cat(gathered(found, "features", len(self.sample), self.progress))

    @cached_property
    def read(self) -> Int[Tensor, " n"]:
        """The class that the reader assigns to each image."""
        found = read(self.reference.classifiers.reader.net, self.sample.pixels)
        return torch.cat(gathered(found, "reading labels", len(self.sample), self.progress))

    @cached_property
    def real(self) -> Float[Tensor, "m d"]:
        """Features of as many training images, or of all of them."""
        return self.reference.train_features[self.reference.train_part(len(self.sample))]

    @cached_property
    def compared_with_test(self) -> Float[Tensor, "m d"]:
        """Features to compare with the test split: the images', but training images' for the real baseline."""
        return self.features

    @cached_property
    def neighbours(self) -> Neighbours:
        """Neighbourhoods of the images and of as many training images."""
        return distances.neighbours(real=self.real, fake=self.features, k=K)

    @cached_property
    def classes(self) -> dict[str, ClassRecord]:
        """The score of each class; empty without labels."""
        names, labels = self.reference.data.info.classes, self.sample.labels
        return {} if labels is None else {names[index]: self._class(index) for index in labels.unique().tolist()}

    def _class(self, index: int) -> ClassRecord:
        of_class, names = self.sample.labels == index, self.reference.data.info.classes
        real, fake = self.reference.train_features[self.reference.data.train.labels == index], self.features[of_class]
        metrics: Metrics = {"frechet_train": None, "accuracy": share_estimate(self.read[of_class] == index)}
        with contextlib.suppress(EvaluationError):  # One of the sets may be too small or constant.
            distance = frechet_estimate(real=real, fake=fake, seed=self.seed, resamples=_CLASS_RESAMPLES)
            metrics["frechet_train"] = distance
        counts = torch.bincount(self.read[of_class]).tolist()
        read_as = {names[other]: count for other, count in enumerate(counts) if count}
        return ClassRecord(**metered(metrics), images=len(fake), read_as=read_as, real_baseline={})

    @cached_property
    def nearest(self) -> Nearest | None:
        """The nearest training image of each image; None if the reference has no memory."""
        if (memory := self.reference.memory) is None:
            return None
        found = memory.images.of(self.sample.pixels)
        return Nearest.joined(gathered(found, "nearest training images", len(self.sample), self.progress))

    @cached_property
    def nearest_features(self) -> Nearest:
        """The same by distance in feature space."""
        return nearest_features(self.features, self.reference.train_features)


@dataclass(frozen=True)
class Metric:
    """An entry of `METRICS`."""

    name: str
    meaning: str
    """What the value is, in words that can follow a colon."""
    compute: Callable[[Measurements], Estimate | None]
    """The value with its 95% confidence interval; None if the images do not allow it."""
    share: bool = False
    """Whether it is a share, shown in percent."""
    lower_is_better: bool | None = False
    """None if neither direction is better."""
    compared: bool = True
    """Whether comparisons show it."""
    swept: bool = True
    """Whether sweeps show it."""

    def text(self, value: float | None, sign: str = "") -> str:
        """A value as tables show it; with ``sign="+"`` always signed."""
        if value is None:
            return ""
        digits = ".2%" if self.share else ".0f" if abs(value) >= 1000 else ".3g" if abs(value) >= 0.01 else ".4f"
        return f"{value:{sign}{digits}}"

    def interval(self, estimate: Estimate | None, sign: str = "") -> str:
        """A confidence interval as tables show it."""
        return "" if estimate is None else f"{self.text(estimate.low, sign)} to {self.text(estimate.high, sign)}"

    def reading(self) -> str:
        """One sentence on how to read the value."""
        better = {True: "; lower is better", False: "; higher is better", None: ""}[self.lower_is_better]
        return f"{self.name[0].upper()}{self.name[1:]}: {self.meaning}{better}."


@dataclass(frozen=True)
class Score:
    """The score of a set of images. Tensors hold one entry per image, in the order of the images."""

    metrics: Metrics
    classes: dict[str, ClassRecord]
    realism: Float[Tensor, " n"]
    """Realism score (Kynkäänniemi et al. 2019, eq. 3): larger is more realistic."""
    read: Int[Tensor, " n"]
    nearest: Nearest | None


def score(
    sample: Sample, reference: Reference, seed: int = 0, *, cas: bool = False, progress: Progress = silent
) -> Score:
    """Scores images against a data set. The order of the images does not matter; the seed is that of the bootstrap.

    If the reference has a memory, the search for the nearest training images takes longer than everything else. With
    ``cas`` it also computes the classification accuracy score, which trains two classifiers. Raises EvaluationError as
    `check_sample`, or if a metric gives no valid estimate.
    """
    check_sample(sample, reference.data.info)
    m = Measurements(sample, reference, seed, progress)
    if cas:
        m.cas = train_on_synthetic(sample, reference.data, seed, progress)
    return _scored(m)


def real_baseline(reference: Reference, n: int, seed: int = 0, progress: Progress = silent) -> Score | None:
    """The score of n test images, or all if there are fewer: no model can be expected to do better.

    Its distance to the test split is that of as many training images. None if there are fewer than `MIN_IMAGES` test
    images.
    """
    if reference.test is None or (n, seed) in reference.baselines:
        return reference.baselines.get((n, seed))
    part, test = reference.test_part(n), reference.data.test
    m = Measurements(Sample(test.pixels[part], test.labels[part]), reference, seed, progress)
    m.compared_with_test = m.real
    if (memory := reference.memory) is not None:
        m.nearest = memory.pixels.test.at(part[m.order])
        m.nearest_features = memory.features.test.at(part[m.order])
    return reference.baselines.setdefault((n, seed), _scored(m))


def _scored(m: Measurements) -> Score:
    metrics: Metrics = {}
    for key, metric in all_metrics().items():
        estimate = metrics[key] = metric.compute(m)
        if estimate is not None and not -math.inf < estimate.low <= estimate.value <= estimate.high < math.inf:
            raise EvaluationError(
                f"the metric {key} gives {tuple(estimate)}, which is not a value in a finite interval"
            )
    back = m.order.argsort()
    return Score(metrics, m.classes, m.neighbours.realism[back], m.read[back], m.nearest and m.nearest.at(back))


def train_on_synthetic(sample: Sample, data: Dataset, seed: int = 0, progress: Progress = silent) -> Metrics:
    """Trains a reader on the images and another on as many training images; tests both on the real test split.

    Returns both test accuracies, as ``cas`` and ``cas_real``. Raises EvaluationError if the images have no labels.
    Source: the classification accuracy score of Ravuri and Vinyals 2019.
    """
    if sample.labels is None:
        raise EvaluationError("without labels no classifier can learn from the images; use images with labels")
    order, part = sample.canonical_order(), choose(len(data.train), len(sample), Choice.CAS, seed)
    drawn = Images(sample.pixels[order], sample.labels[order])
    real = Images(data.train.pixels[part], data.train.labels[part])
    shares: Metrics = {}
    for name, images in (("cas", drawn), ("cas_real", real)):
        net = build("reader", data.info)
        for seen, length in train_classifier(net, images, seed):
            progress(f"training a reader for {name}", seen, length)
        shares[name] = share_estimate(torch.cat(list(read(net, data.test.pixels))) == data.test.labels)
    return shares


def _mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The mean of independent estimates; None if one is missing or there are none."""
    known = [estimate for estimate in estimates if estimate is not None]
    if not known or len(known) < len(estimates):
        return None
    values, lows, highs = (np.array(part) for part in zip(*known, strict=True))
    below, above = (float(np.sqrt(np.square(ends - values).sum()) / len(known)) for ends in (lows, highs))
    return Estimate(float(values.mean()), float(values.mean()) - below, float(values.mean()) + above)


def _frechet_test(m: Measurements) -> Estimate | None:
    real = m.reference.test
    return None if real is None else frechet_estimate(real=real, fake=m.compared_with_test, seed=m.seed)


def _memorized(m: Measurements, in_features: bool) -> Estimate | None:
    if (memory := m.reference.memory) is None or m.nearest is None:
        return None
    near = memory.features.near(m.nearest_features) if in_features else memory.pixels.near(m.nearest)
    return share_estimate(near)


METRICS: Registry[Metric] = Registry("metric", "pocketdiff.metrics", {
    "frechet_train": Metric(
        "Fréchet distance to the training split",
        "distance between the normal distributions fitted to the features of both sets, 0 at best",
        lambda m: frechet_estimate(real=m.reference.train, fake=m.features, seed=m.seed), lower_is_better=True),
    "frechet_test": Metric(
        "Fréchet distance to the test split", "the same distance to images that no model was trained on",
        _frechet_test, lower_is_better=True, compared=False, swept=False),
    "frechet_classes": Metric(
        "Fréchet distance within classes, mean", "the same distance for each class alone, which detects wrong labels",
        lambda m: _mean([row.estimate("frechet_train") for row in m.classes.values()]),
        lower_is_better=True, swept=False),
    "kernel_train": Metric(
        "kernel distance to the training split",
        "maximum mean discrepancy of the features, 0 on average for equal distributions and thus sometimes negative",
        lambda m: kernel_estimate(real=m.real, fake=m.features), lower_is_better=True, swept=False),
    "precision": Metric(
        "precision", "share of the images in the neighbourhood of a real image (fidelity)",
        lambda m: m.neighbours.precision, share=True),
    "recall": Metric(
        "recall", "share of the real images in the neighbourhood of one of these images (diversity)",
        lambda m: m.neighbours.recall, share=True),
    "density": Metric(
        "density", "mean number of real neighbourhoods around an image, divided by k; about 1 for real images",
        lambda m: m.neighbours.density, lower_is_better=None, compared=False),
    "coverage": Metric(
        "coverage", "share of the real images with one of these images in their neighbourhood",
        lambda m: m.neighbours.coverage, share=True, compared=False),
    "accuracy": Metric(
        "label accuracy", "share of the images that a second, independent network classifies as their label",
        lambda m: None if m.sample.labels is None else share_estimate(m.read == m.sample.labels), share=True),
    "cas": Metric(
        "train on these, test on real", "accuracy on the real test split of a classifier trained on these images alone",
        lambda m: m.cas.get("cas"), share=True, swept=False),
    "cas_real": Metric(
        "train on real, test on real", "the same for a classifier trained on as many real images",
        lambda m: m.cas.get("cas_real"), share=True, lower_is_better=None, swept=False),
    "memorized_share": Metric(
        "near a training image, in pixels",
        "share of the images as near to a training image as the nearest 1% of real test images, for their class",
        lambda m: _memorized(m, in_features=False), share=True, lower_is_better=True, swept=False),
    "memorized_share_features": Metric(
        "near a training image, in features", "the same share by distance in feature space",
        lambda m: _memorized(m, in_features=True), share=True, lower_is_better=True, compared=False, swept=False),
})  # fmt: skip
"""The metrics by key, in the order of tables."""


def all_metrics() -> dict[str, Metric]:
    """All metrics by key, those of installed packages included unless their import fails."""
    return METRICS.usable()
