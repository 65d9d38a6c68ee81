"""Randomness: every draw is a pure function of (seed, stream, index).

No generator state is ever saved, so stopping and resuming, the batch size, the other images of a batch and the number
of processes cannot change a draw. The source is numpy's Philox, a counter-based generator: (seed, stream) is its key,
and the index is part of its counter, 2^192 draws away from the next index. (torch's CPU generator uses only the low 32
bits of a seed, and the values of ``torch.randn`` depend on the size of the tensor.)
"""

import contextlib
from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 2**64 - 1


class Stream(IntEnum):
    """The purpose of a draw. Streams are independent of each other. The numbers never change."""

    INIT = 0  # a network's initial weights: the seed of torch's own generator
    SPLIT = 1  # the images held out from a data set without a test split, by class
    ORDER = 2  # the order of the training images, by epoch
    NOISE = 3  # the noise on a training image, by the image's index in the run
    LEVEL = 4  # the noise level of a training image, by the image's index in the run
    DROP = 5  # whether a training image loses its label, by the image's index in the run
    START = 6  # the noise that sampling starts from, by the image's seed
    BOOTSTRAP = 7  # the images in a bootstrap resample
    JITTER = 8  # the rotation, scale and shift of a classifier's training images, by optimizer step
    SAMPLE = 9  # the choice of images to score from a larger set, by purpose
    CONTROL = 10  # the noise and the shuffled labels of an evaluation's controls
    LATENT = 11  # the latent noise of a GAN's training image, by the image's index in the run
    AUGMENT = 12  # the augmentation of a training image, by the image's index in the run
    HELD = 13  # the training images held out to check a classifier during its training
    STEP = 1 << 32  # the noise that sampling adds in step k: stream STEP + k, by the image's seed


def generator(seed: int, stream: int, index: int = 0) -> np.random.Generator:
    """The generator of one draw. Only the low 64 bits of each number count; ``stream`` is usually a `Stream`."""
    # Arrays of uint64: numpy converts a list of large integers to floats, which drops their low bits.
    key = np.array([seed & _MASK, stream & _MASK], dtype=np.uint64)
    counter = np.array([0, 0, 0, index & _MASK], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@contextlib.contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Networks that are built inside get float32 weights that depend on this seed (of 32 bits) only; torch's generator
    and its default dtype are then as they were.
    """
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def permutation(seed: int, stream: int, index: int, n: int) -> Int[Tensor, " n"]:
    """A random order of 0..n-1."""
    return torch.from_numpy(generator(seed, stream, index).permutation(n))


def visit_order(seed: int, indices: Iterable[int], n: int) -> Int[Tensor, " m"]:
    """The images of a data set of size ``n`` for these indices in a run: each epoch shuffles all of them anew."""
    return torch.stack([_epoch(seed, index // n, n)[index % n] for index in indices])


@lru_cache(maxsize=2)
def _epoch(seed: int, number: int, n: int) -> Int[Tensor, " n"]:
    return permutation(seed, Stream.ORDER, number, n)


def normal(seed: int, stream: int, indices: Iterable[int], shape: tuple[int, ...]) -> Float[Tensor, " n *shape"]:
    """Unit noise, float32 on the CPU: one tensor of ``shape`` for each index, independent of the other indices."""
    rows = [generator(seed, stream, index).standard_normal(shape, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def uniform(seed: int, stream: int, indices: Iterable[int]) -> Float[Tensor, " n"]:
    """Numbers in [0, 1), float64 on the CPU, one for each index."""
    return torch.tensor([generator(seed, stream, index).random() for index in indices], dtype=torch.float64)


def stratified(seed: int, stream: int, indices: Iterable[int]) -> Float[Tensor, " n"]:
    """Uniform numbers in [0, 1), float64 on the CPU; those of successive indices cover [0, 1) evenly.

    They are steps of the golden ratio from a random start. Noise levels drawn this way reduce the variance of the loss,
    because every batch covers all levels (Kingma et al. 2021, appendix I.1, does the same within a batch).
    """
    start = generator(seed, stream).random()
    golden = (5**0.5 - 1) / 2
    return torch.tensor([(start + index * golden) % 1.0 for index in indices], dtype=torch.float64)
