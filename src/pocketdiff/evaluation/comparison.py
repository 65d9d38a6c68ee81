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
from pocketdiff.evaluation.pages import Picture, image_grid, render, shown_classes
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
_WIDTH = 350
"""The widest that a run's picture is on the page, in pixels: three stand side by side. Its caption is below it."""
_POINTS = 4
"""The most points of the training at which pictures are shown."""
_DRIFT = 1.15
"""How many times as fast a machine may have been for one run as for another without a note."""
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
    """The image grids of its training, by the number of images seen."""

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
        content = {"pictures": self._pictures(), "colours": self._colours(), "plots": self._plots()}
        return self._render("comparison.html", real=self.real, **content)

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
        return notes + self._drift() + [_SIGNIFICANT] * (len(self.entries) > 1)

    def _drift(self) -> list[str]:
        """A sentence for each machine whose speed changed between the runs that were trained on it."""
        speeds: dict[str, list[tuple[float, str]]] = {}
        for entry in self.entries:
            if entry.training and (peak := entry.training.fp32_peak_flops):
                speeds.setdefault(str(entry.training.hardware), []).append((peak, entry.name))
        notes = []
        for machine, found in speeds.items():
            (slow, one), (fast, other) = min(found), max(found)
            if fast > _DRIFT * slow:
                peaks = f"{slow / 1e9:,.4g} GFLOP/s at the end of {one}, {fast / 1e9:,.4g} at the end of {other}"
                notes.append(
                    f"The speed of {machine} changed between the runs, so compare their times with care: {peaks}."
                )
        return notes

    def _colours(self) -> dict[str, str]:
        """A colour for each model, by its order."""
        return {e.name: plots.COLOURS[i % len(plots.COLOURS)] for i, e in enumerate(self.entries)}

    def _plots(self) -> list[str]:
        """The distance over each cost, as SVG."""
        title, real, drawn = all_metrics()[DISTANCE].name, self.entries[0].score.real_baseline.get(DISTANCE), []
        for cost in FRONTS:
            if points := self.points(cost):
                places, best = {name: (x, *y) for name, (x, y) in points.items()}, pareto_front(points)
                drawn.append(plots.svg(plots.pareto_front(places, best, self._colours(), COSTS[cost], title, real)))
        return drawn

    def _pictures(self) -> list[tuple[int, list[tuple[str, int, Picture]]]]:
        """At most `_POINTS` numbers of images seen, those of the run with the fewest pictures, counted from its last;
        with each of them every run's picture with the nearest number.
        """
        shown = [entry for entry in self.entries if entry.pictures]
        fewest = min((sorted(entry.pictures) for entry in shown), key=lambda seen: (len(seen), seen[-1:]), default=[])
        found = []
        for point in fewest[:: -max(1, -(-len(fewest) // _POINTS))][::-1]:
            nearest = [(entry, min(entry.pictures, key=lambda seen: abs(seen - point))) for entry in shown]
            found.append((point, [(entry.name, seen, entry.pictures[seen]) for entry, seen in nearest]))
        return found


def compare(
    runs: Mapping[str, Comparable] | Sequence[Comparable] | Comparable, data: Dataset | None = None, *, n: int = 10_000,
    seed: int = 0, device: torch.device | str = "cpu", classifiers: Classifiers | None = None,
    cache: Path | None = None, progress: Progress = silent,
) -> Comparison:  # fmt: skip
    """Scores models alike and sets them side by side, with their costs and the differences between them.

    Example:
        >>> print(compare(["runs/gan", "runs/laptop"], n=2000).table())
        >>> compare({"before": old_model, "after": new_model}, data).record.differences

    ``runs`` are finished runs, model files and files of ``evaluate --json`` (``.json``), and models and scores in
    memory; a dictionary gives them names. ``data`` is by default the data set of the first model's config. Models
    from files draw on ``device``. The other arguments are those of `evaluate`.

    Raises:
        EvaluationError: If the scores were not made alike, or no sound score is possible.
    """
    given = runs if isinstance(runs, Mapping) else _named([runs] if isinstance(runs, Comparable) else runs)
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
    scale, train = _common_scale([model for name, model in models.items() if name in paths]), data.train
    real = Sample(train.pixels, train.labels)
    classes = shown_classes(real)
    for name, model in models.items():
        report, folder = partial(prefixed, progress, f"{name}: "), RunFolder(paths.get(name, ""))
        found = measured(model, reference, n, seed, str(paths.get(name, name)), progress=report)
        training, pictures = (_summary(folder), _pictures(folder, model, scale)) if name in paths else (None, {})
        grid = image_grid(found.sample, data.info, classes, 1)
        entries[name] = Entry(name, found.record, training, model.num_parameters, grid, pictures)
    return Comparison([entries[name] for name in named], image_grid(real, data.info, classes, 1))


def _named(runs: Sequence[Comparable]) -> dict[str, Comparable]:
    """Each run by its short name, or by its path if short names collide; in memory by its number."""
    paths = {number: Path(run) for number, run in enumerate(runs, 1) if isinstance(run, str | Path)}
    for path in paths.values():
        if [other.resolve() for other in paths.values()].count(path.resolve()) > 1:
            raise EvaluationError(f"{path}: is named twice; name each run once")
    short = {number: short_name(path).removesuffix(".json") for number, path in paths.items()}
    names = short if len(set(short.values())) == len(short) else {number: str(path) for number, path in paths.items()}
    return {names.get(number, f"model {number}"): run for number, run in enumerate(runs, 1)}


def _summary(folder: RunFolder) -> Summary | None:
    """What a run says about its training; None if there is only a model file, or the summary is damaged."""
    try:
        return Summary.model_validate_json(folder.summary.read_bytes()) if folder.summary.exists() else None
    except (OSError, ValueError):
        log.warning("%s: is damaged, so the costs of training are unknown", folder.summary)
        return None


def _common_scale(models: Sequence[ImageModel]) -> float:
    """The guidance scale of pictures that all models with guidance have in common, the nearest to their own; else 1."""
    facts = [[view.still.sampling_facts() for view in model.views()] for model in models]
    scales = [found for some in facts if (found := {fact.scale for fact in some if fact.scale is not None})]
    common = set.intersection(*scales) if scales else set()
    own = [scale for model in models if (scale := model.sampling_facts().scale) is not None]
    return min(common or own, default=1.0, key=lambda scale: (sum(abs(scale - other) for other in own), scale))


def _pictures(folder: RunFolder, model: ImageModel, scale: float) -> dict[int, Picture]:
    """A run's image grids by the number of images seen, at the guidance scale nearest to this one."""
    views = sorted(model.views(), key=lambda view: abs((view.still.sampling_facts().scale or 1.0) - scale))
    found, n = {}, model.info.train_images or 1
    for view in views[:1]:
        for epoch, path in folder.image_epochs(view.suffix).items():
            with contextlib.suppress(OSError), Image.open(path) as image:  # A damaged picture is not shown.
                seen = min((epoch + 1) * n, model.config.length(n))  # The last epoch can be incomplete.
                found[seen] = Picture.of(path.read_bytes(), view.caption, min(image.width, _WIDTH))
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
