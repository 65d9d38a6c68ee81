"""Schedules: how noise levels are spread.

A noisy image is ``x = x0 + sigma * eps`` everywhere in this package, and ``sigma``, the noise level in data units, is
the only clock. A schedule is an increasing map from a coordinate ``u`` in [0, 1] to ``sigma``. It has two uses:

* training draws ``schedule(u)`` with ``u`` uniform and gives the network ``schedule.noise_input(sigma)``;
* sampling walks down ``grid(schedule, steps)``: ``schedule`` at evenly spaced ``u``, then ``sigma_end``.

To add a schedule, subclass `Range` with a ``kind`` and a ``__call__`` and add the class to ``SCHEDULES``.
"""

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from pocketdiff.frozen import Frozen
from pocketdiff.registry import Registry

MAX_LEVELS = 10_000
"""The most noise levels of a chain, and the most steps of a sampler: a config from a stranger stays cheap to read."""
_HIGHEST = 1e30  # upper bound for noise levels, far enough below float32's limit


@runtime_checkable
class Schedule(Protocol):
    """A schedule: a `Frozen` config class. `Range` implements all members but ``kind`` and ``__call__``."""

    @property
    def kind(self) -> str:
        """Its key in ``SCHEDULES``."""

    @property
    def sigma_max(self) -> float:
        """Highest noise level, at u = 1."""

    @property
    def sigma_end(self) -> float:
        """The level at which sampling ends, below all others; 0 is the clean image."""

    @property
    def levels(self) -> float:
        """Number of different noise levels; ``math.inf`` for a continuous schedule."""

    def noise_input(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The network's input for noise levels; about unit scale."""

    def __call__(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Maps coordinates in [0, 1] to noise levels, in the dtype of ``u``; increasing."""


def _check_levels(schedule: Any) -> Any:
    """Validates a built-in schedule: its noise levels must be positive and not too high."""
    try:
        sigma = schedule(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    except (OverflowError, ZeroDivisionError):
        sigma = torch.zeros(1)
    if not ((sigma > 0) & (sigma < _HIGHEST)).all():
        raise ValueError(f"these values give noise levels that are not between 0 and {_HIGHEST:g}")
    return schedule


class Range(Frozen):
    """Base of the continuous schedules, which run from ``sigma_min`` to ``sigma_max``; sampling ends at 0."""

    levels: ClassVar[float] = math.inf
    sigma_end: ClassVar[float] = 0.0

    sigma_min: float = Field(0.002, gt=0, allow_inf_nan=False)
    """Lowest noise level, in data units."""
    sigma_max: float = Field(80.0, gt=0, allow_inf_nan=False)
    """Highest noise level, in data units."""

    _valid = model_validator(mode="after")(_check_levels)

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min:g}) must be below sigma_max ({self.sigma_max:g})")
        return self

    def noise_input(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``log(sigma) / 4``. Source: Karras et al. 2022, table 1 (c_noise)."""
        return sigma.log() / 4

    def _lerp(self, low: float, high: float, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Even steps from ``low`` to ``high``, in float64: near u = 1 the maps are too steep for float32."""
        return low + u.double() * (high - low)


class Karras(Range):
    """Even steps in ``sigma ** (1 / rho)``: short steps at low noise. Source: Karras et al. 2022, equation 5."""

    kind: Literal["karras"] = "karras"
    rho: float = Field(7.0, gt=0, allow_inf_nan=False)
    """Larger: shorter steps at low noise; 1: even steps in sigma."""

    def __call__(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Maps coordinates in [0, 1] to noise levels."""
        root = self._lerp(self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho), u)
        return (root**self.rho).to(u.dtype)


class LogNormal(Range):
    """``log sigma ~ N(mean, std^2)`` for uniform ``u``, truncated to the range.

    (-1.2, 1.2) is EDM's training distribution (Karras et al. 2022, table 1). (0, 1) is rectified flow's logit-normal
    time, since the logit of t = sigma / (1 + sigma) is log sigma (Esser et al. 2024, section 3.1).
    """

    kind: Literal["lognormal"] = "lognormal"
    mean: float = Field(0.0, allow_inf_nan=False)
    """Mean of log sigma."""
    std: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Standard deviation of log sigma."""

    def __call__(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Maps coordinates in [0, 1] to noise levels."""
        low, high = (
            math.erfc((self.mean - math.log(s)) / (self.std * math.sqrt(2))) / 2
            for s in (self.sigma_min, self.sigma_max)
        )
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(self._lerp(low, high, u)))
        return sigma.clamp(self.sigma_min, self.sigma_max).to(u.dtype)


class Cosine(Range):
    """Improved DDPM's schedule: ``alpha_bar(t) = cos^2((t + s) / (1 + s) * pi / 2)`` up to a factor that makes
    ``alpha_bar(0) = 1``, truncated to the range. Source: Nichol and Dhariwal 2021, equation 17.
    """

    kind: Literal["cosine"] = "cosine"
    offset: float = Field(0.008, ge=0, lt=1, allow_inf_nan=False)
    """The paper's s, which keeps the steps near t = 0 from being too small."""

    def __call__(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Maps coordinates in [0, 1] to noise levels."""
        first = math.cos(self.offset / (1 + self.offset) * math.pi / 2) ** 2
        # alpha_bar = 1 / (1 + sigma^2), which gives the paper's angle at each end of the range.
        low, high = (math.acos(math.sqrt(first / (1 + s * s))) for s in (self.sigma_min, self.sigma_max))
        alpha_bar = torch.cos(self._lerp(low, high, u)) ** 2 / first
        return torch.sqrt((1 - alpha_bar) / alpha_bar).to(u.dtype)


class Flow(Range):
    """Rectified flow's even steps in time ``t = sigma / (1 + sigma)``. Source: Liu et al. 2022, equation 1."""

    kind: Literal["flow"] = "flow"

    def __call__(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Maps coordinates in [0, 1] to noise levels."""
        low, high = (s / (1 + s) for s in (self.sigma_min, self.sigma_max))
        t = self._lerp(low, high, u)
        return (t / (1 - t)).to(u.dtype)


class DiscreteBeta(Frozen):
    """DDPM's chain of T steps: ``sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t)``, beta linear in t = 1..T.

    ``u`` maps to step ``t = 1 + floor(u T)``: uniform ``u`` gives the paper's uniform ``t``, and the grid of T steps is
    the chain T, T - 1, ..., 1. The network's noise input is ``t / T``. Source: Ho et al. 2020, section 4.
    """

    kind: Literal["discrete_beta"] = "discrete_beta"
    timesteps: int = Field(1000, ge=1, le=MAX_LEVELS)
    """T, the number of steps of the chain."""
    beta_start: float = Field(1e-4, gt=0, lt=1)
    """beta_1, the variance of the first step's noise."""
    beta_end: float = Field(0.02, gt=0, lt=1)
    """beta_T, the variance of the last step's noise."""
    zeroth: bool = False
    """Whether the chain has an entry 0, as in DDPM-MNIST: beta_start is then beta_0, and sampling ends at sigma_0."""

    _valid = model_validator(mode="after")(_check_levels)

    @property
    def levels(self) -> int:
        """Number of different noise levels, T."""
        return self.timesteps

    @property
    def sigmas(self) -> Float[Tensor, " T"]:
        """The chain's noise levels, sigma_1 to sigma_T, in float64."""
        return _chain(self)[1:]

    @property
    def sigma_end(self) -> float:
        """sigma_0: 0 is the clean image; with ``zeroth`` it is above 0."""
        return float(_chain(self)[0])

    @property
    def sigma_max(self) -> float:
        """sigma_T."""
        return float(self.sigmas[-1])

    def noise_input(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The time t / T: interpolated linearly in log sigma between levels, and clamped to the ends of the chain."""
        known, log_sigma = self.sigmas.log().to(sigma.dtype).to(sigma.device), sigma.log()
        above = torch.searchsorted(known, log_sigma.contiguous()).clamp(max=self.timesteps - 1)
        below = (above - 1).clamp(min=0)
        fraction = ((log_sigma - known[below]) / (known[above] - known[below]).clamp(min=1e-12)).clamp(0, 1)
        return (1 + below + fraction * (above - below)) / self.timesteps

    def __call__(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Maps coordinates in [0, 1] to noise levels."""
        t = (u.double() * self.timesteps).long().clamp(0, self.timesteps - 1)
        return self.sigmas.to(u.device)[t].to(u.dtype)


@lru_cache(maxsize=64)
def _chain(schedule: DiscreteBeta) -> Float[Tensor, " entries"]:
    """sigma_0 to sigma_T. DDPM's sigma_0 is 0, because its product starts at beta_1."""
    beta = torch.linspace(
        schedule.beta_start, schedule.beta_end, schedule.timesteps + schedule.zeroth, dtype=torch.float64, device="cpu"
    )
    if not schedule.zeroth:
        beta = torch.cat([beta.new_zeros(1), beta])
    alpha_bar = torch.cumprod(1 - beta, 0)
    return torch.sqrt((1 - alpha_bar) / alpha_bar)


SCHEDULES: Registry[type[Schedule]] = Registry(
    "schedule",
    "pocketdiff.schedules",
    {"karras": Karras, "lognormal": LogNormal, "cosine": Cosine, "flow": Flow, "discrete_beta": DiscreteBeta},
)


def grid(schedule: Schedule, steps: int) -> list[float]:
    """The ``steps + 1`` noise levels of a sampler's steps, strictly decreasing.

    They run from ``sigma_max`` (u = 1) to ``sigma_min`` (u = 0), then to ``sigma_end``; a single step goes from
    ``sigma_max`` to ``sigma_end``.

    Raises:
        ValueError: If ``steps`` is less than 1, or so large that levels would be equal.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    sigmas = [*schedule(torch.linspace(1, 0, steps, dtype=torch.float64)).tolist(), schedule.sigma_end]
    if not all(sigma > sigma_next for sigma, sigma_next in pairwise(sigmas)):
        raise ValueError(
            f"steps is {steps}, but the {schedule.kind} schedule has only {len(set(sigmas)) - 1} noise levels"
        )
    return sigmas
