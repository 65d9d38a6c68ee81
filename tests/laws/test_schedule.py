import itertools
import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from pocketdiff.schedule import SCHEDULES, Cosine, DiscreteBeta, Flow, Karras, LogNormal, Range, Schedule, grid

U = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_increasing_finite_and_positive(kind: str, dtype: torch.dtype) -> None:
    schedule = SCHEDULES[kind]()
    sigma = schedule(U.to(dtype))
    assert sigma.dtype == dtype
    assert sigma.isfinite().all()
    assert (sigma > 0).all()
    steps = sigma.diff()
    # A chain of T steps is a staircase; the others increase strictly.
    assert (steps >= 0).all() if kind == "discrete_beta" or dtype == torch.float32 else (steps > 0).all()


@pytest.mark.parametrize("kind", SCHEDULES)
def test_runs_from_sigma_min_to_sigma_max(kind: str) -> None:
    schedule: Any = SCHEDULES[kind]()
    ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    low = schedule.sigmas[0].item() if kind == "discrete_beta" else schedule.sigma_min
    assert ends == pytest.approx([low, schedule.sigma_max], rel=1e-6)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_grid_decreases_strictly_to_zero(kind: str, steps: int) -> None:
    schedule = SCHEDULES[kind]()
    sigmas = grid(schedule, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(sigmas))
    assert sigmas[0] == pytest.approx(schedule.sigma_max, rel=1e-6)


def test_karras_is_equation_5() -> None:
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    expected = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    assert grid(Karras(), n) == pytest.approx([*expected, 0.0], rel=1e-12)


def test_lognormal_has_its_mean_and_deviation() -> None:
    # Midpoints give the quantiles of the distribution.
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_sigma = LogNormal(mean=-1.2, std=1.2, sigma_min=1e-6, sigma_max=1e6)(u).log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=1e-3)


def test_truncated_lognormal_keeps_its_shape() -> None:
    schedule = LogNormal(sigma_min=math.exp(-1), sigma_max=math.exp(1))
    assert schedule(torch.tensor(0.5, dtype=torch.float64)).item() == pytest.approx(1.0)
    inside = math.erf(1 / math.sqrt(2))  # probability of one standard deviation
    quarter = schedule(torch.tensor(0.25, dtype=torch.float64)).log().item()
    assert math.erf(-quarter / math.sqrt(2)) == pytest.approx(inside / 2)


def test_rectified_flow_time_is_even() -> None:
    sigmas = torch.tensor(grid(Flow(sigma_min=0.01, sigma_max=99), 11)[:-1], dtype=torch.float64)
    steps = (sigmas / (1 + sigmas)).diff()
    assert torch.allclose(steps, steps[:1].expand(10), rtol=1e-9)


def test_logit_normal_time_is_lognormal_sigma() -> None:
    sigma = LogNormal(sigma_min=1e-5, sigma_max=1e5)(U[1:-1])
    t = sigma / (1 + sigma)
    assert torch.allclose(torch.logit(t), torch.special.ndtri(U[1:-1]), atol=1e-3)


def test_cosine_is_equation_17() -> None:
    schedule = Cosine(offset=0.008, sigma_min=1e-4, sigma_max=1e4)
    alpha_bar = 1 / (1 + schedule(U) ** 2)

    def f(t: torch.Tensor) -> torch.Tensor:
        return torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    # The paper's t of each level, from its own equation, increases linearly with u.
    t = torch.acos(torch.sqrt(alpha_bar * f(torch.zeros(1, dtype=torch.float64)))) * 2 / math.pi * 1.008 - 0.008
    assert torch.allclose(t.diff(), t.diff().mean().expand(1000), rtol=1e-6)
    assert torch.allclose(f(t) / f(torch.zeros(1, dtype=torch.float64)), alpha_bar, rtol=1e-9)


@pytest.mark.parametrize("timesteps", [1, 2, 3, 400, 1000])
def test_discrete_beta_grid_is_the_chain(timesteps: int) -> None:
    schedule = DiscreteBeta(timesteps=timesteps)
    assert grid(schedule, timesteps) == [*schedule.sigmas.flip(0).tolist(), 0.0]


def test_discrete_beta_draws_all_steps_equally_often() -> None:
    schedule = DiscreteBeta(timesteps=50)
    drawn = schedule((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000)
    levels, counts = drawn.unique(return_counts=True)
    assert torch.equal(levels, schedule.sigmas)
    assert counts.tolist() == [100] * 50


def test_more_steps_than_levels_is_an_error() -> None:
    with pytest.raises(ValueError, match="only 10 noise levels"):
        grid(DiscreteBeta(timesteps=10), 11)
    with pytest.raises(ValueError, match="at least 1"):
        grid(Karras(), 0)


def test_levels_too_close_for_floats_are_an_error() -> None:
    with pytest.raises(ValueError, match="noise levels"):
        grid(Flow(sigma_min=1.0, sigma_max=1.0000000000000002), 18)


@settings(max_examples=50)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 64), st.floats(1e-4, 0.5), st.floats(1.0, 1e4))
def test_every_range_gives_a_decreasing_grid(kind: str, steps: int, low: float, high: float) -> None:
    cls: Any = SCHEDULES[kind]
    schedule = cls() if kind == "discrete_beta" else cls(sigma_min=low, sigma_max=high)
    sigmas = grid(schedule, steps)
    assert all(a > b for a, b in itertools.pairwise(sigmas))
    assert all(math.isfinite(sigma) for sigma in sigmas)


@pytest.mark.parametrize(
    "wrong", [{"sigma_min": 0}, {"sigma_min": 2, "sigma_max": 1}, {"rho": -1}, {"unknown": 1}, {"rho": 1e-3}]
)
def test_invalid_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Karras(**wrong)


class Linear(Range):
    """A schedule from outside the package: even steps in sigma."""

    kind: Literal["linear"] = "linear"

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        return self._lerp(self.sigma_min, self.sigma_max, u).to(u.dtype)


@pytest.mark.parametrize("cls", [*SCHEDULES.values(), Linear])
def test_every_schedule_fulfills_the_protocol(cls: type[Schedule]) -> None:
    schedule: Schedule = cls()
    assert isinstance(schedule, Schedule)
    assert schedule.levels == (1000 if schedule.kind == "discrete_beta" else math.inf)
    assert schedule.noise_input(torch.tensor([0.1, 1.0, 10.0])).diff().min() > 0


def test_a_schedule_from_outside_works_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no schedule 'linear'"):
        SCHEDULES.find("linear")
    monkeypatch.setitem(SCHEDULES, "linear", Linear)
    sigmas = grid(SCHEDULES.find("linear")(), 5)
    assert sigmas == pytest.approx([80, 60.0005, 40.001, 20.0015, 0.002, 0])
