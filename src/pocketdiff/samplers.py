"""Samplers: from noise to image along a decreasing grid of noise levels.

All samplers are generators with one signature, ``sampler(denoise, x, sigmas, noise)``, and one contract:

* ``denoise(x, sigma) -> x0_hat`` predicts the clean image. It is never called at sigma = 0.
* ``x`` is the start, distributed as N(x0, sigmas[0]^2), in data units.
* ``sigmas`` holds N + 1 strictly decreasing levels; the last may be 0. Anything else is a ValueError.
* ``noise(index) -> unit noise`` of the batch's shape, for the step of this index; few samplers call it.
* They yield a `Step` after each of the N steps; the ``x`` of the last one is the sample. Stop or record as needed.
* Options are keyword-only arguments with defaults: `sampler_options`. A value out of range is a ValueError.
* Gradients are off inside, not in the caller's loop.

To add a sampler, write its generator and add it to ``SAMPLERS``.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from math import log, sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pocketdiff.errors import PluginError
from pocketdiff.registry import Registry

Batch = Float[Tensor, "b c h w"]
DenoiseFn = Callable[[Tensor, float], Tensor]
NoiseFn = Callable[[int], Tensor]


class Step(NamedTuple):
    """The state after a step: the noise level reached, the image there, and the prediction behind the step."""

    sigma: float
    x: Tensor
    x0_hat: Tensor


Sampler = Callable[[DenoiseFn, Batch, list[float], NoiseFn], Iterator[Step]]
"""A sampler; the module's docstring has the contract."""


def no_noise(index: int) -> Tensor:
    """The default of ``noise``, for samplers that draw none: raises ValueError."""
    raise ValueError("this sampler draws noise: give it noise=, a function from a step's index to unit noise")


def _pairs(sigmas: list[float]) -> list[tuple[float, float]]:
    """The level and the next level of each step; raises ValueError if the grid breaks the contract."""
    pairs = list(pairwise(sigmas))
    if not pairs or not all(sigma > sigma_next >= 0 for sigma, sigma_next in pairs):
        raise ValueError(f"sigmas must be two or more strictly decreasing levels that end at or above 0, not {sigmas}")
    return pairs


@torch.no_grad()
def euler(denoise: DenoiseFn, x: Batch, sigmas: list[float], noise: NoiseFn = no_noise) -> Iterator[Step]:
    """First-order sampler, equal to DDIM with eta = 0: each step is one lerp. The error is O(h) in the step size.
    Source: Song et al. 2020 (DDIM), equation 12.
    """
    for sigma, sigma_next in _pairs(sigmas):
        x0_hat = denoise(x, sigma)
        x = x0_hat.lerp(x, sigma_next / sigma)
        yield Step(sigma_next, x, x0_hat)


@torch.no_grad()
def ancestral(
    denoise: DenoiseFn, x: Batch, sigmas: list[float], noise: NoiseFn = no_noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """DDPM's sampler with the posterior's variance: a step to the posterior's mean, then fresh noise from ``noise``.

    ``eta`` from 0 to 1 is DDIM's: 1 is DDPM's posterior, 0 is `euler`, without noise.
    Source: Ho et al. 2020, equation 7 and section 3.2; Song et al. 2020 (DDIM), equation 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, not {eta:g}")
    for index, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        x0_hat = denoise(x, sigma)
        up = eta * sigma_next / sigma * sqrt(sigma**2 - sigma_next**2)
        down = sqrt(sigma_next**2 - up**2)
        x = x0_hat.lerp(x, down / sigma)
        if up > 0:
            x = x + up * noise(index)
        yield Step(sigma_next, x, x0_hat)


@torch.no_grad()
def ancestral_beta(denoise: DenoiseFn, x: Batch, sigmas: list[float], noise: NoiseFn = no_noise) -> Iterator[Step]:
    """DDPM's sampler with the variance beta_t, algorithm 2; draws from ``noise`` in every step but the last.
    Source: Ho et al. 2020, algorithm 2 and section 3.2.
    """
    pairs = _pairs(sigmas)
    for index, (sigma, sigma_next) in enumerate(pairs):
        x0_hat = denoise(x, sigma)
        down = sigma_next**2 / sigma
        x = x0_hat.lerp(x, down / sigma)
        if index + 1 < len(pairs):
            beta = (sigma**2 - sigma_next**2) / (1 + sigma**2)
            x = x + sqrt(beta * (1 + sigma_next**2)) * noise(index)
        yield Step(sigma_next, x, x0_hat)


@torch.no_grad()
def heun(denoise: DenoiseFn, x: Batch, sigmas: list[float], noise: NoiseFn = no_noise) -> Iterator[Step]:
    """Second-order sampler with two denoiser calls a step, except one in a step to 0. The error is O(h^2) in the step
    size. Source: Karras et al. 2022, algorithm 1.
    """
    for sigma, sigma_next in _pairs(sigmas):
        x0_hat = denoise(x, sigma)
        ahead = x0_hat.lerp(x, sigma_next / sigma)
        if sigma_next > 0:
            # The slope is (x - x0_hat) / sigma: take the mean of the slopes at both ends of the step.
            slope = (x - x0_hat) / sigma + (ahead - denoise(ahead, sigma_next)) / sigma_next
            ahead = x + (sigma_next - sigma) / 2 * slope
        x = ahead
        yield Step(sigma_next, x, x0_hat)


@torch.no_grad()
def dpmpp_2m(denoise: DenoiseFn, x: Batch, sigmas: list[float], noise: NoiseFn = no_noise) -> Iterator[Step]:
    """Second-order multistep sampler: one denoiser call a step, extrapolated from the previous step's prediction.

    A step to 0 is of first order. The error is O(h^2) in the step size.
    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2, with alpha = 1.
    """
    last: tuple[Tensor, float] | None = None
    for sigma, sigma_next in _pairs(sigmas):
        x0_hat = ahead = denoise(x, sigma)
        if sigma_next > 0:
            h = log(sigma / sigma_next)
            if last is not None:
                # The prediction in the middle of the step, on the line through this prediction and the last.
                ahead = last[0].lerp(x0_hat, 1 + h / (2 * last[1]))
            last = x0_hat, h
        x = ahead.lerp(x, sigma_next / sigma)
        yield Step(sigma_next, x, x0_hat)


@torch.no_grad()
def consistency(denoise: DenoiseFn, x: Batch, sigmas: list[float], noise: NoiseFn = no_noise) -> Iterator[Step]:
    """Multistep sampler of consistency models: the predicted clean image, plus noise from ``noise`` of the next level.
    Source: Song et al. 2023, algorithm 1 (with epsilon = 0).
    """
    for index, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        x = x0_hat = denoise(x, sigma)
        if sigma_next > 0:
            x = x0_hat + sigma_next * noise(index)
        yield Step(sigma_next, x, x0_hat)


SAMPLERS: Registry[Sampler] = Registry(
    "sampler", "pocketdiff.samplers",
    {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "ancestral": ancestral, "ancestral_beta": ancestral_beta,
     "consistency": consistency},
)  # fmt: skip


def sampler_options(name: str) -> dict[str, float | str]:
    """A sampler's options with their defaults: its keyword-only arguments, without those that a `partial` has set.

    Raises:
        ValueError: If there is no such sampler.
        PluginError: If an option has no default.
    """
    sampler: Any = SAMPLERS.find(name)
    bound = sampler.keywords if isinstance(sampler, partial) else {}
    parameters = inspect.signature(sampler).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in bound}
    if inspect.Parameter.empty in options.values():
        raise PluginError(f"the sampler {name!r} has an option without a default; give each keyword-only argument one")
    return options
