"""Scores that can be believed: of features made for the data, beside real images' own scores, with intervals.

`distances` and `memorization` are pure functions of arrays. `classifiers` gives features and reads labels; `reference`
is a data set as scores see it; `score` puts them together; `report` shows what comes of it.
"""

from pocketdiff.evaluate.distances import (
    EvaluationError,
    frechet_distance,
    frechet_estimate,
    kernel_distance,
    kernel_estimate,
    neighbours,
)
from pocketdiff.evaluate.memorization import NearestImages, nearest_features

__all__ = [
    "EvaluationError", "NearestImages", "frechet_distance", "frechet_estimate", "kernel_distance", "kernel_estimate",
    "nearest_features", "neighbours",
]  # fmt: skip
