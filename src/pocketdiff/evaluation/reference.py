"""A data set as scores see it: its features, and how near its test split comes to its training split."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pocketdiff import rng
from pocketdiff.data import Dataset
from pocketdiff.evaluate.classifiers import NUM_FEATURES, Classifiers, features
from pocketdiff.evaluate.distances import Gaussian
from pocketdiff.evaluate.memorization import Nearest, NearestImages, Nearness, nearest_features

LEAST = 2 * NUM_FEATURES
"""The fewest images that can be scored."""

Track = Callable[[str, int, int], None]
"""Told how much of a piece of work is done: its name, the images done, the images in all."""
Chunk = TypeVar("Chunk", Tensor, Nearest)


def untracked(_what: str, _done: int, _total: int) -> None:
    """Tells nobody."""


def tracked(chunks: Iterable[Chunk], what: str, total: int, track: Track) -> list[Chunk]:
    """All that comes, with word of the progress."""
    done, gathered = 0, []
    track(what, 0, total)
    for chunk in chunks:
        gathered.append(chunk)
        done += len(chunk if isinstance(chunk, Tensor) else chunk.distance)
        track(what, done, total)
    return gathered


@dataclass(frozen=True)
class Memory:
    """The training images as something to be remembered, and how near to them the test images are."""

    images: NearestImages
    pixels: Nearness
    features: Nearness


@dataclass(frozen=True)
class Reference:
    """What images are scored against; made once for any number of scores."""

    data: Dataset
    classifiers: Classifiers
    train_features: Float[Tensor, "n d"]
    train: Gaussian
    test: Gaussian | None
    """None where there are fewer than `LEAST` test images."""
    memory: Memory | None
    """None where it was not asked for, or where there are too few test images."""

    @classmethod
    def of(
        cls, data: Dataset, classifiers: Classifiers, memorization: bool = True, track: Track = untracked
    ) -> "Reference":
        """Looks at every image of a data set.

        Args:
            data: The data set.
            classifiers: Its own.
            memorization: Whether to look also for each test image's nearest training image.
            track: Told of the progress.

        Raises:
            EvaluationError: If there are fewer than `LEAST` training images, or all are alike.
        """
        net = classifiers.features.net
        train, test = (
            torch.cat(tracked(features(net, part.pixels), f"features of the {name} split", len(part), track))
            for name, part in (("training", data.train), ("test", data.test))
        )
        if len(test) < LEAST:
            return cls(data, classifiers, train, Gaussian.of(train), None, None)
        memory, labels = None, data.train.labels
        if memorization:
            images = NearestImages(data.train.pixels)
            near = tracked(images.of(data.test.pixels), "nearest training image of each test image", len(test), track)
            in_features = nearest_features(test, train)
            memory = Memory(images, Nearness.of(Nearest.joined(near), labels), Nearness.of(in_features, labels))
        return cls(data, classifiers, train, Gaussian.of(train), Gaussian.of(test), memory)

    def train_part(self, n: int) -> Int[Tensor, " m"]:
        """Which training images stand for all of them where n images are compared with as many; always the same."""
        return part_of(len(self.train_features), n, Part.TRAIN)

    def test_part(self, n: int) -> Int[Tensor, " m"]:
        """Which test images are as many as n images, or all if they are not so many; always the same."""
        return part_of(len(self.data.test), n, Part.TEST)


class Part(IntEnum):
    """What some of more images are chosen for: each choice is independent of the others."""

    TRAIN = 0
    TEST = 1
    AS_MANY = 2
    SHOWN = 3
    GIVEN = 4


def part_of(total: int, n: int, part: Part, seed: int = 0) -> Int[Tensor, " m"]:
    """Which n of ``total`` images are chosen, or all if there are not so many; in their order."""
    return rng.permutation(seed, rng.Stream.SAMPLE, part, total)[:n].sort().values
