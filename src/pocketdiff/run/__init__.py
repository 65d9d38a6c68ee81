"""A training run and its folder."""

from pocketdiff.run.run import Run

__all__ = ["Run"]
