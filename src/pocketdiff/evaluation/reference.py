"""The reference of a score: features of a data set, and the distances between its test and training splits."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pocketdiff import rng
from pocketdiff.data import Dataset
from pocketdiff.evaluation.classifiers import MIN_IMAGES, Classifiers, features
from pocketdiff.evaluation.distances import Gaussian
from pocketdiff.evaluation.memorization import Nearest, NearestImages, Nearness, nearest_features
from pocketdiff.progress import Progress, silent

Chunk = TypeVar("Chunk", Tensor, Nearest)


class Choice(IntEnum):
    """What a subset is for; choices for different purposes are independent."""

    TRAIN = 0
    TEST = 1
    CAS = 2
    SHOWN = 3
    GIVEN = 4


def choose(total: int, n: int, purpose: Choice, seed: int = 0) -> Int[Tensor, " m"]:
    """Random indices of n of ``total`` images (all if there are fewer), in increasing order."""
    return rng.permutation(seed, rng.Stream.SAMPLE, purpose, total)[:n].sort().values


def gathered(chunks: Iterable[Chunk], what: str, total: int, progress: Progress) -> list[Chunk]:
    """All chunks as a list; reports the progress."""
    done, found = 0, []
    progress(what, 0, total)
    for chunk in chunks:
        found.append(chunk)
        done += len(chunk if isinstance(chunk, Tensor) else chunk.distance)
        progress(what, done, total)
    return found


def prefixed(progress: Progress, prefix: str, what: str, done: int, total: int) -> None:
    """Reports progress under a longer name."""
    progress(prefix + what, done, total)


@dataclass(frozen=True)
class Memory:
    """The training images to search for copies, and how near the test images are to them."""

    images: NearestImages
    pixels: Nearness
    features: Nearness


@dataclass(frozen=True)
class Reference:
    """What images are scored against; one reference serves any number of scores."""

    data: Dataset
    classifiers: Classifiers
    train_features: Float[Tensor, "n d"]
    train: Gaussian
    test: Gaussian | None
    """None if there are fewer than `MIN_IMAGES` test images."""
    memory: Memory | None
    """None if it was not requested, or if there are fewer than `MIN_IMAGES` test images."""
    baselines: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False)
    """Scores of `real_baseline`, which are computed once for each number of images and seed."""

    @classmethod
    def of(
        cls, data: Dataset, classifiers: Classifiers, memorization: bool = True, progress: Progress = silent
    ) -> "Reference":
        """The reference of a data set; with ``memorization`` it finds each test image's nearest training image.

        Raises EvaluationError if there are fewer than `MIN_IMAGES` training images, or all of them are equal.
        """
        net = classifiers.features.net
        train, test = (
            torch.cat(gathered(features(net, part.pixels), f"features of the {name} split", len(part), progress))
            for name, part in (("training", data.train), ("test", data.test))
        )
        memory, few = None, len(test) < MIN_IMAGES
        if memorization and not few:
            images, what = NearestImages(data.train.pixels), "nearest training image of each test image"
            pixels = Nearest.joined(gathered(images.of(data.test.pixels), what, len(test), progress))
            both = (Nearness.of(nearest, data.train.labels) for nearest in (pixels, nearest_features(test, train)))
            memory = Memory(images, *both)
        return cls(data, classifiers, train, Gaussian.of(train), None if few else Gaussian.of(test), memory)

    def train_part(self, n: int) -> Int[Tensor, " m"]:
        """Indices of n training images to compare with, or of all of them; always the same."""
        return choose(len(self.train_features), n, Choice.TRAIN)

    def test_part(self, n: int) -> Int[Tensor, " m"]:
        """Indices of n test images for the real baseline, or of all of them; always the same."""
        return choose(len(self.data.test), n, Choice.TEST)
