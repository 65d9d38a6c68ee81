"""The scores of a run as it goes: lines of ``metrics.jsonl``, and a plot of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketdiff import plots
from pocketdiff.cli.classifiers import check_data, pick_classifiers
from pocketdiff.cli.console import Work, warn
from pocketdiff.cli.flags import UsageError
from pocketdiff.cli.records import MetricsLog
from pocketdiff.config import CommonConfig
from pocketdiff.data import Dataset
from pocketdiff.evaluate.distances import EvaluationError
from pocketdiff.evaluate.reference import LEAST, Reference
from pocketdiff.evaluate.report import NAMES
from pocketdiff.evaluate.score import Score, draw, floor, score
from pocketdiff.files import write_file
from pocketdiff.generate import ImageModel, SamplingError

PLOTTED = ("frechet_train", "accuracy", "recall")


class Scoring:
    """Scores the model as it stands, each time on images of the same labels and seeds.

    Args:
        data: What it is trained on.
        model: The model that is being trained.
        log: Where the scores go. A step whose score is there is not scored again.
    """

    def __init__(self, data: Dataset, model: ImageModel, log: MetricsLog) -> None:
        self.model, self.log = model, log
        self.every, self.n = model.config.evaluate_every, model.config.evaluate_images
        self.length = model.config.length(len(data.train))
        if self.every is None:
            return
        classifiers = pick_classifiers(data)
        with Work() as work:
            self.reference = Reference.of(data, classifiers, memorization=False, track=work)
            real = floor(self.reference, self.n, track=work)
        self.floor = {} if real is None else _values(real)

    def due(self, before: int, after: int) -> bool:
        """Whether a score is due when ``after`` images are seen, after ``before`` of them at the step before."""
        return self.every is not None and (before // self.every < after // self.every or after == self.length)

    def work(self, seen: int) -> int:
        """How many images the network has still to be asked about, when ``seen`` images are seen."""
        if self.every is None:
            return 0
        return (-(-self.length // self.every) - seen // self.every) * self.n * self.model.evaluations()

    def score(self, step: int, seen: int, note: Callable[[str], None]) -> None:
        """Draws images, scores them and writes the score down, telling of the progress."""
        if any(line["step"] == step for line in self.log.scores()):
            return

        def track(what: str, done: int, total: int) -> None:
            note(f"scoring: {what}, {done:,} of {total:,}")

        try:
            figures: dict[str, Any] = _values(score(draw(self.model, self.reference, self.n, 0, track), self.reference))
        except (EvaluationError, SamplingError) as error:  # An early model may draw what no score can be made of.
            warn(f"no score at {seen:,} images: {error}")
            figures = {"fault": str(error)}
        self.log.add_score({"step": step, "seen": seen, "evaluation": {"n": self.n, **figures}, "floor": self.floor})

    def plot(self, folder: Path) -> list[Path]:
        """Draws the scores over the images seen; the path of the picture, if there are any scores."""
        lines = [line for line in self.log.scores() if PLOTTED[0] in line["evaluation"]]
        if not lines:
            return []
        path = folder / "scores.png"
        points = {name: [(line["seen"], line["evaluation"].get(name)) for line in lines] for name in PLOTTED}
        panels = [(NAMES[name], {"": known}) for name, known in points.items() if all(y is not None for _, y in known)]
        marks = {NAMES[name]: value for name, value in self.floor.items() if name in PLOTTED}
        write_file(path, plots.png(plots.lines(panels, "images seen", marks)))
        return [path]


def check_scoring(config: CommonConfig, data: Dataset) -> None:
    """Sees, before a run begins, that it can be scored as it asks to be.

    Raises:
        UsageError: If it asks for too few images.
        EvaluationError: If there are too few training images.
    """
    if config.evaluate_every is None:
        return
    if config.evaluate_images < LEAST:
        raise UsageError(f"--evaluate-images {config.evaluate_images}: a sound score needs {LEAST} or more")
    check_data(data)


def _values(scored: Score) -> dict[str, float]:
    return {name: estimate.value for name, estimate in scored.metrics.items() if estimate is not None}
