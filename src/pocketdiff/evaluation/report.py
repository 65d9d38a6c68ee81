"""Evaluations of one set of images, and sweeps over sampling settings: tables, pages and JSON."""

import logging
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pocketdiff import plots
from pocketdiff.checkpoint import load
from pocketdiff.data import DataInfo, Dataset
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation import records
from pocketdiff.evaluation.classifiers import MIN_IMAGES, Classifiers, find_or_train_classifiers
from pocketdiff.evaluation.distances import share_estimate
from pocketdiff.evaluation.memorization import QUANTILE
from pocketdiff.evaluation.pages import Picture, aligned, image_grid, picture, render, shown_classes
from pocketdiff.evaluation.records import Provenance, ScoreFile, SweepFile, TrialRecord, metered, printable, values_of
from pocketdiff.evaluation.reference import Reference, prefixed
from pocketdiff.evaluation.sample import Sample, check_request, control_samples, own_data
from pocketdiff.evaluation.score import MAIN, METRICS, K, Score, all_metrics, real_baseline, score
from pocketdiff.evaluation.usefulness import announce, usefulness
from pocketdiff.evaluation.verdict import verdict
from pocketdiff.model import ImageModel
from pocketdiff.progress import Progress, silent
from pocketdiff.records import hardware, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
LOSS = 0.011
"""How far the label accuracy of a sweep's best trial may be below that of real images: 98.5% for MNIST."""
_PAIRS, _SHOWN, _PER_CLASS, _PER_TRIAL = 10, 40, 8, 10
"""Pictures on a page: closest pairs, images of a kind, of a class, and of a trial."""


@dataclass(frozen=True)
class Evaluation:
    """The score of a set of images, and everything needed to read it."""

    record: ScoreFile
    """All values, as the JSON file holds them."""
    sample: Sample
    score: Score
    """The values of each image."""
    reference: Reference

    def warning(self) -> str | None:
        """A sentence if significantly more images than real ones are near a training image; else None."""
        share, memory = self.score.metrics["memorized_share"], self.reference.memory
        if share is None or memory is None or share.low <= share_estimate(memory.pixels.near(memory.pixels.test)).high:
            return None
        near = f"as near to a training image as {QUANTILE:.0%} of real test images are"
        return f"{share.value:.2%} of the images are {near}: look at the closest pairs for copies"

    def json(self) -> dict[str, Any]:
        """The record as plain values."""
        return self.record.model_dump(mode="json")

    def table(self) -> str:
        """The values as plain text."""
        record, p = self.record, self.record.provenance
        controls = [name.replace("_", " ") for name in record.controls]
        rows = [["", "value", "95% interval", f"{p.baseline_images:,} real images", *controls]]
        why, notes = self._missing(), [p.caution()]
        for key, metric in all_metrics().items():
            if (estimate := record.estimate(key)) is not None:
                beside = [metric.text(values.get(key)) for values in (record.real_baseline, *record.controls.values())]
                rows.append([metric.name, metric.text(estimate.value), metric.interval(estimate), *beside])
            elif key in why:
                rows.append([metric.name, "-", *[""] * (2 + len(controls))])
                notes.append(f"{metric.name}: {why[key]}.")
        useful = record.usefulness
        more = [] if useful is None else [aligned(useful.table()), useful.explanation()]
        parts = [f"Verdict: {record.verdict}", p.headline(), aligned(rows), *notes, *more]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _missing(self) -> dict[str, str]:
        """Why a metric has no value, where the table says so."""
        classes = self.record.per_class.values()
        few = [row for row in classes if row.metrics["frechet_train"] is None]
        words = (
            f"{len(few)} of {len(classes)} classes have fewer than {MIN_IMAGES} images, here or in the training split"
        )
        return {"frechet_classes": words} if few else {}

    def page(self) -> str:
        """The evaluation as a self-contained HTML page."""
        info, pixels, order = self.reference.data.info, self.sample.pixels, self.score.realism.argsort()
        strips = {}
        for name in self.record.per_class:
            shown = pixels[self.sample.labels == info.classes.index(name)][:_PER_CLASS]
            strips[name] = picture(shown, info, f"class {name}")
        train, classes = self.reference.data.train, shown_classes(self.sample)
        grids = [
            (image_grid(self.sample, info, classes), "these images"),
            (image_grid(Sample(train.pixels, train.labels), info, classes), "real images of the training split"),
        ]
        return render(
            "evaluation.html", record=self.record, provenance=self.record.provenance, warning=self.warning(),
            classes=info.classes, strips=strips, grids=grids, missing=self._missing(), misread=self._misread(),
            best=picture(pixels[order.flip(0)[:_SHOWN]], info, "the most realistic images"),
            worst=picture(pixels[order[:_SHOWN]], info, "the least realistic images"),
            pairs=self._pairs(), distances=self._distances(),
        )  # fmt: skip

    def _misread(self) -> list[tuple[Picture, str]]:
        """Images that the reader assigns to another class, the least realistic first, with captions."""
        info, labels, read, found = self.reference.data.info, self.sample.labels, self.score.read, []
        if labels is not None:
            wrong = (read != labels).nonzero()[:, 0]
            for i in wrong[self.score.realism[wrong].argsort()][:_SHOWN].tolist():
                words = f"{info.classes[int(labels[i])]}, read as {info.classes[int(read[i])]}"
                found.append((picture(self.sample.pixels[i][None], info, "a misread image", zoom=2), words))
        return found

    def _pairs(self) -> list[tuple[Picture, str]]:
        """The images nearest to a training image, each above that one, with their distances."""
        nearest, memory, data, found = self.score.nearest, self.reference.memory, self.reference.data, []
        if nearest is not None and memory is not None:
            for i in memory.pixels.relative(nearest).argsort(stable=True)[:_PAIRS].tolist():
                both = torch.stack([self.sample.pixels[i], data.train.pixels[int(nearest.which[i])]])
                shown = picture(both, data.info, "an image above its nearest training image", 1, 2)
                found.append((shown, f"{float(nearest.distance[i]):.1f}"))
        return found

    def _distances(self) -> str:
        """The distribution of all distances to training images, as SVG."""
        nearest, memory = self.score.nearest, self.reference.memory
        if nearest is None or memory is None:
            return ""
        sets = {"these images": nearest, "real test images": memory.pixels.test}
        curves = {name: _distribution(memory.pixels.relative(some)) for name, some in sets.items()}
        across = "distance to the nearest training image; 1: typical"
        return plots.svg(plots.shares_below(curves, across, memory.pixels.threshold))


def evaluate(
    target: ImageModel | Sample | Path | str, data: Dataset | None = None, *, n: int = 10_000, seed: int = 0,
    controls: bool = False, cas: bool = False, augment: bool = False, name: str = "",
    classifiers: Classifiers | None = None, cache: Path | None = None, progress: Progress = silent,
) -> Evaluation:  # fmt: skip
    """Scores a model's images, or any others, against a data set, with confidence intervals and the real baseline.

    Example:
        >>> evaluation = evaluate("runs/laptop", n=2000)
        >>> print(evaluation.table())
        >>> evaluation.record.metrics["accuracy"]

    Args:
        target: A model, a finished run or model file, or images of any origin.
        data: The data set that the images should resemble; a model must have been trained on it, and it is the default.
        n: Number of images to draw, or the most images to take from a `Sample`.
        seed: Of the images and of the bootstrap.
        controls: Whether to score noise, blurred images and shuffled labels too.
        cas: Whether to compute the classification accuracy score too, which trains two classifiers.
        augment: Whether to test if the images help a classifier (`usefulness`), which trains many classifiers.
        name: What the report calls the target.
        classifiers: Those of the data set; by default found or trained (`find_or_train_classifiers`).
        cache: A folder where trained classifiers and the features of the real images are kept; None: nowhere.
        progress: Called while it works.

    Raises:
        EvaluationError: If no sound score is possible.
    """
    if isinstance(target, str | Path):
        name, target = name or str(target), load(target)
    if data is None:
        if isinstance(target, Sample):
            raise EvaluationError("images are scored against a data set: give one, such as load_data('mnist')")
        data = own_data(target)
    check_request(target, data, n, seed, name, cas, augment)
    if augment:
        announce(data, min(n, len(target)) if isinstance(target, Sample) else n)
    nets = classifiers or find_or_train_classifiers(data, cache, progress)
    reference = Reference.of(data, nets, progress=progress, cache=cache)
    result = measured(target, reference, n, seed, name or "images", controls, cas, progress)
    if warning := result.warning():
        log.warning("%s", warning)
    if not augment:
        return result
    helped = usefulness(result.sample, data, seed, progress)
    return replace(result, record=result.record.model_copy(update={"usefulness": helped}))


def measured(
    target: ImageModel | Sample, reference: Reference, n: int, seed: int, name: str,
    controls: bool = False, cas: bool = False, progress: Progress = silent,
) -> Evaluation:  # fmt: skip
    """What `evaluate` returns, given the reference."""
    began = time.perf_counter()
    sample, drawing = Sample.of(target, reference, n, seed, progress)
    scored = score(sample, reference, seed, cas=cas, progress=progress)
    real, values = real_baseline(reference, len(sample), seed, progress), {}
    for control, images in control_samples(reference, len(sample), seed).items() if controls and real else ():
        values[control] = values_of(score(images, reference, seed, progress=progress).metrics)
    classes = {} if real is None else {key: {"real_baseline": row.metrics} for key, row in real.classes.items()}
    record = ScoreFile(
        **metered(scored.metrics), real_baseline=values_of(real.metrics) if real else {}, controls=values,
        per_class={key: row.model_copy(update=classes.get(key)) for key, row in scored.classes.items()},
        provenance=_provenance(name, reference, len(sample), seed, drawing, began),
    )  # fmt: skip
    result = Evaluation(record, sample, scored, reference)
    words = verdict(record, len(reference.data.info.classes), copies=result.warning() is not None)
    return replace(result, record=record.model_copy(update={"verdict": words}))


@dataclass(frozen=True)
class Sweep:
    """A model with several sampling settings, all scored with the same labels and seeds."""

    record: SweepFile
    """All values, as the JSON file holds them."""
    images: Sequence[UInt8[Tensor, "m c h w"]]
    """A few images of each trial."""
    info: DataInfo

    def bar(self) -> float:
        """The label accuracy that the best trial must reach: that of the real test split, minus `LOSS`."""
        return self.record.provenance.label_network.accuracy - LOSS

    def best(self) -> TrialRecord | None:
        """The trial with the smallest distance among those that reach the `bar` (without labels: among all); None if no
        trial reaches it.
        """
        known = [(trial, trial.metrics["accuracy"]) for trial in self.record.trials]
        enough = [trial for trial, accuracy in known if accuracy is None or accuracy >= self.bar()]
        return min(enough, key=lambda trial: trial.metrics["frechet_train"] or math.inf, default=None)

    def verdict(self) -> str:
        """The best trial in a sentence, or that none is accurate enough."""
        if (best := self.best()) is None:
            top = max(self.record.trials, key=lambda trial: trial.metrics["accuracy"] or 0.0)
            highest = f"the highest is {top.metrics['accuracy']:.1%}, with {top.drawing.how}"
            remedy = "Try a higher guidance scale, or train longer"
            return f"No setting has a label accuracy of {self.bar():.1%} or more: {highest}. {remedy}."
        by = "" if best.metrics["accuracy"] is None else f" with a label accuracy of {self.bar():.1%} or more"
        return f"The smallest distance{by}: {best.drawing.how}."

    def json(self) -> dict[str, Any]:
        """The record as plain values."""
        return self.record.model_dump(mode="json")

    def table(self) -> str:
        """The values as plain text."""
        p, real = self.record.provenance, self.record.real_baseline
        metrics = {key: metric for key, metric in all_metrics().items() if metric.swept}
        rows = [["sampling", "NFE", *metrics]]
        lines = [(t.drawing.how, f"{t.drawing.sampling.nfe:g}", t.metrics) for t in self.record.trials]
        for how, nfe, values in [*lines, *([("real images", "", real)] if real else [])]:
            rows.append([how, nfe, *(metric.text(values.get(key)) for key, metric in metrics.items())])
        parts = [f"Verdict: {self.verdict()}", p.headline("images each"), aligned(rows), p.caution()]
        return "\n\n".join(filter(None, parts)) + "\n"

    def page(self) -> str:
        """The sweep as a self-contained HTML page."""
        strips = [picture(images, self.info, "some of its images") for images in self.images]
        p, plot = self.record.provenance, plots.svg(self.plot())
        return render("sweep.html", record=self.record, provenance=p, verdict=self.verdict(), strips=strips, plot=plot)

    def plot(self) -> "Figure":
        """The main metrics over the steps, or over the scale if all trials have the same number of steps."""
        x = "steps" if len({trial.drawing.sampling.steps for trial in self.record.trials}) > 1 else "scale"
        on_axis = {"steps": r"\d+ steps?", "scale": r"scale .*"}[x]
        panels = []
        for key in MAIN:
            curves: dict[str, list[tuple[int | float, float]]] = {}
            for trial in self.record.trials:
                others = [part for part in trial.drawing.how.split(", ") if not re.fullmatch(on_axis, part)]
                if (value := trial.metrics[key]) is not None:
                    curves.setdefault(", ".join(others), []).append((getattr(trial.drawing.sampling, x), value))
            panels += [(METRICS[key].name, curves)] if curves else []
        real = {METRICS[key].name: value for key in MAIN if (value := self.record.real_baseline.get(key)) is not None}
        return plots.lines(panels, {"steps": "steps", "scale": "guidance scale"}[x], real)


def sweep(
    models: ImageModel | Sequence[ImageModel], data: Dataset, *, n: int = 10_000, seed: int = 0, name: str = "",
    classifiers: Classifiers | None = None, cache: Path | None = None, progress: Progress = silent,
) -> Sweep:  # fmt: skip
    """Scores a model with several sampling settings, each time with the same labels and seeds.

    Example:
        >>> model, data = pd.load("runs/laptop"), pd.load_data("mnist")
        >>> settings = [model.sampling.replace(scale=scale) for scale in (1.0, 1.5, 2.0)]
        >>> print(sweep([pd.with_sampling(model, way) for way in settings], data, n=2000).table())

    ``models`` is the same model with each of the settings, or with one. The other arguments are those of `evaluate`.

    Raises:
        EvaluationError: If a model has no sampling settings, or no sound score is possible.
    """
    began = time.perf_counter()
    models = models if isinstance(models, Sequence) else [models]
    if not models or any(model.sampling is None for model in models):
        raise EvaluationError("a sweep needs models with sampling settings; use evaluate for others")
    for model in models:
        check_request(model, data, n, seed, name)
    nets = classifiers or find_or_train_classifiers(data, cache, progress)
    reference = Reference.of(data, nets, memorization=False, progress=progress, cache=cache)
    trials, images = [], []
    for number, model in enumerate(models, 1):
        report = partial(prefixed, progress, f"{number} of {len(models)}, ")
        sample, drawing = Sample.of(model, reference, n, seed, report)
        scored = score(sample, reference, seed, progress=report)
        trials.append(TrialRecord(**metered(scored.metrics), drawing=drawing))
        labels = torch.zeros(n) if sample.labels is None else sample.labels
        images.append(sample.pixels[[int((labels == label).nonzero()[0]) for label in labels.unique()[:_PER_TRIAL]]])
        shown = (f"{METRICS[key].name} {METRICS[key].text(trials[-1].metrics[key])}" for key in MAIN[:2])
        log.info("%s: %s", model.how(), ", ".join(shown))
    real = real_baseline(reference, n, seed, progress)
    provenance = _provenance(name or "model", reference, n, seed, None, began)
    record = SweepFile(trials=trials, real_baseline=values_of(real.metrics) if real else {}, provenance=provenance)
    return Sweep(record, images, data.info)


def _provenance(
    target: str, reference: Reference, n: int, seed: int, drawing: records.Drawing | None, began: float
) -> Provenance:
    info = reference.data.info
    networks = [records.Network(name=c.name, sha256=c.sha256, accuracy=c.accuracy) for c in reference.classifiers]
    return Provenance(
        target=printable(target), n=n, seed=seed, drawing=drawing, data=printable(reference.data.source),
        data_sha256=info.sha256, train_images=info.train_images, test_images=info.test_images,
        feature_network=networks[0], label_network=networks[1], k=K,
        compared_with=len(reference.train_part(n)), baseline_images=len(reference.test_part(n)),
        seconds=time.perf_counter() - began, hardware=hardware(), versions=versions(),
    )  # fmt: skip


def _distribution(values: Tensor) -> list[tuple[int | float, float]]:
    """Points (x, share of the values up to x), at most a few hundred, dense where the share is small."""
    ordered = values.sort().values
    ranks = np.unique(np.geomspace(1, len(ordered), 200).round().astype(int))
    return [(float(ordered[rank - 1]), rank / len(ordered)) for rank in ranks.tolist()]
