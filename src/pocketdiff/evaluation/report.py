"""What an evaluation says: as JSON, as a table, and as one HTML page that asks for nothing outside itself."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pocketdiff import pictures, plots, rng
from pocketdiff.data import DataInfo
from pocketdiff.evaluate.distances import Estimate, share_estimate
from pocketdiff.evaluate.memorization import QUANTILE
from pocketdiff.evaluate.reference import Part, Reference
from pocketdiff.evaluate.score import Metrics, Sample, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "frechet_train": "Fréchet distance to the training split",
    "frechet_test": "Fréchet distance to the test split",
    "frechet_classes": "Fréchet distance within classes, mean",
    "kernel_train": "kernel distance to the training split",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "accuracy": "label accuracy",
    "cas": "train on these, test on real",
    "cas_real": "train on as many real, test on real",
    "memorized_share": "near a training image, in pixels",
    "memorized_share_features": "near a training image, in features",
}
"""The figures, in the order of a table."""
MEANINGS = {
    "frechet_train": "of the normal distributions fitted to both sets' features; 0 is best",
    "frechet_test": "the same, to images the model never saw",
    "frechet_classes": "each class against its own; tells wrong labels, which the two above cannot",
    "kernel_train": "0 on average where both sets are drawn from one distribution; may be a little below",
    "precision": "share of the images that lie where real ones do",
    "recall": "share of the real images that lie where these do: variety",
    "density": "how crowded with real images the places are where these lie; about 1 for real ones",
    "coverage": "share of the real images that have one of these for a neighbour",
    "accuracy": "share that a second, independent network reads as its label",
    "cas": "share of the real test split that a network reads right which learned from these images alone",
    "cas_real": "the same, of a network that learned from as many real images",
    "memorized_share": "share as near as 1% of real test images are, by what is usual in a class, shifts allowed",
    "memorized_share_features": "the same in features",
}
_SHARES = {
    "precision", "recall", "coverage", "accuracy", "cas", "cas_real", "memorized_share", "memorized_share_features",
}  # fmt: skip
_PAIRS = 10
_SHOWN = 40
_IN_CLASS = 8
_ROWS = 8
_COLUMNS = 20
_FEW = 30
"""The most classes whose confusion matrix is shown."""
SWEPT = ("frechet_train", "accuracy", "precision", "recall", "density", "coverage")
"""The figures that a sweep's table shows."""
ENOUGH = 0.985
"""The label accuracy that a sweep's best trial must have."""


class Picture(NamedTuple):
    """A PNG file within a page."""

    data: str
    """In base64."""
    alt: str
    width: int
    """As it is shown."""

    @classmethod
    def of(cls, png: bytes, alt: str, width: int) -> "Picture":
        """A file's content as a picture."""
        return cls(base64.b64encode(png).decode(), alt, width)


@dataclass(frozen=True)
class Evaluation:
    """Images, their score, and all that it must be read beside."""

    sample: Sample
    reference: Reference
    score: Score
    floor: Score | None
    """What as many real images score; None where there are too few."""
    controls: Mapping[str, Score]
    frame: Mapping[str, Any]

    def verdict(self) -> str | None:
        """Whether the images come suspiciously near to training images, in a sentence; None if they do not."""
        share, memory = self.score.metrics["memorized_share"], self.reference.memory
        if share is None or memory is None:
            return None
        if share.low <= share_estimate(memory.pixels.near(memory.pixels.test)).high:
            return None
        return (
            f"{share.value:.2%} of the images are as near to a training image as {QUANTILE:.0%} of real test images "
            "are: look at the closest pairs for copies"
        )

    def json(self) -> dict[str, Any]:
        """Numbers as numbers, and null for what the images do not allow."""
        floors = {row.name: row for row in self.floor.classes} if self.floor else {}
        return {
            "metrics": values_of(self.score.metrics),
            "intervals": intervals_of(self.score.metrics),
            "floor": values_of(self.floor.metrics) if self.floor else {},
            "controls": {name: values_of(control.metrics) for name, control in self.controls.items()},
            "per_class": {
                row.name: {
                    "images": row.images,
                    "frechet_train": value_of(row.frechet_train),
                    "frechet_train_interval": row.frechet_train and list(row.frechet_train[1:]),
                    "frechet_train_floor": value_of(floors[row.name].frechet_train) if row.name in floors else None,
                    "accuracy": row.accuracy.value,
                    "accuracy_interval": list(row.accuracy[1:]),
                    "read_as": row.read_as,
                }
                for row in self.score.classes
            },
            "frame": dict(self.frame),
        }

    def table(self) -> str:
        """The figures as plain text."""
        floor = self.floor.metrics if self.floor else {}
        header = ["", "figure", "95% interval", _real(self.frame), *(name.replace("_", " ") for name in self.controls)]
        rows = [
            [row["name"], row["value"], row["interval"], row["floor"], *row["controls"]]
            for row in _rows(self.score.metrics, floor, self.controls)
        ]
        caution = fewer(self.frame)
        return f"{_headline(self.frame)}\n\n{_aligned([header, *rows])}\n" + (f"\n{caution}\n" if caution else "")

    def page(self) -> str:
        """The whole evaluation as one HTML page."""
        scored, sample, info = self.score, self.sample, self.reference.data.info
        by_realism = scored.realism.argsort()
        few = len(info.classes) <= _FEW
        return render(
            "report.html",
            title=f"pocketdiff evaluate {self.frame['target']}",
            headline=_headline(self.frame),
            verdict=self.verdict(),
            real=_real(self.frame),
            fewer=fewer(self.frame),
            controls=[name.replace("_", " ") for name in self.controls],
            rows=_rows(scored.metrics, self.floor.metrics if self.floor else {}, self.controls),
            grid=grid(sample, info),
            classes=self._classes(),
            confusion=_confusion(scored.confusion, info.classes) if scored.confusion is not None and few else None,
            best=_strip(sample.pixels[by_realism.flip(0)[:_SHOWN]], info, "the most real images"),
            worst=_strip(sample.pixels[by_realism[:_SHOWN]], info, "the least real images"),
            misread=self._misread(),
            memory=self._memory(),
            frame=written_frame(self.frame),
        )

    def _classes(self) -> list[dict[str, Any]]:
        """A row for each class."""
        info, labels = self.reference.data.info, self.sample.labels
        floors = {row.name: row.frechet_train for row in self.floor.classes} if self.floor else {}
        return [
            {
                "name": row.name,
                "images": f"{row.images:,}",
                "strip": _strip(
                    self.sample.pixels[labels == info.classes.index(row.name)][:_IN_CLASS], info, f"class {row.name}"
                ),
                "distance": written("frechet_train", value_of(row.frechet_train)),
                "interval": interval("frechet_train", row.frechet_train),
                "floor": written("frechet_train", value_of(floors.get(row.name))),
                "accuracy": written("accuracy", row.accuracy.value),
                "wrong": ", ".join(
                    f"{name} ({count})"
                    for name, count in sorted(row.read_as.items(), key=lambda item: -item[1])[:4]
                    if name != row.name
                ),
            }
            for row in self.score.classes
        ]

    def _misread(self) -> list[dict[str, Any]]:
        """Images that are read as another class, the least real first."""
        info, labels = self.reference.data.info, self.sample.labels
        if labels is None:
            return []
        wrong = (self.score.read != labels).nonzero()[:, 0]
        wrong = wrong[self.score.realism[wrong].argsort()][:_SHOWN]
        return [
            {
                "picture": _picture(self.sample.pixels[i][None], 1, info, "a misread image", 2),
                "caption": f"{info.classes[int(labels[i])]}, read as {info.classes[int(self.score.read[i])]}",
            }
            for i in wrong.tolist()
        ]

    def _memory(self) -> dict[str, Any] | None:
        """The closest pairs, and how near all images come."""
        nearest, memory, data = self.score.nearest, self.reference.memory, self.reference.data
        if nearest is None or memory is None:
            return None
        pairs, relative = [], memory.pixels.relative(nearest)
        for i in relative.argsort(stable=True)[:_PAIRS].tolist():
            both = torch.stack([self.sample.pixels[i], data.train.pixels[int(nearest.which[i])]])
            picture = _picture(both, 1, data.info, "an image above its nearest training image", 2)
            pairs.append({"picture": picture, "caption": f"{float(nearest.distance[i]):.1f}"})
        test = memory.pixels.relative(memory.pixels.test)
        curves = {"these images": _thinned(relative), "real test images": _thinned(test)}
        across = "distance to the nearest training image; 1: usual"
        return {"pairs": pairs, "plot": plots.svg(plots.shares_below(curves, across, memory.pixels.threshold))}


class Trial(NamedTuple):
    """One way of sampling in a sweep."""

    drawn: Mapping[str, Any]
    """What is to be said of its images: sampler, steps, scale, network evaluations, seconds."""
    metrics: Metrics
    some: UInt8[Tensor, "m c h w"]
    """A few of the images, of the same labels and seeds in every trial."""

    def line(self) -> str:
        """Its main figures in words."""
        figures = (
            f"{NAMES[name]} {written(name, value_of(self.metrics[name]))}" for name in ("frechet_train", "accuracy")
        )
        return f"{self.name}: {', '.join(figures)}"

    @property
    def name(self) -> str:
        """The way in words."""
        return f"{self.drawn['sampler']}, {self.drawn['steps']} steps, scale {self.drawn['scale']:g}"


@dataclass(frozen=True)
class Sweep:
    """A model sampled in many ways, all scored alike."""

    reference: Reference
    trials: Sequence[Trial]
    floor: Score | None
    frame: Mapping[str, Any]

    def best(self) -> Trial | None:
        """The trial with the least distance of those with a label accuracy of `ENOUGH`; None if there is none."""
        accurate = [trial for trial in self.trials if (value_of(trial.metrics["accuracy"]) or 0.0) >= ENOUGH]
        return min(accurate, key=lambda trial: value_of(trial.metrics["frechet_train"]) or math.inf, default=None)

    def json(self) -> dict[str, Any]:
        """Every trial with its metrics and intervals."""
        return {
            "trials": [
                {**trial.drawn, "metrics": values_of(trial.metrics), "intervals": intervals_of(trial.metrics)}
                for trial in self.trials
            ],
            "floor": values_of(self.floor.metrics) if self.floor else {},
            "frame": dict(self.frame),
        }

    def table(self) -> str:
        """The figures as plain text."""
        header = ["sampling", "evaluations", *SWEPT]
        rows = [
            [trial.name, f"{trial.drawn['network_evaluations']:g}"]
            + [written(name, value_of(trial.metrics[name])) for name in SWEPT]
            for trial in self.trials
        ]
        if self.floor:
            rows.append(["real images", "", *(written(name, value_of(self.floor.metrics[name])) for name in SWEPT)])
        text = f"{_headline(self.frame)}\n\n{_aligned([header, *rows])}\n"
        best = self.best()
        return f"{text}\n{_BEST}: {best.name}" if best else text

    def page(self) -> str:
        """The sweep as one HTML page."""
        info, best = self.reference.data.info, self.best()
        return render(
            "report.html",
            title=f"pocketdiff evaluate {self.frame['target']}",
            headline=_headline(self.frame),
            best=best and f"{_BEST}: {best.name}",
            plot=plots.svg(self.plot()),
            swept=[NAMES[name].removesuffix(" to the training split") for name in SWEPT],
            trials=[
                {
                    "name": trial.name,
                    "evaluations": f"{trial.drawn['network_evaluations']:g}",
                    "cells": [
                        (written(name, value_of(trial.metrics[name])), interval(name, trial.metrics[name]))
                        for name in SWEPT
                    ],
                    "strip": _strip(trial.some, info, "some of its images"),
                }
                for trial in self.trials
            ],
            frame=written_frame(self.frame),
        )

    def plot(self) -> "Figure":
        """Distance, accuracy and recall over the steps, or over the scale where the steps are one."""
        over_steps = len({trial.drawn["steps"] for trial in self.trials}) > 1
        panels: list[tuple[str, dict[str, list[tuple[int | float, float]]]]] = []
        for name in ("frechet_train", "accuracy", "recall"):
            curves: dict[str, list[tuple[int | float, float]]] = {}
            for trial in self.trials:
                steps, scale = trial.drawn["steps"], trial.drawn["scale"]
                fixed = f"scale {scale:g}" if over_steps else f"{steps} steps"
                if (value := value_of(trial.metrics[name])) is not None:
                    curve = curves.setdefault(f"{trial.drawn['sampler']}, {fixed}", [])
                    curve.append((steps if over_steps else scale, value))
            panels.append((NAMES[name], curves))
        floor = self.floor.metrics if self.floor else {}
        marks = {NAMES[name]: estimate.value for name, estimate in floor.items() if name in NAMES and estimate}
        return plots.lines(panels, "steps" if over_steps else "guidance scale", marks)


_BEST = f"least distance with a label accuracy of {ENOUGH:.1%} or more"


def written(name: str, value: float | None) -> str:
    """A figure as it is shown."""
    if value is None:
        return ""
    if name in _SHARES:
        return f"{value:.2%}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 0.01 else f"{value:.4f}"


def interval(name: str, estimate: Estimate | None) -> str:
    """A figure's interval as it is shown."""
    return "" if estimate is None else f"{written(name, estimate.low)} to {written(name, estimate.high)}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _rows(metrics: Metrics, floor: Metrics, controls: Mapping[str, Score]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "meaning": MEANINGS[key],
            "value": written(key, estimate.value),
            "interval": interval(key, estimate),
            "floor": written(key, value_of(floor.get(key))),
            "controls": [written(key, value_of(control.metrics.get(key))) for control in controls.values()],
        }
        for key, name in NAMES.items()
        if (estimate := metrics.get(key)) is not None
    ]


def _thinned(values: Tensor) -> list[tuple[int | float, float]]:
    """At most a few hundred points (x, share of the values up to x), dense where the share is small."""
    ordered = values.sort().values
    ranks = np.unique(np.geomspace(1, len(ordered), 200).round().astype(int))
    return [(float(ordered[rank - 1]), rank / len(ordered)) for rank in ranks.tolist()]


def _confusion(confusion: Int[Tensor, "k k"], names: tuple[str, ...]) -> dict[str, Any]:
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    return {
        "names": names,
        "rows": [
            (name, [(count, f"{float(share) ** 0.5:.3f}") for count, share in zip(counts.tolist(), row, strict=True)])
            for name, counts, row in zip(names, confusion, shares, strict=True)
        ],
    }


def grid(sample: Sample, info: DataInfo, zoom: int = 2) -> Picture:
    """A column of images for each class that there is, chosen at random; just some images where there are no labels."""
    order = rng.permutation(0, rng.Stream.SAMPLE, Part.SHOWN, len(sample))
    if sample.labels is None:
        return _picture(sample.pixels[order[: 10 * _ROWS]], 10, info, "images", zoom)
    labels, counts = sample.labels.unique(return_counts=True)
    rows = min(_ROWS, int(counts.max()))
    columns = [order[sample.labels[order] == label][:rows] for label in labels[counts >= rows][:_COLUMNS]]
    return _picture(sample.pixels[torch.stack(columns, 1).flatten()], len(columns), info, "images of each class", zoom)


def _strip(images: UInt8[Tensor, "n c h w"], info: DataInfo, alt: str) -> Picture:
    return _picture(images, min(20, len(images)), info, alt, 1)


def _picture(images: UInt8[Tensor, "n c h w"], columns: int, info: DataInfo, alt: str, zoom: int) -> Picture:
    """Images as a PNG file within the page, shown ``zoom`` times as large."""
    picture = pictures.tile(images, columns, info.ink)
    return Picture.of(pictures.png(picture), alt, picture.width * zoom)


def _real(frame: Mapping[str, Any]) -> str:
    """The name of the column of real images' figures."""
    return f"{frame['floor_images']:,} real images"


def fewer(frame: Mapping[str, Any]) -> str | None:
    """A word of caution where there are fewer real images than images."""
    if frame["floor_images"] >= frame["n"]:
        return None
    return (
        f"the test split holds {frame['floor_images']:,} images, and fewer images are farther from the training split: "
        f"for a fair comparison take --n {frame['floor_images']}"
    )


def _headline(frame: Mapping[str, Any]) -> str:
    words = [f"{frame['n']:,} images", f"seed {frame['seed']}"]
    if frame.get("sampler"):
        words += [
            f"{frame['sampler']}",
            f"{frame['steps']} steps",
            f"scale {frame['scale']:g} (w = {frame['scale'] - 1:g})",
        ]
    words.append(
        f"against {frame['data']} with {frame['feature_network']} and {frame['label_network']}, which reads "
        f"{frame['label_network_accuracy']:.2%} of the test split right"
    )
    return ", ".join(words)


def written_frame(frame: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts as names and words; those that are not known are left out."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(part)}" for key, part in value.items())
        return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)

    return [(key.replace("_", " "), text(value)) for key, value in frame.items() if value is not None]


def render(template: str, **content: Any) -> str:
    """A page of one of the templates in this folder."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)


def value_of(estimate: Estimate | None) -> float | None:
    """A figure without its interval; None if there is none."""
    return None if estimate is None else estimate.value


def values_of(metrics: Metrics) -> dict[str, float | None]:
    """Figures without their intervals."""
    return {name: value_of(estimate) for name, estimate in metrics.items()}


def intervals_of(metrics: Metrics) -> dict[str, list[float]]:
    """The intervals of the figures that there are."""
    return {name: list(estimate[1:]) for name, estimate in metrics.items() if estimate is not None}
