"""The scores of a run as it goes: lines of ``metrics.jsonl``, and a plot of them."""

from collections.abc import Callable
from pathlib import Path

from pocketdiff import plots
from pocketdiff.cli.classifiers import pick_classifiers
from pocketdiff.cli.console import Work
from pocketdiff.cli.flags import UsageError
from pocketdiff.cli.records import MetricsLog
from pocketdiff.data import Dataset
from pocketdiff.evaluate.reference import LEAST, Reference
from pocketdiff.evaluate.report import NAMES
from pocketdiff.evaluate.score import draw, score
from pocketdiff.files import write_file
from pocketdiff.generate import DiffusionModel

PLOTTED = ("frechet_train", "accuracy", "recall")


class Scoring:
    """Scores the model as it stands, each time on images of the same labels and seeds.

    Args:
        data: What it is trained on.
        model: The model that is being trained.
        log: Where the scores go. A step whose score is there is not scored again.

    Raises:
        UsageError: If the images asked for are too few.
        EvaluationError: If the training images are.
    """

    def __init__(self, data: Dataset, model: DiffusionModel, log: MetricsLog) -> None:
        self.model, self.log = model, log
        self.every, self.n = model.config.evaluate_every, model.config.evaluate_images
        self.length = model.config.length(len(data.train))
        if self.every is None:
            return
        if self.n < LEAST:
            raise UsageError(f"--evaluate-images {self.n}: a sound score needs {LEAST} or more")
        classifiers = pick_classifiers(data)
        with Work() as work:
            self.reference = Reference.of(data, classifiers, memorization=False, track=work)

    def due(self, before: int, after: int) -> bool:
        """Whether a score is due when ``after`` images are seen, after ``before`` of them at the step before."""
        return self.every is not None and (before // self.every < after // self.every or after == self.length)

    def work(self, seen: int) -> int:
        """How many images the network has still to be asked about, when ``seen`` images are seen."""
        if self.every is None:
            return 0
        times = -(-self.length // self.every) - seen // self.every
        sampling = self.model.config.sampling
        return times * self.n * (1 if sampling.scale == 1 else 2) * (len(self.model.grid()) - 1)

    def score(self, step: int, seen: int, note: Callable[[str], None]) -> None:
        """Draws images, scores them and writes the score down, telling of the progress."""
        if any(line["step"] == step for line in self.log.scores()):
            return

        def track(what: str, done: int, total: int) -> None:
            note(f"scoring: {what}, {done:,} of {total:,}")

        sample = draw(self.model, self.reference, self.n, 0, track=track)
        metrics = score(sample, self.reference, track=track).metrics
        figures = {name: estimate.value for name, estimate in metrics.items() if estimate is not None}
        self.log.add_score({"step": step, "seen": seen, "evaluation": {"n": self.n, **figures}})

    def plot(self, folder: Path) -> list[Path]:
        """Draws the scores over the images seen; the path of the picture, if there are any scores."""
        lines = self.log.scores()
        if not lines:
            return []
        path = folder / "scores.png"
        panels = [(NAMES[name], {"": [(line["seen"], line["evaluation"][name]) for line in lines]}) for name in PLOTTED]
        write_file(path, plots.png(plots.lines(panels, "images seen")))
        return [path]
