"""Trained models that come with the package: ``NAME.safetensors``, in half precision, and ``models.json`` about them.

``benchmarks/box.py`` makes these files. Every argument that takes a run or a model file also takes the name of a model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketdiff.folder import RunFolder
from pocketdiff.frozen import Frozen, Sha256, Text
from pocketdiff.records import Amount, Count, Summary

FOLDER = Path(__file__).parent
MAX_BYTES = 3_000_000
"""The most that all files together may take."""


class Training(Frozen):
    """A training run behind a model."""

    commands: tuple[Text, ...]
    summary: Summary
    """What the run took, and on which machine."""


class Scores(Frozen):
    """What ``pocketdiff evaluate`` gives for the file, by metric."""

    n: Count
    """Number of images."""
    seed: Count
    metrics: dict[Text, float | None]
    intervals: dict[Text, tuple[float, float]]
    """95% confidence intervals."""
    real_baseline: dict[Text, float | None]
    """What as many real images score."""
    networks: dict[Text, Sha256]
    """The classifiers behind the scores, by name."""
    nfe: Amount
    """Network evaluations per image."""


class ShippedModel(Frozen):
    """Where a model comes from, and how good it is."""

    sha256: Sha256
    """Of the file."""
    training: tuple[Training, ...]
    """The runs; the last one gave the model. Before a distilled model's run comes its teacher's."""
    commit: Text | None
    """Of the package whose presets the commands mean."""
    scores: Scores
    data: Text
    licence: Text

    def facts(self, metrics: Mapping[str, Any]) -> dict[str, str]:
        """The lines of ``pocketdiff info``, with the names of the metrics in the registry ``METRICS``."""
        scores, indent = self.scores, "\n" + 12 * " "
        lines = [f"of {scores.n:,} images, seed {scores.seed}, by {' and '.join(scores.networks)}"]
        for key, metric in metrics.items():
            if (value := scores.metrics.get(key)) is not None:
                real = metric.text(scores.real_baseline.get(key))
                lines.append(f"{metric.name} {metric.text(value)} (real images {real})")
        runs = [training.summary for training in self.training]
        return {
            "made by": indent.join(command for training in self.training for command in training.commands),
            "presets": f"those of commit {self.commit}",
            "training": ", then ".join(f"{run.training_seconds:.0f} s on {run.hardware}" for run in runs),
            "scores": indent.join(lines),
            "licence": f"{self.licence}; trained on {self.data}",
            "sha256": self.sha256,
        }


class Shipped(Frozen):
    """The content of ``models.json``."""

    models: dict[Text, ShippedModel]


def names() -> list[str]:
    """The names of the models."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(target: Path | str) -> Path:
    """The path of a model: an existing run or file, or else the package's own model of that name. A folder that is no
    run, such as one of data, does not hide the model of that name.
    """
    path = Path(target)
    if str(path) not in names() or path.is_file() or RunFolder(path).is_run():
        return path
    return FOLDER / f"{path}.safetensors"


def is_shipped(path: Path | str) -> bool:
    """Whether a path is a file of the package, which nobody may change."""
    return Path(path).resolve().parent == FOLDER.resolve()


def about(path: Path | str) -> ShippedModel | None:
    """What is recorded about one of the package's own model files; None for other paths."""
    if not is_shipped(path):
        return None
    return Shipped.model_validate_json((FOLDER / "models.json").read_bytes()).models.get(Path(path).stem)
