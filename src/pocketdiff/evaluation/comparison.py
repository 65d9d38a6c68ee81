"""Comparison of models: their scores side by side, statistically significant differences, and costs."""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pocketdiff import plots
from pocketdiff.checkpoint import load
from pocketdiff.data import Dataset
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation.classifiers import Classifiers, find_or_train_classifiers
from pocketdiff.evaluation.distances import Estimate
from pocketdiff.evaluation.pages import Picture, image_grid, render
from pocketdiff.evaluation.records import ComparisonFile, Difference, Provenance, RunRecord, ScoreFile, printable
from pocketdiff.evaluation.reference import Reference, prefixed
from pocketdiff.evaluation.report import measured
from pocketdiff.evaluation.sample import Sample, check_request, own_data
from pocketdiff.evaluation.score import K, all_metrics
from pocketdiff.folder import RunFolder, short_name
from pocketdiff.model import ImageModel
from pocketdiff.progress import Progress, silent
from pocketdiff.records import Summary

log = logging.getLogger(__name__)
Comparable = ImageModel | ScoreFile | Path | str
DISTANCE = "frechet_train"
COSTS = {
    "parameters": "trained weights", "drawing_parameters": "weights used for drawing",
    "training_seconds": "seconds of training", "images_seen": "images seen in training",
    "images_per_second": "images per second in training", "peak_memory_bytes": "peak memory of training",
    "peak_gpu_memory_bytes": "peak GPU memory of training", "sampling_seconds": "seconds to draw 1,000 images",
    "nfe": "network evaluations per image", "trained_on": "trained on", "drawn_on": "drawn on",
}  # fmt: skip
"""Names of the costs; ``sampling_seconds`` is per 1,000 images."""
FRONTS = ("training_seconds", "sampling_seconds")
"""The costs that the distance is plotted against."""
_N, _K = "number of images (n)", "neighbourhood size (k)"
_ZOOM = 2
"""Scale factor of a run's pictures."""
_EPOCHS = 4
"""The most epochs whose pictures are shown."""
_SIGNIFICANT = (
    "A difference is significant (*) if its 95% confidence interval excludes 0; by chance alone this happens to about "
    "one in twenty. The intervals cover another draw of the images (for recall, of the real images), not another "
    "training seed."
)


@dataclass(frozen=True)
class Entry:
    """One of the models in a comparison."""

    name: str
    score: ScoreFile
    training: Summary | None = None
    """The run's own summary; None if unknown."""
    parameters: int | None = None
    """Weights of the network that draws."""
    grid: Picture | None = None
    """Some of its images."""
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    """The image grids of its training, by epoch."""

    @cached_property
    def costs(self) -> dict[str, int | float | str | None]:
        """What training and drawing cost; None for what is unknown."""
        found = {key: getattr(self.training, key, None) for key in COSTS} | {"drawing_parameters": self.parameters}
        if self.training is not None:
            found["trained_on"] = str(self.training.hardware)
        if (drawing := self.score.provenance.drawing) is not None:
            seconds = 1000 * drawing.seconds / self.score.provenance.n
            found |= {"sampling_seconds": seconds, "nfe": drawing.sampling.nfe, "drawn_on": str(drawing.hardware)}
        return found


@dataclass(frozen=True)
class Comparison:
    """Scores of models. Raises EvaluationError if they were not made alike."""

    entries: Sequence[Entry]
    real: Picture | None = None
    """Real images."""

    def __post_init__(self) -> None:
        check_alike({entry.name: _conditions(entry.score.provenance) for entry in self.entries})

    @cached_property
    def record(self) -> ComparisonFile:
        """All values, as the JSON file holds them."""
        metrics = {key: metric for key, metric in all_metrics().items() if metric.compared}
        shown = [key for key in metrics if any(entry.score.estimate(key) for entry in self.entries)]
        return ComparisonFile(
            runs={e.name: RunRecord(**dict(e.score), costs=e.costs, training=e.training) for e in self.entries},
            differences=[row for key in shown for row in self._differences(key)],
            pareto_fronts={cost: pareto_front(self.points(cost)) for cost in FRONTS},
            how_to_read={key: metrics[key].reading() for key in shown},
            notes=self._notes(),
        )

    def json(self) -> dict[str, Any]:
        """The record as plain values."""
        return self.record.model_dump(mode="json")

    def table(self) -> str:
        """All values, differences and notes as Markdown."""
        return self._render("comparison.md")

    def page(self) -> str:
        """The comparison as a self-contained HTML page."""
        return self._render("comparison.html", real=self.real, epochs=self._epochs(), plots=self._plots())

    def points(self, cost: str) -> dict[str, tuple[float, Estimate]]:
        """The cost and the distance of each model, where both are known."""
        known = {entry.name: (entry.costs[cost], entry.score.estimate(DISTANCE)) for entry in self.entries}
        return {name: (float(x), y) for name, (x, y) in known.items() if isinstance(x, int | float) and y is not None}

    def _render(self, template: str, **content: Any) -> str:
        costs = {key: name for key, name in COSTS.items() if any(e.costs[key] is not None for e in self.entries)}
        return render(
            template, entries=self.entries, record=self.record, first=self.entries[0].score, costs=costs, **content
        )

    def _differences(self, key: str) -> list[Difference]:
        known = [(entry.name, value) for entry in self.entries if (value := entry.score.estimate(key)) is not None]
        rows = []
        for (one, a), (other, b) in combinations(known, 2):
            gap = difference(a, b)
            rows.append(Difference(
                metric=key, runs=(one, other), difference=gap.value, interval=gap[1:], significant=is_significant(gap)
            ))  # fmt: skip
        return rows

    def _notes(self) -> list[str]:
        """The Pareto fronts, and what limits the comparison."""
        notes = []
        for cost in FRONTS:
            if len(points := self.points(cost)) > 1:
                best = ", ".join(pareto_front(points))
                notes.append(f"Pareto front of distance and {COSTS[cost]} (no other run is better in both): {best}.")
        notes += filter(None, [self.entries[0].score.provenance.caution()])
        for cost in ("trained_on", "drawn_on"):
            machines = sorted({str(machine) for entry in self.entries if (machine := entry.costs[cost])})
            if len(machines) > 1:
                names = "; ".join(machines)
                notes.append(f"The runs were {COSTS[cost]} different machines, so these times say little: {names}.")
        return notes + [_SIGNIFICANT] * (len(self.entries) > 1)

    def _plots(self) -> list[str]:
        """The distance over each cost, as SVG."""
        title, real, drawn = all_metrics()[DISTANCE].name, self.entries[0].score.real_baseline.get(DISTANCE), []
        for cost in FRONTS:
            if points := self.points(cost):
                places, best = {name: (x, *y) for name, (x, y) in points.items()}, pareto_front(points)
                drawn.append(plots.svg(plots.pareto_front(places, best, COSTS[cost], title, real)))
        return drawn

    def _epochs(self) -> list[tuple[int, list[tuple[str, Picture]]]]:
        """Pictures of epochs that all runs with pictures have in common: at most `_EPOCHS`, counted from the last."""
        shown = [entry for entry in self.entries if entry.pictures]
        common = sorted(set.intersection(*(set(entry.pictures) for entry in shown))) if shown else []
        some = common[:: -max(1, -(-len(common) // _EPOCHS))][::-1]
        return [(epoch + 1, [(entry.name, entry.pictures[epoch]) for entry in shown]) for epoch in some]


def compare(
    runs: Mapping[str, Comparable] | Sequence[Path | str], data: Dataset | None = None, *, n: int = 10_000,
    seed: int = 0, device: torch.device | str = "cpu", classifiers: Classifiers | None = None,
    cache: Path | None = None, progress: Progress = silent,
) -> Comparison:  # fmt: skip
    """Scores models alike and sets them side by side, with their costs and the differences between them.

    Example:
        >>> print(compare(["runs/gan", "runs/laptop"], n=2000).table())
        >>> compare({"before": old_model, "after": new_model}, data).record.differences

    ``runs`` are finished runs, model files and files of ``evaluate --json`` (``.json``), or a dictionary of these and
    of models and scores in memory, by name. ``data`` is by default the data set of the first model's config. Models
    from files draw on ``device``. The other arguments are those of `evaluate`.

    Raises:
        EvaluationError: If the scores were not made alike, or no sound score is possible.
    """
    given = runs if isinstance(runs, Mapping) else _named([Path(run) for run in runs])
    named = {printable(name): run for name, run in given.items()}
    if not 0 < len(named) == len(given):
        raise EvaluationError("compare needs one run or more, with names that differ in printable characters")
    paths = {name: Path(run) for name, run in named.items() if isinstance(run, str | Path)}
    scores: dict[str, ScoreFile] = {}
    models: dict[str, ImageModel] = {}
    for name, run in named.items():
        if isinstance(run, str | Path):
            if paths[name].suffix == ".json":
                scores[name] = ScoreFile.read(paths[name])
            else:
                models[name] = load(run, device)
        elif isinstance(run, ScoreFile):
            scores[name] = run
        else:
            models[name] = run
    entries = {name: Entry(name, found) for name, found in scores.items()}
    conditions = {name: _conditions(found.provenance) for name, found in scores.items()}
    if not models:
        return Comparison([entries[name] for name in named])
    first = next(iter(models))
    data = data or own_data(models[first])
    for name, model in models.items():
        conditions[name] = {"data": model.info.sha256 or data.info.sha256, _N: n, _K: K}
    check_alike(conditions)
    for name, model in models.items():
        check_request(model, data, n, seed, name)
    nets = classifiers or find_or_train_classifiers(data, cache, progress)
    conditions[first] |= {"feature network": nets.features.sha256, "label network": nets.reader.sha256}
    check_alike(conditions)
    reference = Reference.of(data, nets, progress=progress, cache=cache)
    for name, model in models.items():
        report, folder = partial(prefixed, progress, f"{name}: "), RunFolder(paths.get(name, ""))
        found = measured(model, reference, n, seed, str(paths.get(name, name)), progress=report)
        training, pictures = (_summary(folder), _pictures(folder, model)) if name in paths else (None, {})
        grid = image_grid(found.sample, data.info, 1)
        entries[name] = Entry(name, found.record, training, model.num_parameters, grid, pictures)
    shown = image_grid(Sample(data.test.pixels, data.test.labels), data.info, 1)
    return Comparison([entries[name] for name in named], shown)


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Each path under its short name, or under itself if short names collide."""
    for path in paths:
        if [other.resolve() for other in paths].count(path.resolve()) > 1:
            raise EvaluationError(f"{path}: is named twice; name each run once")
    short = [short_name(path).removesuffix(".json") for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else map(str, paths), paths, strict=True))


def _summary(folder: RunFolder) -> Summary | None:
    """What a run says about its training; None if there is only a model file, or the summary is damaged."""
    try:
        return Summary.model_validate_json(folder.summary.read_bytes()) if folder.summary.exists() else None
    except (OSError, ValueError):
        log.warning("%s: is damaged, so the costs of training are unknown", folder.summary)
        return None


def _pictures(folder: RunFolder, model: ImageModel) -> dict[int, Picture]:
    """A run's image grids by epoch, at the guidance scale nearest to the model's own."""
    scale = model.sampling_facts().scale or 1.0
    views = sorted(model.views(), key=lambda view: abs((view.still.sampling_facts().scale or 1.0) - scale))
    found = {}
    for view in views[:1]:
        for epoch, path in folder.image_epochs(view.suffix).items():
            with contextlib.suppress(OSError), Image.open(path) as image:  # A damaged picture is not shown.
                found[epoch] = Picture.of(path.read_bytes(), view.caption, image.width // _ZOOM)
    return found


def _conditions(provenance: Provenance) -> dict[str, object]:
    """What must be equal for scores to be comparable."""
    networks = {"feature network": provenance.feature_network.sha256, "label network": provenance.label_network.sha256}
    return {"data": provenance.data_sha256, **networks, _N: provenance.n, _K: provenance.k}


def check_alike(conditions: Mapping[str, Mapping[str, object]]) -> None:
    """Raises EvaluationError if scores are not comparable, with the first two that differ, and how."""
    for (one, mine), (other, theirs) in pairwise(conditions.items()):
        for fact in mine:
            if mine[fact] != theirs.get(fact, mine[fact]):
                raise EvaluationError(
                    f"{one} and {other} differ in {fact}: {_short(mine[fact])} and {_short(theirs[fact])}; scores that "
                    "were not made alike cannot be compared"
                )


def difference(a: Estimate, b: Estimate) -> Estimate:
    """``a - b`` of two independent estimates, with a 95% confidence interval from theirs.

    Source: Newcombe 1998, method 10, for shares; Zou and Donner 2008 for any estimates.
    """
    value = a.value - b.value
    below = math.hypot(a.value - a.low, b.high - b.value)
    above = math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, value - below, value + above)


def is_significant(gap: Estimate) -> bool:
    """Whether a difference is statistically significant: its interval excludes 0."""
    return not gap.low <= 0 <= gap.high


def pareto_front(points: Mapping[str, tuple[float, Estimate]]) -> list[str]:
    """The names of the (cost, distance) that no other beats in both, the cheapest first."""
    best: list[str] = []
    smallest = math.inf
    for name, (_, distance) in sorted(points.items(), key=lambda item: (item[1][0], item[1][1].value)):
        if distance.value < smallest:
            best.append(name)
            smallest = distance.value
    return best


def _short(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 16 else text[:8]
