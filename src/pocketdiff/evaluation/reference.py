"""The reference of a score: features of a data set, and the distances between its test and training splits."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pocketdiff import rng
from pocketdiff.data import Dataset
from pocketdiff.errors import CheckpointError
from pocketdiff.evaluation.classifiers import MIN_IMAGES, Classifiers, features
from pocketdiff.evaluation.distances import Gaussian
from pocketdiff.evaluation.memorization import Nearest, NearestImages, Nearness, nearest_features
from pocketdiff.progress import Progress, silent
from pocketdiff.tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)
Chunk = TypeVar("Chunk", Tensor, Nearest)


class Choice(IntEnum):
    """What a subset is for; choices for different purposes are independent."""

    TRAIN = 0
    TEST = 1
    CAS = 2
    SHOWN = 3
    GIVEN = 4
    FEW = 5


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
        cls, data: Dataset, classifiers: Classifiers, memorization: bool = True, progress: Progress = silent,
        cache: Path | None = None,
    ) -> "Reference":  # fmt: skip
        """The reference of a data set; with ``memorization`` it finds each test image's nearest training image.

        What takes long is kept in the folder ``cache``, under the hashes of the data and of the feature network. Raises
        EvaluationError if there are fewer than `MIN_IMAGES` training images, or all of them are equal.
        """
        about: dict[str, object] = {
            "kind": "reference",
            "data": data.info.sha256,
            "features": classifiers.features.sha256,
        }
        path = cache and cache / f"reference-of-{str(data.info.sha256)[:16]}-{classifiers.features.name}.safetensors"
        found, few = _found(path, about, data), len(data.test) < MIN_IMAGES
        known, images = set(found), NearestImages(data.train.pixels)
        for name, part in {"training": data.train, "test": data.test}.items():
            if name not in found:
                chunks = features(classifiers.features.net, part.pixels)
                found[name] = torch.cat(gathered(chunks, f"features of the {name} split", len(part), progress))
        train, test = found["training"], found["test"]
        gaussians = Gaussian.of(train), None if few else Gaussian.of(test)
        memory = None
        if memorization and not few:
            if "distance" not in found:
                what = "nearest training image of each test image"
                pixels = Nearest.joined(gathered(images.of(data.test.pixels), what, len(test), progress))
                others = nearest_features(test, train)
                found |= pixels._asdict() | {f"feature_{key}": value for key, value in others._asdict().items()}
            nearest = (Nearest(found[f"{start}distance"], found[f"{start}which"]) for start in ("", "feature_"))
            memory = Memory(images, *(Nearness.of(each, data.train.labels) for each in nearest))
        if path is not None and set(found) != known:
            _save(path, found, about)
        return cls(data, classifiers, train, *gaussians, memory)

    def train_part(self, n: int) -> Int[Tensor, " m"]:
        """Indices of n training images to compare with, or of all of them; always the same."""
        return choose(len(self.train_features), n, Choice.TRAIN)

    def test_part(self, n: int) -> Int[Tensor, " m"]:
        """Indices of n test images for the real baseline, or of all of them; always the same."""
        return choose(len(self.data.test), n, Choice.TEST)


def _found(path: Path | None, about: dict[str, object], data: Dataset) -> dict[str, Tensor]:
    """What a file of the cache holds for these data; nothing if it is missing, damaged, or of something else."""
    try:
        tensors, theirs = read_tensors(path) if path is not None else ({}, {})
    except CheckpointError:
        return {}
    sizes = {"training": len(data.train)}
    fits = all(len(tensor) == sizes.get(name, len(data.test)) for name, tensor in tensors.items())
    return tensors if theirs == about and fits else {}


def _save(path: Path, tensors: dict[str, Tensor], about: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, about)
    except OSError as error:
        consequence = "next time the features of the real images are computed again"
        log.warning("%s: cannot be written (%s); %s", path, error.strerror, consequence)
