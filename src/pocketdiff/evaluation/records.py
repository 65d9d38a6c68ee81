"""What evaluations write as JSON: frozen models, the same for the writer and the reader."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation.distances import Estimate
from pocketdiff.frozen import Frozen, Sha256, Text
from pocketdiff.model import SamplingFacts
from pocketdiff.records import Amount, Count, Hardware, Summary, Versions

Finite = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
"""A number whose sums and squares are finite too."""
Interval = tuple[Finite, Finite]
"""A 95% confidence interval: low, high."""
Values = dict[Text, Finite | None]
"""A value by metric; null if the images do not allow it."""
Metrics = dict[str, Estimate | None]
"""The same with intervals."""


def printable(text: str) -> str:
    """The text with a question mark for each character that cannot be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def values_of(metrics: Metrics) -> Values:
    """The values without their intervals."""
    return {key: estimate and estimate.value for key, estimate in metrics.items()}


def metered(metrics: Metrics) -> dict[str, Any]:
    """The fields of a `Metered`."""
    intervals = {key: estimate[1:] for key, estimate in metrics.items() if estimate is not None}
    return {"metrics": values_of(metrics), "intervals": intervals}


class Metered(Frozen):
    """Values of metrics, and the interval of each value that is not null."""

    metrics: Values
    intervals: dict[Text, Interval]

    @model_validator(mode="after")
    def _ordered(self) -> "Metered":
        for key, value in self.metrics.items():
            low, high = self.intervals.get(key, (1.0, 0.0))
            if value is not None and not low <= value <= high:
                raise ValueError(f"the value of {key} is not inside an interval")
        return self

    def estimate(self, key: str) -> Estimate | None:
        """The value of a metric with its interval."""
        value = self.metrics.get(key)
        return None if value is None else Estimate(value, *self.intervals[key])


class Network(Frozen):
    """A classifier behind the metrics, and its accuracy on the test split."""

    name: Text
    sha256: Sha256
    accuracy: Amount


class Drawing(Frozen):
    """How a model drew the images, and how long it took."""

    how: Text
    sampling: SamplingFacts
    seconds: Amount
    hardware: Hardware


class Provenance(Frozen):
    """Where a score comes from: everything needed to reproduce it."""

    target: Text
    n: Annotated[int, Field(ge=1, lt=2**31)]
    seed: Count
    drawing: Drawing | None
    """None for images that were not drawn here."""
    data: Text
    data_sha256: Sha256
    train_images: Count
    test_images: Count
    feature_network: Network
    label_network: Network
    k: Count
    """Neighbourhood size."""
    compared_with: Count
    """Training images behind precision, recall, density, coverage and the kernel distance."""
    baseline_images: Count
    """Test images behind the real baseline."""
    seconds: Amount
    """Time for drawing and scoring."""
    hardware: Hardware
    versions: Versions

    def headline(self, images: str = "images", drawn: bool = True) -> str:
        """What was scored, and against what, in one line; ``drawn``: and how it was drawn."""
        how = [self.drawing.how] if drawn and self.drawing else []
        words = [f"{self.n:,} {images}", f"seed {self.seed}", *how]
        networks = f"{self.feature_network.name} and {self.label_network.name}"
        reads = f"which classifies {self.label_network.accuracy:.2%} of the test split correctly"
        return ", ".join([*words, f"against {self.data} with {networks}, {reads}"])

    def caution(self) -> str:
        """A sentence if the real baseline has fewer images; else nothing."""
        if (few := self.baseline_images) >= self.n:
            return ""
        remedy = f"for a fair comparison use n = {few} (--n {few})"
        return f"The test split has only {few:,} images, and distances grow as n shrinks: {remedy}."


class ClassRecord(Metered):
    """The score of the images of one class."""

    images: Count
    read_as: dict[Text, Count]
    """How many of the images the reader assigns to each class, without zeros."""
    real_baseline: Values
    """What the real images of the class score; empty if there are too few."""


class UsefulnessRow(Metered):
    """Test accuracies of classifiers trained on ``real`` images alone, on ``jittered`` ones (shifted and rotated), and
    on real plus ``generated`` ones: means over the subsets, with intervals that cover those of all subsets.
    """

    per_class: Count | None
    """Real images of each class; None: all."""
    images: Count
    """Real images in all."""
    subsets: Count
    """How often the real images were chosen anew."""


class Usefulness(Frozen):
    """Whether generated data help a classifier."""

    rows: list[UsefulnessRow]
    generated: Count
    """Generated images in each training with them."""
    left_out: tuple[Count, ...]
    """Images per class of rows that a class has too few images for."""

    def table(self) -> list[list[str]]:
        """The accuracies with their intervals, a row for each number of real images."""
        rows = [["real images", "alone", "shifted and rotated", f"with {self.generated:,} generated"]]
        for row in self.rows:
            name = f"all {row.images:,}" if row.per_class is None else f"{row.per_class:,} per class"
            found = [row.estimate(key) for key in ("real", "jittered", "generated")]
            rows.append([name, *(f"{e.value:.2%} ({e.low:.2%} to {e.high:.2%})" for e in found if e is not None)])
        return rows

    def explanation(self) -> str:
        """How to read the table."""
        words = ["Accuracy on the real test split, with 95% intervals."]
        if self.left_out:
            words.append(f"Not tried: {' and '.join(map(str, self.left_out))} per class, because a class has fewer.")
        words.append(
            "A model that learned from all training images passes on knowledge of all. So rows with a number per class "
            "answer: what do these real images plus the model give? Only the last row is without this advantage."
        )
        return " ".join(words)


class ScoreFile(Metered):
    """What ``evaluate --json`` writes."""

    real_baseline: Values
    """What as many real images score; empty if there are too few."""
    controls: dict[Text, Values]
    per_class: dict[Text, ClassRecord]
    """Empty without labels."""
    usefulness: Usefulness | None = None
    """Whether the images help a classifier; None if it was not tried."""
    provenance: Provenance
    verdict: Text = ""
    """How near the images are to real ones, and what to try."""

    @classmethod
    def read(cls, path: Path) -> "ScoreFile":
        """Reads a file.

        Raises:
            EvaluationError: If there is no such file, or it is not a score.
        """
        try:
            record = cls.model_validate_json(path.read_bytes())
            json.dumps(record.model_dump(mode="json"), allow_nan=False)  # Numbers of any field must be finite.
        except ValueError as error:
            fault = str(error)
            if isinstance(error, ValidationError):
                first = error.errors(include_input=False, include_context=False)[0]
                fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            fault = printable(fault)[:200]
            raise EvaluationError(f"{path}: is not what evaluate --json writes for one model ({fault})") from error
        except OSError as error:
            fault = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise EvaluationError(f"{path}: {fault}; give a run, a model file or a file of evaluate --json") from error
        return record


class TrialRecord(Metered):
    """One way of sampling in a sweep."""

    drawing: Drawing


class SweepFile(Frozen):
    """What ``evaluate --json`` writes for a sweep."""

    trials: list[TrialRecord]
    real_baseline: Values
    provenance: Provenance


class RunRecord(ScoreFile):
    """One of the models in a comparison."""

    costs: dict[str, int | float | str | None]
    training: Summary | None
    """The run's own summary."""


class Difference(Frozen):
    """The difference of a metric between two runs: the first minus the second."""

    metric: Text
    runs: tuple[Text, Text]
    difference: Finite
    interval: Interval
    significant: bool
    """Whether the interval excludes 0."""


class ComparisonFile(Frozen):
    """What ``compare --out`` writes as JSON."""

    runs: dict[Text, RunRecord]
    differences: list[Difference]
    pareto_fronts: dict[str, list[Text]]
    """By cost: the runs that no other run beats in both cost and distance."""
    how_to_read: dict[str, str]
    """One sentence per metric."""
    notes: list[str]
