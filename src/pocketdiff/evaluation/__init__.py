"""Scores of generated images: distances to real images in the features of a network made for the data, each with its
confidence interval and beside the score of real images.

>>> data = pd.load_data("mnist")
>>> print(evaluate(pd.load("runs/laptop"), data, n=2000).table())
>>> print(compare(["runs/gan", "runs/laptop"], data, n=2000).table())

`distances` and `memorization` are pure functions of arrays. `classifiers` gives features and reads labels, and `score`
holds the table of metrics. `report` and `comparison` show results as tables, pages and JSON (`records`).
"""

from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation.classifiers import find_or_train_classifiers
from pocketdiff.evaluation.comparison import Comparison, compare
from pocketdiff.evaluation.distances import (
    Estimate,
    frechet_distance,
    frechet_estimate,
    kernel_distance,
    kernel_estimate,
    neighbours,
)
from pocketdiff.evaluation.memorization import NearestImages, nearest_features
from pocketdiff.evaluation.records import ScoreFile
from pocketdiff.evaluation.report import Evaluation, Sweep, evaluate, sweep
from pocketdiff.evaluation.sample import Sample
from pocketdiff.evaluation.score import METRICS, Measurements, Metric

__all__ = [
    "METRICS", "Comparison", "Estimate", "Evaluation", "EvaluationError", "Measurements", "Metric", "NearestImages",
    "Sample", "ScoreFile", "Sweep", "compare", "evaluate", "find_or_train_classifiers", "frechet_distance",
    "frechet_estimate", "kernel_distance", "kernel_estimate", "nearest_features", "neighbours", "sweep",
]  # fmt: skip
