"""Scores that can be believed: of features made for the data, beside real images' own scores, with intervals.

`distances` and `memorization` are pure functions of arrays. `classifiers` gives features and reads labels; `reference`
is a data set as scores see it; `score` puts them together; `report` shows what comes of it.
"""

from pocketdiff.evaluate.distances import (
    EvaluationError,
    frechet_distance,
    kernel_distance,
    neighbours,
)

__all__ = ["EvaluationError", "frechet_distance", "kernel_distance", "neighbours"]
