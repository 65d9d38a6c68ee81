"""Randomness: every draw is a pure function of (seed, stream, index).

Nothing of a generator is ever saved, so stopping and resuming, batch size, neighbours in a batch and the number of
processes cannot change a draw. The source is numpy's Philox, a counter-based generator: (seed, stream) is its key and
the index sits in its counter, 2^192 draws away from the next index. (torch's CPU generator uses only the low 32 bits
of a seed, and the values of ``torch.randn`` depend on the size of the tensor.)
"""

from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 2**64 - 1


class Stream(IntEnum):
    """What a draw is for. Draws of different streams are independent; a number once given never changes."""

    INIT = 0
    """A network's first weights: the seed of torch's own generator."""
    SPLIT = 1
    """Which images of a data set without a test split are held out, by class."""
    ORDER = 2
    """The order of the images, by epoch."""
    NOISE = 3
    """The noise on a training image, by images seen."""
    LEVEL = 4
    """The training noise level, by images seen."""
    DROP = 5
    """Whether a training image loses its label, by images seen."""
    START = 6
    """The noise that an image is drawn from, by the image's seed."""
    BOOTSTRAP = 7
    """Which images a resample draws again."""
    JITTER = 8
    """How a classifier's training images are turned, scaled and moved, by optimizer step."""
    SAMPLE = 9
    """Which of more images are scored, by what they are for."""
    CONTROL = 10
    """The noise and the shuffled labels of an evaluation's controls."""
    LATENT = 11
    """The noise that a GAN's training images are made of, by images seen."""
    STEP = 1 << 32
    """The noise that step k of sampling adds, as stream STEP + k, by the image's seed."""


def generator(seed: int, stream: int, index: int = 0) -> np.random.Generator:
    """The generator of one draw.

    Args:
        seed: Any integer; its low 64 bits count.
        stream: What the draw is for, usually a `Stream`.
        index: Which draw of the stream; its low 64 bits count.
    """
    # Arrays of uint64, for numpy takes a list of large integers through floats, which drops their low bits.
    key = np.array([seed & _MASK, stream & _MASK], dtype=np.uint64)
    counter = np.array([0, 0, 0, index & _MASK], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def permutation(seed: int, stream: int, index: int, n: int) -> Int[Tensor, " n"]:
    """A random order of 0..n-1."""
    return torch.from_numpy(generator(seed, stream, index).permutation(n))


def visits(seed: int, indices: Iterable[int], n: int) -> Int[Tensor, " m"]:
    """Which of ``n`` images a run sees as its images ``indices``: every pass sees each once, in an order of its own."""
    return torch.stack([_pass(seed, index // n, n)[index % n] for index in indices])


@lru_cache(maxsize=2)
def _pass(seed: int, number: int, n: int) -> Int[Tensor, " n"]:
    return permutation(seed, Stream.ORDER, number, n)


def normal(seed: int, stream: int, indices: Iterable[int], shape: tuple[int, ...]) -> Float[Tensor, " n *shape"]:
    """Unit noise, float32 on the CPU: one tensor of ``shape`` for each index, whatever the other indices are."""
    rows = [generator(seed, stream, index).standard_normal(shape, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def uniform(seed: int, stream: int, indices: Iterable[int]) -> Float[Tensor, " n"]:
    """Numbers in [0, 1), float64 on the CPU, one for each index."""
    return torch.tensor([generator(seed, stream, index).random() for index in indices], dtype=torch.float64)


def spread(seed: int, stream: int, indices: Iterable[int]) -> Float[Tensor, " n"]:
    """Numbers in [0, 1), float64 on the CPU, uniform and evenly spread over any run of successive indices.

    Steps of the golden ratio from a random start: a batch of noise levels drawn this way covers all of them, which
    takes variance out of the loss (Kingma et al. 2021, appendix I.1, does the same within a batch).
    """
    start = generator(seed, stream).random()
    golden = (5**0.5 - 1) / 2
    return torch.tensor([(start + index * golden) % 1.0 for index in indices], dtype=torch.float64)
