"""Every sampler against closed forms: for Gaussian data the expected clean image and the exact path are known."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pocketdiff.denoiser import PARAMETERIZATIONS, Denoiser
from pocketdiff.errors import PluginError
from pocketdiff.guidance import DenoiseFn, guide
from pocketdiff.samplers import (
    SAMPLERS,
    Step,
    ancestral,
    ancestral_beta,
    consistency,
    dpmpp_2m,
    euler,
    heun,
    sampler_options,
)
from pocketdiff.schedule import SCHEDULES, Cosine, DiscreteBeta, Karras, grid

MEAN, STD = 0.3, 0.5


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] for x0 ~ N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def exact(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The solution of the probability flow from sigma to sigma_next."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + sigma_next**2) / (STD**2 + sigma**2))


def draw(seed: int, n: int = 3) -> Tensor:
    return torch.randn((n, 1, 4, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_convergence_order(sampler: Callable[..., object], order: int) -> None:
    x = 10 * draw(0)
    errors = []
    for steps in (64, 128, 256):
        sigmas = [10.0 * (0.1 / 10.0) ** (i / steps) for i in range(steps + 1)]
        *_, last = sampler(gaussian, x, sigmas)  # type: ignore[misc]
        errors.append((last.x - exact(x, sigmas[0], sigmas[-1])).abs().max().item())  # type: ignore[has-type]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize("name", ["ancestral", "ancestral_beta"])
def test_ancestral_samples_have_the_mean_and_deviation_of_the_data(name: str) -> None:
    """Exactly: the sample is linear in the start and in each step's noise, so the variances that they cause add up.

    Image i of the batch has unit noise at the start (i = 0) or in step i - 1 only, and the last image none at all.
    """
    errors = []
    for steps in (200, 400, 800):
        sigmas = grid(Karras(sigma_max=20), steps)
        unit = torch.eye(steps + 2, dtype=torch.float64)[..., None, None, None]
        x = MEAN + math.hypot(sigmas[0], STD) * unit[0]
        *_, last = SAMPLERS[name](gaussian, x, sigmas, unit[1:].__getitem__)
        mean = last.x[-1].item()
        assert mean == pytest.approx(MEAN, rel=1e-9)
        errors.append((last.x - mean).square().sum().sqrt().item() - STD)
    assert abs(errors[-1]) < 0.01 * STD
    assert [a / b for a, b in itertools.pairwise(errors)] == pytest.approx([2, 2], rel=0.1)  # of first order


def chain(timesteps: int = 50) -> tuple[Tensor, list[float]]:
    """alpha_bar_t for t = 0..T, and the noise levels of the same chain from T to 0."""
    schedule = DiscreteBeta(timesteps=timesteps)
    alpha_bar = 1 / (1 + torch.cat([torch.zeros(1, dtype=torch.float64), schedule.sigmas]) ** 2)
    return alpha_bar, grid(schedule, timesteps)


def eps_of(x: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that a DDPM predicts at x, in its own scaling, for Gaussian data."""
    sigma = math.sqrt((1 - alpha_bar.item()) / alpha_bar.item())
    ve = x / alpha_bar.sqrt()
    return (ve - gaussian(ve, sigma)) / sigma


def test_euler_is_ddim_equation_12() -> None:
    alpha_bar, sigmas = chain()
    ddim = draw(2)
    steps = euler(gaussian, ddim / alpha_bar[-1].sqrt(), sigmas)
    for t, step in zip(range(50, 0, -1), steps, strict=True):
        eps = eps_of(ddim, alpha_bar[t])
        x0 = (ddim - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
        ddim = alpha_bar[t - 1].sqrt() * x0 + (1 - alpha_bar[t - 1]).sqrt() * eps
        torch.testing.assert_close(step.x * alpha_bar[t - 1].sqrt(), ddim, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x0_hat, x0, rtol=1e-9, atol=1e-9)


def test_ancestral_is_ddpm_equation_7() -> None:
    alpha_bar, sigmas = chain()
    ddpm = draw(3)
    steps = ancestral(gaussian, ddpm / alpha_bar[-1].sqrt(), sigmas, draw)
    for index, (t, step) in enumerate(zip(range(50, 0, -1), steps, strict=True)):
        alpha = alpha_bar[t] / alpha_bar[t - 1]
        beta = 1 - alpha
        x0 = (ddpm - (1 - alpha_bar[t]).sqrt() * eps_of(ddpm, alpha_bar[t])) / alpha_bar[t].sqrt()
        mean = alpha_bar[t - 1].sqrt() * beta / (1 - alpha_bar[t]) * x0
        mean = mean + alpha.sqrt() * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * ddpm
        variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta
        ddpm = mean + variance.sqrt() * draw(index)
        torch.testing.assert_close(step.x * alpha_bar[t - 1].sqrt(), ddpm, rtol=1e-9, atol=1e-9)


def test_ancestral_beta_is_ddpm_algorithm_2_with_variance_beta() -> None:
    alpha_bar, sigmas = chain()
    ddpm = draw(4)
    steps = ancestral_beta(gaussian, ddpm / alpha_bar[-1].sqrt(), sigmas, draw)
    for index, (t, step) in enumerate(zip(range(50, 0, -1), steps, strict=True)):
        alpha = alpha_bar[t] / alpha_bar[t - 1]
        eps = eps_of(ddpm, alpha_bar[t])
        ddpm = (ddpm - (1 - alpha) / (1 - alpha_bar[t]).sqrt() * eps) / alpha.sqrt()
        if t > 1:
            ddpm = ddpm + (1 - alpha).sqrt() * draw(index)
        torch.testing.assert_close(step.x * alpha_bar[t - 1].sqrt(), ddpm, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ancestral_is_ddim_with_eta(eta: float) -> None:
    """Song et al. 2020, equations 12 and 16."""
    alpha_bar, sigmas = chain()
    ddim = draw(15)
    steps = ancestral(gaussian, ddim / alpha_bar[-1].sqrt(), sigmas, draw, eta=eta)
    for index, (t, step) in enumerate(zip(range(50, 0, -1), steps, strict=True)):
        now, before = alpha_bar[t], alpha_bar[t - 1]
        noise = eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
        eps = eps_of(ddim, now)
        x0 = (ddim - (1 - now).sqrt() * eps) / now.sqrt()
        ddim = before.sqrt() * x0 + (1 - before - noise**2).sqrt() * eps + noise * draw(index)
        torch.testing.assert_close(step.x * before.sqrt(), ddim, rtol=1e-9, atol=1e-9)


def test_ancestral_without_noise_is_euler() -> None:
    sigmas = grid(Karras(), 10)
    x = 80 * draw(5)
    for ours, other in zip(ancestral(gaussian, x, sigmas, eta=0.0), euler(gaussian, x, sigmas), strict=True):
        torch.testing.assert_close(ours.x, other.x, rtol=1e-12, atol=1e-12)


def test_the_chain_equals_diffusers() -> None:
    from diffusers import DDPMScheduler

    alpha_bar = DDPMScheduler(num_train_timesteps=1000).alphas_cumprod.double()
    torch.testing.assert_close(chain(1000)[0][1:], alpha_bar, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_equals_diffusers_schedulers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    timesteps = 20
    scheduler = getattr(diffusers, name)(num_train_timesteps=timesteps, clip_sample=False)
    scheduler.alphas_cumprod = chain(timesteps)[0][1:]  # in float64
    scheduler.alphas = scheduler.alphas_cumprod / chain(timesteps)[0][:-1]
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(timesteps)
    noise = itertools.count()
    monkeypatch.setattr(f"diffusers.schedulers.{_module(name)}.randn_tensor", lambda *_, **__: draw(next(noise)))
    alpha_bar, sigmas = chain(timesteps)
    theirs = draw(6)
    ours = (euler if name == "DDIMScheduler" else ancestral)(gaussian, theirs / alpha_bar[-1].sqrt(), sigmas, draw)
    for t, step in zip(scheduler.timesteps, ours, strict=True):
        theirs = scheduler.step(eps_of(theirs, alpha_bar[t + 1]), t, theirs).prev_sample
        torch.testing.assert_close(step.x * alpha_bar[t].sqrt(), theirs, rtol=1e-9, atol=1e-9)


def _module(name: str) -> str:
    return {"DDIMScheduler": "scheduling_ddim", "DDPMScheduler": "scheduling_ddpm"}[name]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_dpmpp_2m_equals_diffusers_solver() -> None:
    from diffusers import DPMSolverMultistepScheduler

    sigmas = grid(Karras(sigma_min=0.02, sigma_max=10), 12)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, prediction_type="sample", final_sigmas_type="zero",
        lower_order_final=False, use_karras_sigmas=True, thresholding=False,
    )  # fmt: skip
    scheduler.set_timesteps(12)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    alphas = 1 / torch.sqrt(1 + scheduler.sigmas**2)
    x = sigmas[0] * draw(7)
    theirs = x * alphas[0]
    for index, step in enumerate(dpmpp_2m(gaussian, x, sigmas)):
        x0 = gaussian(theirs / alphas[index], sigmas[index])
        theirs = scheduler.step(x0, scheduler.timesteps[index], theirs).prev_sample
        torch.testing.assert_close(step.x * alphas[index + 1], theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_denoiser_calls_of_a_step(sampler: str) -> None:
    levels: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        levels.append(sigma)
        return gaussian(x, sigma)

    *_, _last = SAMPLERS[sampler](denoise, 80 * draw(8), grid(Karras(), 9), draw)
    assert len(levels) == (17 if sampler == "heun" else 9)
    assert min(levels) > 0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("wrong", [[], [1.0], [1.0, 2.0], [2.0, 1.0, 1.0], [1.0, -1.0], [1.0, 0.0, 0.0]])
def test_a_grid_that_does_not_decrease_is_refused(name: str, wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="strictly decreasing"):
        next(SAMPLERS[name](gaussian, draw(9), wrong, draw))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_that_draws_noise_says_so(name: str) -> None:
    sampler: Any = SAMPLERS[name]
    steps = sampler(gaussian, draw(10), [2.0, 1.0, 0.0])
    if name in {"ancestral", "ancestral_beta", "consistency"}:
        with pytest.raises(ValueError, match="give it noise="):
            next(steps)
    else:
        assert len(list(steps)) == 2


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("leave", [1, 100])
def test_gradients_are_off_inside_a_sampler_only(name: str, leave: int) -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    modes = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return weight * gaussian(x, sigma)

    for count, step in enumerate(SAMPLERS[name](denoise, 80 * draw(11), grid(Karras(), 4), draw), 1):
        assert torch.is_grad_enabled()
        assert not step.x.requires_grad
        if count == leave:
            break
    assert torch.is_grad_enabled()
    assert modes
    assert not any(modes)


class Bounded(torch.nn.Module):
    """A network of about unit scale, as group norm makes it, that depends on all of its inputs."""

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(x.roll(1, 3) - x + (noise + label / 10)[:, None, None, None])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_combination_is_finite(schedule: str, parameterization: str, sampler: str) -> None:
    trained = SCHEDULES[schedule]()
    denoiser = Denoiser(Bounded(), parameterization, 0.5, 10, trained.noise_input)
    label = torch.tensor([3, 10])
    for steps in (1, 2, 5):
        sigmas = grid(trained, steps)
        x = (draw(12, 2) * sigmas[0]).float()
        *_, last = SAMPLERS[sampler](guide(denoiser, label, 1.5), x, sigmas, lambda step: draw(step, 2).float())
        assert last.x.isfinite().all()
        assert last.sigma == 0.0


def test_one_step_is_the_first_prediction() -> None:
    x = 80 * draw(13)
    for name in SAMPLERS:
        (step,) = SAMPLERS[name](gaussian, x, [80.0, 0.0], draw)
        torch.testing.assert_close(step.x, gaussian(x, 80.0))


def test_cosine_chain_reaches_the_data() -> None:
    denoise: DenoiseFn = gaussian
    sigmas = grid(Cosine(), 100)
    *_, last = euler(denoise, exact(draw(14), 0, sigmas[0]), sigmas)
    torch.testing.assert_close(last.x, draw(14), rtol=0.05, atol=0.05)


def test_consistency_is_algorithm_1() -> None:
    """Song et al. 2023, with epsilon = 0."""
    sigmas = [80.0, 5.0, 0.5, 0.0]
    x = 80 * draw(16)
    for index, step in enumerate(consistency(gaussian, x, sigmas, draw)):
        expected = gaussian(x, sigmas[index])
        assert step.sigma == sigmas[index + 1]
        assert torch.equal(step.x0_hat, expected)
        x = expected + sigmas[index + 1] * draw(index)
        assert torch.equal(step.x, x)


@pytest.mark.parametrize("sigmas", [[80.0, 0.0], [80.0, 2.0, 0.0]])
def test_consistency_gives_the_only_image_of_a_data_set_exactly(sigmas: list[float]) -> None:
    """For a single image the expected clean image is a consistency function: every path ends there."""
    only = draw(17)
    *_, last = consistency(lambda _x, _sigma: only, 80 * draw(18), sigmas, draw)
    assert torch.equal(last.x, only)


def test_options_are_the_keyword_only_arguments_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(
        denoise: DenoiseFn, x: Tensor, sigmas: list[float], noise: object, *, churn: float = 0.5, mode: str = "a"
    ) -> Iterator[Step]:
        yield Step(0.0, churn * x, x)

    def careless(denoise: DenoiseFn, x: Tensor, sigmas: list[float], noise: object, *, churn: float) -> Iterator[Step]:
        yield Step(0.0, churn * x, x)

    monkeypatch.setitem(SAMPLERS, "mine", mine)
    monkeypatch.setitem(SAMPLERS, "partly", partial(partial(mine, churn=0.1)))
    monkeypatch.setitem(SAMPLERS, "careless", careless)
    assert sampler_options("mine") == {"churn": 0.5, "mode": "a"}
    assert sampler_options("partly") == {"mode": "a"}
    assert {name: sampler_options(name) for name in ("euler", "ancestral", "ancestral_beta")} == {
        "euler": {}, "ancestral": {"eta": 1.0}, "ancestral_beta": {}
    }  # fmt: skip
    with pytest.raises(PluginError, match="'careless' has an option without a default"):
        sampler_options("careless")
    with pytest.raises(ValueError, match="there is no sampler 'yours'; use euler, "):
        sampler_options("yours")


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_eta_outside_of_0_to_1_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta must be between 0 and 1"):
        next(ancestral(gaussian, draw(19), [2.0, 1.0], draw, eta=eta))
