"""Sweeps: one model with several sampling settings, all scored alike."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from pocketdiff import plots
from pocketdiff.data import DataInfo, Dataset
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation.classifiers import Classifiers, find_or_train_classifiers
from pocketdiff.evaluation.pages import aligned, picture, render
from pocketdiff.evaluation.records import SweepFile, TrialRecord, metered, values_of
from pocketdiff.evaluation.reference import Reference, prefixed
from pocketdiff.evaluation.report import provenance_of
from pocketdiff.evaluation.sample import Sample, check_request
from pocketdiff.evaluation.score import MAIN, METRICS, all_metrics, real_baseline, score
from pocketdiff.model import ImageModel
from pocketdiff.progress import Progress, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
ENOUGH = 0.985
"""The label accuracy that the best trial must reach."""
_SHOWN = 20
"""The most images of a trial on a page."""


@dataclass(frozen=True)
class Sweep:
    """A model with several sampling settings, all scored with the same labels and seeds."""

    record: SweepFile
    """All values, as the JSON file holds them."""
    images: Sequence[UInt8[Tensor, "m c h w"]]
    """A few images of each trial."""
    info: DataInfo

    def best(self) -> TrialRecord | None:
        """The trial with the smallest distance among those with a label accuracy of `ENOUGH`; None if there is none."""
        accurate = [trial for trial in self.record.trials if (trial.metrics["accuracy"] or 0.0) >= ENOUGH]
        return min(accurate, key=lambda trial: trial.metrics["frechet_train"] or math.inf, default=None)

    def verdict(self) -> str:
        """The best trial in a sentence, if there is one."""
        words = f"smallest distance with a label accuracy of {ENOUGH:.1%} or more"
        return "" if (best := self.best()) is None else f"The {words}: {best.drawing.how}."

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
        parts = [p.headline("images each"), aligned(rows), p.caution(), self.verdict()]
        return "\n\n".join(filter(None, parts)) + "\n"

    def page(self) -> str:
        """The sweep as a self-contained HTML page."""
        strips = [picture(images, self.info, "some of its images") for images in self.images]
        p, plot = self.record.provenance, plots.svg(self.plot())
        return render("sweep.html", record=self.record, provenance=p, verdict=self.verdict(), strips=strips, plot=plot)

    def plot(self) -> "Figure":
        """The main metrics over the steps, or over the scale if all trials have the same number of steps."""
        x = "steps" if len({trial.drawing.sampling.steps for trial in self.record.trials}) > 1 else "scale"
        panels = []
        for key in MAIN:
            curves: dict[str, list[tuple[int | float, float]]] = {}
            for trial in self.record.trials:
                other_settings = ", ".join(part for part in trial.drawing.how.split(", ") if x not in part)
                if (value := trial.metrics[key]) is not None:
                    curve = curves.setdefault(other_settings, [])
                    curve.append((getattr(trial.drawing.sampling, x), value))
            panels.append((METRICS[key].name, curves))
        real = {METRICS[key].name: value for key in MAIN if (value := self.record.real_baseline.get(key)) is not None}
        return plots.lines(panels, {"steps": "steps", "scale": "guidance scale"}[x], real)


def sweep(
    models: Sequence[ImageModel], data: Dataset, *, n: int = 10_000, seed: int = 0, name: str = "",
    classifiers: Classifiers | None = None, cache: Path | None = None, progress: Progress = silent,
) -> Sweep:  # fmt: skip
    """Scores a model with several sampling settings, each time with the same labels and seeds.

    Example:
        >>> model, data = pd.load("runs/laptop"), pd.load_data("mnist")
        >>> settings = [model.sampling.model_copy(update={"scale": scale}) for scale in (1.0, 1.5, 2.0)]
        >>> print(sweep([pd.with_sampling(model, way) for way in settings], data, n=2000).table())

    Args:
        models: The same model with each of the settings.
        data: As in `evaluate`, as are the other arguments.
        n: Number of images for each of the settings.
        seed: Of the images and of the bootstrap.
        name: What the report calls the model.
        classifiers: Those of the data set.
        cache: A folder for trained classifiers.
        progress: Called while it works.

    Raises:
        EvaluationError: If a model has no sampling settings, or no sound score is possible.
    """
    began = time.perf_counter()
    for model in models:
        check_request(model, data, n, seed, name)
        if model.sampling is None:
            raise EvaluationError("a model without sampling settings cannot be swept; use evaluate")
    nets = classifiers or find_or_train_classifiers(data, cache, progress)
    reference = Reference.of(data, nets, memorization=False, progress=progress)
    trials, images = [], []
    for number, model in enumerate(models, 1):
        report = partial(prefixed, progress, f"{number} of {len(models)}, ")
        sample, drawing = Sample.of(model, reference, n, seed, report)
        scored = score(sample, reference, seed, progress=report)
        trials.append(TrialRecord(**metered(scored.metrics), drawing=drawing))
        labels = torch.zeros(n) if sample.labels is None else sample.labels
        images.append(sample.pixels[[int((labels == label).nonzero()[0]) for label in labels.unique()[:_SHOWN]]])
        shown = (f"{METRICS[key].name} {METRICS[key].text(trials[-1].metrics[key])}" for key in MAIN[:2])
        log.info("%s: %s", model.how(), ", ".join(shown))
    real = real_baseline(reference, n, seed, progress)
    provenance = provenance_of(name or "model", reference, n, seed, None, began)
    record = SweepFile(trials=trials, real_baseline=values_of(real.metrics) if real else {}, provenance=provenance)
    return Sweep(record, images, data.info)
