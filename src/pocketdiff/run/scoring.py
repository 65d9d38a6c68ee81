"""Scores of a model during its training: lines of ``metrics.jsonl``, and a plot of them."""

import logging
from functools import partial
from pathlib import Path

from pocketdiff import plots
from pocketdiff.config import MethodConfig
from pocketdiff.data import Dataset
from pocketdiff.errors import EvaluationError, SamplingError
from pocketdiff.evaluation.classifiers import MIN_IMAGES, find_or_train_classifiers
from pocketdiff.evaluation.reference import Reference, prefixed
from pocketdiff.evaluation.sample import draw
from pocketdiff.evaluation.score import MAIN, METRICS, Score, real_baseline, score
from pocketdiff.files import write_file
from pocketdiff.folder import RunFolder
from pocketdiff.model import ImageModel
from pocketdiff.progress import Progress
from pocketdiff.run.log import MetricsLog

_log = logging.getLogger(__name__)


class Scoring:
    """Scores a model in training at regular intervals, always on images of the same labels and seeds. A step that has
    a score in ``log`` is not scored again.
    """

    def __init__(self, data: Dataset, model: ImageModel, log: MetricsLog, cache: Path | None, progress: Progress):
        self.model, self.log = model, log
        self.every, self.n = model.config.evaluate_every, model.config.evaluate_images
        self.ends = model.config.ends(len(data.train))
        self.done = 0.0  # Network passes over one image, for all scores so far.
        self._passes = self.n * model.nfe()
        if self.every is None:
            return
        classifiers = find_or_train_classifiers(data, cache, progress)
        self.reference = Reference.of(data, classifiers, memorization=False, progress=progress, cache=cache)
        real = real_baseline(self.reference, self.n, progress=progress)
        self.real_baseline = {} if real is None else _values(real)

    def due(self, before: int, after: int) -> bool:
        """Whether to score after a step, given the images seen before and after it."""
        return self.every is not None and (before // self.every < after // self.every or after in self.ends)

    def passes(self, seen: int) -> int:
        """Network passes over one image for all scores that are due until so many images are seen."""
        if self.every is None:
            return 0
        return (min(seen, self.ends[-1] - 1) // self.every + sum(end <= seen for end in self.ends)) * self._passes

    def score(self, step: int, seen: int, progress: Progress) -> None:
        """Draws images, scores them and logs the score."""
        if any(line["step"] == step for line in self.log.scores()):
            return
        before, report = self.done, partial(prefixed, progress, "scoring: ")

        def drawn(what: str, done: int, total: int) -> None:
            self.done = before + self._passes * done / total
            report(what, done, total)

        try:
            sample = draw(self.model, self.reference, self.n, 0, drawn)
            figures: dict[str, float | str] = {**_values(score(sample, self.reference, progress=report))}
        except (EvaluationError, SamplingError) as error:  # A model early in its training may draw blank images.
            _log.warning("no score at %s images: %s", f"{seen:,}", error)
            figures = {"fault": str(error)}
        evaluation = {"n": self.n, **figures}
        self.log.write({"step": step, "seen": seen, "evaluation": evaluation, "real_baseline": self.real_baseline})

    def plot(self, folder: RunFolder) -> list[Path]:
        """Plots the scores over the images seen; the plot's path, if there are scores."""
        lines = [line for line in self.log.scores() if MAIN[0] in line["evaluation"]]
        if not lines:
            return []
        points = {name: [(line["seen"], line["evaluation"].get(name)) for line in lines] for name in MAIN}
        panels = [(METRICS[name].name, {"": some}) for name, some in points.items() if None not in dict(some).values()]
        marks = {METRICS[name].name: value for name, value in self.real_baseline.items() if name in MAIN}
        write_file(folder.scores_plot, plots.png(plots.lines(panels, "images seen", marks)))
        return [folder.scores_plot]


def check_scoring(config: MethodConfig, data: Dataset) -> None:
    """Raises EvaluationError, before a run, if its scores would have too few images."""
    if config.evaluate_every is not None and min(config.evaluate_images, len(data.train)) < MIN_IMAGES:
        raise EvaluationError(
            f"evaluate_images is {config.evaluate_images:,} and the data have {len(data.train):,} training images; a "
            f"score needs {MIN_IMAGES} or more of both"
        )


def _values(scored: Score) -> dict[str, float]:
    return {name: estimate.value for name, estimate in scored.metrics.items() if estimate is not None}
