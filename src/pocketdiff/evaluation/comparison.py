"""Models side by side: what their figures say, which differences exceed their intervals, and what each costs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from pocketdiff import plots
from pocketdiff.evaluate.distances import Estimate, EvaluationError
from pocketdiff.evaluate.report import (
    MEANINGS,
    NAMES,
    Picture,
    fewer,
    interval,
    intervals_of,
    render,
    value_of,
    values_of,
    written,
    written_frame,
)
from pocketdiff.evaluate.score import Metrics

COMPARED = (
    "frechet_train", "frechet_classes", "kernel_train", "accuracy", "precision", "recall", "memorized_share",
)  # fmt: skip
"""The figures that stand in the table."""
LESS_IS_BETTER = {"frechet_train", "frechet_classes", "kernel_train", "memorized_share"}
SAME = {
    "data_sha256": "data",
    "feature_network_sha256": "feature network",
    "label_network_sha256": "label network",
    "n": "number of images (--n)",
    "k": "neighbourhood size (k)",
}
"""What must be the same for figures to be compared, and what to call it."""
FRONTS = {"training_seconds": "seconds of training", "sampling_seconds": "seconds to draw 1,000 images"}
"""The costs that the distance is held against."""
_EPOCHS = 4
"""The most epochs whose pictures are shown."""


@dataclass(frozen=True)
class Entry:
    """One of the models that are compared."""

    name: str
    metrics: Metrics
    floor: Metrics
    """What as many real images score; empty where there are too few."""
    frame: Mapping[str, Any]
    """What the evaluation says of itself: n, seed, data, networks, sampling, seconds of drawing."""
    summary: Mapping[str, Any]
    """What the run says of its training; empty where that is not known."""
    drawing_parameters: int | None = None
    """Weights of the network that draws."""
    grid: Picture | None = None
    """Some of its images."""
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    """What training left, generated images over real ones, by epoch."""

    @property
    def sampling_seconds(self) -> float | None:
        """Time to draw 1,000 images, measured over all that were scored."""
        seconds = self.frame.get("drawing_seconds")
        return None if seconds is None else float(seconds) * 1000 / int(self.frame["n"])

    @property
    def training_seconds(self) -> float | None:
        """Time that training took, without pictures and checkpoints."""
        return self.summary.get("training_seconds")


@dataclass(frozen=True)
class Comparison:
    """Models and their figures, made alike.

    Raises:
        EvaluationError: If they were not, naming the difference.
    """

    entries: Sequence[Entry]
    real: Picture | None = None
    """Real images beside the entries' own."""

    def __post_init__(self) -> None:
        check_alike({entry.name: entry.frame for entry in self.entries})

    def json(self) -> dict[str, Any]:
        """Every figure, numbers as numbers, and null for what is not known."""
        return {
            "runs": {
                entry.name: {
                    "metrics": values_of(entry.metrics),
                    "intervals": intervals_of(entry.metrics),
                    "costs": {key: cost.of(entry) for key, cost in COSTS.items()},
                    "frame": dict(entry.frame),
                    "training": dict(entry.summary),
                }
                for entry in self.entries
            },
            "floor": values_of(self.entries[0].floor),
            "differences": [
                {
                    "figure": name,
                    "runs": [a.name, b.name],
                    "difference": gap.value,
                    "interval": [gap.low, gap.high],
                    "exceeds_its_interval": exceeds(gap),
                }
                for name in COMPARED
                for a, b, gap in self._differences(name)
            ],
            "fronts": {key: [entry.name for entry in front(self._points(key))] for key in FRONTS},
            "words": self.words(),
        }

    def table(self) -> str:
        """The figures as a Markdown table, and what they say."""
        real = [""] * bool(self.entries[0].floor)
        lines = [
            ["", *(entry.name for entry in self.entries), *(["real images"] if real else [])],
            ["---"] * (1 + len(self.entries) + len(real)),
        ]
        for row in self._figures():
            cells = [f"{value} ({between})" if between else value for value, between in row["cells"]]
            lines.append([row["name"], *cells, *([row["floor"]] if real else [])])
        lines += [[row["name"], *row["cells"], *real] for row in self._costs()]
        text = "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)
        return text + "\n\n" + "\n".join(f"- {sentence}" for sentence in self.words()) + "\n"

    def words(self) -> list[str]:
        """What the figures say, in sentences: above all, which differences exceed their intervals."""
        sentences = [said for name in COMPARED if (said := self._ranking(name))]
        sentences += self._front_words()
        if caution := fewer(self.entries[0].frame):
            sentences.append(f"{caution[0].upper()}{caution[1:]}.")
        for cost in ("trained_on", "drawn_on"):
            machines = {machine for entry in self.entries if (machine := COSTS[cost].of(entry))}
            if len(machines) > 1:
                sentences.append(
                    f"Not all were {COSTS[cost].name} the same machine ({'; '.join(sorted(machines))}): these times "
                    "say little of one another."
                )
        if len(self.entries) > 1:
            sentences.append(
                "The intervals are of another draw of the images: another training seed may change a figure by more."
            )
        return sentences

    def page(self) -> str:
        """The comparison as one HTML page."""
        return render(
            "comparison.html",
            title=f"pocketdiff compare: {', '.join(entry.name for entry in self.entries)}",
            headline=self._headline(),
            words=self.words(),
            names=[entry.name for entry in self.entries],
            floor=bool(self.entries[0].floor),
            figures=self._figures(),
            costs=self._costs(),
            grids=[(entry.name, entry.grid) for entry in self.entries if entry.grid],
            real=self.real,
            epochs=self._epochs(),
            plots=self._plots(),
            frames=[(entry.name, written_frame({**entry.frame, "training": entry.summary})) for entry in self.entries],
        )

    def _headline(self) -> str:
        frame = self.entries[0].frame
        return (
            f"{frame['n']:,} images each, scored against {frame.get('data', 'the same data')} with "
            f"{frame['feature_network']} and {frame['label_network']}"
        )

    def _figures(self) -> list[dict[str, Any]]:
        rows = []
        for name in COMPARED:
            known = [entry.metrics.get(name) for entry in self.entries]
            if any(known):
                cells = [(written(name, value_of(estimate)) or "none", interval(name, estimate)) for estimate in known]
                floor = written(name, value_of(self.entries[0].floor.get(name)))
                rows.append({"name": NAMES[name], "meaning": MEANINGS[name], "cells": cells, "floor": floor})
        return rows

    def _costs(self) -> list[dict[str, Any]]:
        return [
            {"name": cost.name, "cells": [cost.text(entry) for entry in self.entries]}
            for cost in COSTS.values()
            if any(cost.of(entry) is not None for entry in self.entries)
        ]

    def _known(self, name: str) -> list[tuple[Entry, Estimate]]:
        """The entries that have a figure, the best first."""
        known = [(entry, estimate) for entry in self.entries if (estimate := entry.metrics.get(name)) is not None]
        return sorted(known, key=lambda pair: pair[1].value, reverse=name not in LESS_IS_BETTER)

    def _differences(self, name: str) -> list[tuple[Entry, Entry, Estimate]]:
        return [(a, b, difference(x, y)) for (a, x), (b, y) in combinations(self._known(name), 2)]

    def _ranking(self, name: str) -> str | None:
        known = self._known(name)
        if len(known) < 2:
            return None
        order = ", ".join(f"{entry.name} {written(name, estimate.value)}" for entry, estimate in known)
        pairs = self._differences(name)
        alike = [(a, b, gap) for a, b, gap in pairs if not exceeds(gap)]
        if not alike:
            verdict = f"{'the' if len(pairs) == 1 else 'every'} difference exceeds its interval"
        elif len(alike) == len(pairs) > 1:
            verdict = "no difference exceeds its interval"
        else:
            verdict = "; ".join(
                f"the difference between {a.name} and {b.name} does not exceed its interval ({interval(name, gap)})"
                for a, b, gap in alike
            )
            if len(alike) < len(pairs):
                verdict += "; every other does"
        first = "lowest" if name in LESS_IS_BETTER else "highest"
        return f"{NAMES[name][0].upper()}{NAMES[name][1:]}, {first} first: {order}; {verdict}."

    def _points(self, key: str) -> list[tuple[Entry, float, Estimate]]:
        """Each entry's cost and distance, where both are known."""
        return [
            (entry, seconds, estimate)
            for entry in self.entries
            if (seconds := getattr(entry, key)) is not None
            and (estimate := entry.metrics.get("frechet_train")) is not None
        ]

    def _front_words(self) -> list[str]:
        sentences = []
        for key, said in FRONTS.items():
            points = self._points(key)
            if len(points) > 1:
                best = [entry.name for entry in front(points)]
                surpassed = f"none is both nearer and faster than any of {_listed(best)}, intervals aside"
                sentences.append(f"Distance against {said}: {surpassed}.")
        return sentences

    def _plots(self) -> list[str]:
        """The distance against each cost, as SVG."""
        floor, drawn = value_of(self.entries[0].floor.get("frechet_train")), []
        for key, said in FRONTS.items():
            if points := self._points(key):
                best = [entry.name for entry in front(points)]
                placed = {entry.name: (seconds, *estimate) for entry, seconds, estimate in points}
                drawn.append(plots.svg(plots.front(placed, best, said, NAMES["frechet_train"], floor)))
        return drawn

    def _epochs(self) -> list[tuple[int, list[tuple[str, Picture]]]]:
        """Pictures of the epochs that all runs with pictures have in common: some of them, counted from the last."""
        shown = [entry for entry in self.entries if entry.pictures]
        common = sorted(set.intersection(*(set(entry.pictures) for entry in shown))) if shown else []
        some = common[:: -max(1, -(-len(common) // _EPOCHS))][::-1]
        return [(epoch + 1, [(entry.name, entry.pictures[epoch]) for entry in shown]) for epoch in some]


class Cost(NamedTuple):
    """One line of what a model costs."""

    name: str
    of: Callable[[Entry], Any]
    """Its value; None where it is not known."""
    scale: float = 1.0
    """What it is multiplied by to be shown."""

    def text(self, entry: Entry) -> str:
        """The value as it is shown."""
        value = self.of(entry)
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        shown = value * self.scale
        return f"{shown:,.0f}" if shown >= 100 or shown == int(shown) else f"{shown:.3g}"


def _summed_up(key: str) -> Callable[[Entry], Any]:
    return lambda entry: entry.summary.get(key)


COSTS: dict[str, Cost] = {
    "parameters": Cost("weights that are trained", _summed_up("parameters")),
    "drawing_parameters": Cost("weights that draw", lambda entry: entry.drawing_parameters),
    "training_seconds": Cost("seconds of training", lambda entry: entry.training_seconds),
    "images_seen": Cost("images seen in training", _summed_up("images_seen")),
    "images_per_second": Cost("images a second in training", _summed_up("images_per_second")),
    "peak_memory_bytes": Cost("peak memory of training, MB", _summed_up("peak_memory_bytes"), 1e-6),
    "peak_gpu_memory_bytes": Cost("peak GPU memory of training, MB", _summed_up("peak_gpu_memory_bytes"), 1e-6),
    "sampling_seconds": Cost("seconds to draw 1,000 images", lambda entry: entry.sampling_seconds),
    "network_evaluations": Cost("network evaluations an image", lambda entry: entry.frame.get("network_evaluations")),
    "trained_on": Cost("trained on", lambda entry: _machine(entry.summary.get("hardware"))),
    "drawn_on": Cost("drawn on", lambda entry: _machine(entry.frame.get("drawn_on"))),
}


def check_alike(frames: Mapping[str, Mapping[str, Any]]) -> None:
    """Sees that figures can be compared, by the frames they stand in.

    Raises:
        EvaluationError: If they were not made alike, naming the first two that differ, and in what.
    """
    for (one, mine), (other, theirs) in pairwise(frames.items()):
        for fact, said in SAME.items():
            if fact in mine and fact in theirs and mine[fact] != theirs[fact]:
                raise EvaluationError(
                    f"{one} and {other} differ in {said}: {_short(mine[fact])} and {_short(theirs[fact])}; "
                    "figures that were not made alike cannot be compared"
                )


def difference(a: Estimate, b: Estimate) -> Estimate:
    """``a - b`` of two independent figures, with its 95% interval: each end's margins squared, added, and the root.

    Source: Newcombe 1998, method 10, which does so for shares; Zou and Donner 2008 for any figures.
    """
    value = a.value - b.value
    below = math.hypot(a.value - a.low, b.high - b.value)
    above = math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, value - below, value + above)


def exceeds(gap: Estimate) -> bool:
    """Whether a difference is more than another draw of the images would make: its interval leaves zero out."""
    return not gap.low <= 0 <= gap.high


def front(points: Iterable[tuple[Entry, float, Estimate]]) -> list[Entry]:
    """The entries that no other surpasses in both cost and distance, from the cheapest to the nearest."""
    best: list[Entry] = []
    least = math.inf
    for entry, _, estimate in sorted(points, key=lambda point: (point[1], point[2].value)):
        if estimate.value < least:
            best.append(entry)
            least = estimate.value
    return best


def _machine(hardware: Mapping[str, Any] | None) -> str | None:
    """A machine in words."""
    if not hardware:
        return None
    where = hardware["cpu"] if hardware["device"] == "cpu" else hardware["device"]
    return f"{where}, {hardware['threads']} threads"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(value: object) -> str:
    text = f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= 16 else text[:8]
