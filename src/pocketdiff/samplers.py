"""Samplers: from noise to image along a falling grid of noise levels.

Each is a generator of `Step`: draw, time, stop or record as you like. All of them see the denoiser only as
``denoise(x, sigma) -> x0_hat`` and move by drawing ``x`` towards a clean image.

All share one signature, so that any can stand for any; only `ancestral` calls ``noise``.
To add a sampler, write its generator and name it in ``SAMPLERS``.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from math import log, sqrt
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from pocketdiff.guidance import DenoiseFn

NoiseFn = Callable[[int], Tensor]
"""Index of a step -> unit noise, shaped like the batch."""


class Step(NamedTuple):
    """The state after a step: the noise level reached, the image there, and the prediction that led there."""

    sigma: float
    x: Tensor
    x0: Tensor


Sampler = Callable[["DenoiseFn", Tensor, list[float], NoiseFn], Iterator[Step]]


def no_noise(index: int) -> Tensor:
    """The default source of noise, for samplers that draw none.

    Raises:
        ValueError: Always: a sampler that calls it needs one of its own.
    """
    raise ValueError("this sampler draws noise: give it noise=, a function from a step's index to unit noise")


def _pairs(sigmas: list[float]) -> list[tuple[float, float]]:
    """Each step's level and the next; every sampler's only check.

    Raises:
        ValueError: If there are fewer than two levels, or they do not fall strictly, or they fall below 0.
    """
    pairs = list(pairwise(sigmas))
    if not pairs or not all(sigma > following >= 0 for sigma, following in pairs):
        raise ValueError(f"sigmas must be two or more strictly decreasing levels that end at or above 0, not {sigmas}")
    return pairs


@torch.no_grad()
def euler(
    denoise: "DenoiseFn", x: Float[Tensor, "b c h w"], sigmas: list[float], noise: NoiseFn = no_noise
) -> Iterator[Step]:
    """First-order sampler, equal to DDIM with eta = 0: each step is one lerp.

    Args:
        denoise: Maps (x, sigma) to the expected clean image; never called at sigma = 0.
        x: Start, distributed as N(x0, sigmas[0]^2); data units, here [-1, 1].
        sigmas: N + 1 strictly decreasing levels; the last may be 0.
        noise: Not called.

    Yields:
        The state after each step; the last one's ``x`` is the sample.

    Raises:
        ValueError: If ``sigmas`` is not strictly decreasing.

    Error is O(h) in the step. Source: Song et al. 2020 (DDIM), equation 12.
    """
    for sigma, following in _pairs(sigmas):
        x0 = denoise(x, sigma)
        x = x0.lerp(x, following / sigma)
        yield Step(following, x, x0)


@torch.no_grad()
def ancestral(
    denoise: "DenoiseFn",
    x: Float[Tensor, "b c h w"],
    sigmas: list[float],
    noise: NoiseFn = no_noise,
    *,
    variance: Literal["posterior", "beta"] = "posterior",
    eta: float = 1.0,
) -> Iterator[Step]:
    """DDPM's own sampler: a step to the posterior's mean, then fresh noise.

    Args:
        denoise: Maps (x, sigma) to the expected clean image; never called at sigma = 0.
        x: Start, distributed as N(x0, sigmas[0]^2); data units.
        sigmas: N + 1 strictly decreasing levels; the last may be 0, and then the last step adds no noise.
        noise: Maps a step's index to unit noise.
        variance: DDPM's two choices for the noise of a step: "posterior", the posterior's variance, or "beta", beta_t;
            this one is algorithm 2 to the letter, whose last step adds no noise.
        eta: DDIM's eta: 1 is DDPM's posterior, 0 is `euler`. Plays no part where ``variance`` is "beta".

    Yields:
        The state after each step; the last one's ``x`` is the sample.

    Raises:
        ValueError: If ``sigmas`` is not strictly decreasing.

    Source: Ho et al. 2020, equation 7 and section 3.2; Song et al. 2020 (DDIM), equation 16.
    """
    pairs = _pairs(sigmas)
    for index, (sigma, following) in enumerate(pairs):
        x0 = denoise(x, sigma)
        if variance == "beta":
            down = following**2 / sigma
            beta = (sigma**2 - following**2) / (1 + sigma**2)
            up = sqrt(beta * (1 + following**2)) if index + 1 < len(pairs) else 0.0
        else:
            up = eta * following / sigma * sqrt(sigma**2 - following**2)
            down = sqrt(following**2 - up**2)
        x = x0.lerp(x, down / sigma)
        if up > 0:
            x = x + up * noise(index)
        yield Step(following, x, x0)


@torch.no_grad()
def heun(
    denoise: "DenoiseFn", x: Float[Tensor, "b c h w"], sigmas: list[float], noise: NoiseFn = no_noise
) -> Iterator[Step]:
    """Second-order sampler: 2N - 1 denoiser calls for N steps that end at 0.

    Args:
        denoise: Maps (x, sigma) to the expected clean image; never called at sigma = 0.
        x: Start, distributed as N(x0, sigmas[0]^2); data units.
        sigmas: N + 1 strictly decreasing levels; the last may be 0.
        noise: Not called.

    Yields:
        The state after each step; the last one's ``x`` is the sample.

    Raises:
        ValueError: If ``sigmas`` is not strictly decreasing.

    Error is O(h^2) in the step. Source: Karras et al. 2022, algorithm 1.
    """
    for sigma, following in _pairs(sigmas):
        x0 = denoise(x, sigma)
        ahead = x0.lerp(x, following / sigma)
        if following > 0:
            # The slope is (x - x0) / sigma: the mean of the slopes at both ends of the step.
            slope = (x - x0) / sigma + (ahead - denoise(ahead, following)) / following
            ahead = x + (following - sigma) / 2 * slope
        x = ahead
        yield Step(following, x, x0)


@torch.no_grad()
def dpmpp_2m(
    denoise: "DenoiseFn", x: Float[Tensor, "b c h w"], sigmas: list[float], noise: NoiseFn = no_noise
) -> Iterator[Step]:
    """Second-order multistep sampler: one denoiser call a step, with the prediction extrapolated from the last one.

    Args:
        denoise: Maps (x, sigma) to the expected clean image; never called at sigma = 0.
        x: Start, distributed as N(x0, sigmas[0]^2); data units.
        sigmas: N + 1 strictly decreasing levels; the last may be 0, and the step to 0 is of first order.
        noise: Not called.

    Yields:
        The state after each step; the last one's ``x`` is the sample.

    Raises:
        ValueError: If ``sigmas`` is not strictly decreasing.

    Error is O(h^2) in the step. Source: Lu et al. 2022 (DPM-Solver++), algorithm 2, with alpha = 1.
    """
    last: tuple[Tensor, float] | None = None
    for sigma, following in _pairs(sigmas):
        x0 = ahead = denoise(x, sigma)
        if following > 0:
            h = log(sigma / following)
            if last is not None:
                # The prediction half-way through the step, on the line through this one and the last.
                ahead = last[0].lerp(x0, 1 + h / (2 * last[1]))
            last = x0, h
        x = ahead.lerp(x, following / sigma)
        yield Step(following, x, x0)


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "ancestral": ancestral,
    "ancestral_beta": partial(ancestral, variance="beta"),
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
