"""The original experiment, from its equations: t = 0..T, tables of T + 1 entries, images at DDPM's own scale.

The reference side never uses the package's schedule, scaling or samplers.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketdiff import pictures, rng
from pocketdiff.config import SamplingConfig
from pocketdiff.denoiser import Denoiser
from pocketdiff.guidance import guide
from pocketdiff.methods.diffusion import PRESETS
from pocketdiff.model import DiffusionModel, build_denoiser
from pocketdiff.nets.context_unet import ContextUnetConfig, ResidualConvBlock
from pocketdiff.samplers import SAMPLERS
from pocketdiff.schedule import DiscreteBeta, Karras, grid
from tests.helpers import draws, functional, new_state, steps, trained, used_context_unet

T = 400
CONFIG = PRESETS["ddpm"]
SCHEDULE = DiscreteBeta(timesteps=T, beta_start=1e-4, beta_end=0.02, zeroth=True)
SMALL = CONFIG.model_copy(update={"net": ContextUnetConfig(n_feat=8)})
CLASSES = 10


def tables(steps: int = T, start: float = 1e-4, end: float = 0.02) -> tuple[list[float], list[float]]:
    """beta_t and alpha_bar_t for t = 0..T, entry by entry."""
    beta = [(end - start) * t / steps + start for t in range(steps + 1)]
    alpha_bar, product = [], 1.0
    for b in beta:
        product *= 1 - b
        alpha_bar.append(product)
    return beta, alpha_bar


BETA, ABAR = tables()


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Smooth(nn.Module):
    """Stands in for the network: a smooth function of all its inputs."""

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        time, label = time.view(-1, 1, 1, 1), label.view(-1, 1, 1, 1)
        return torch.tanh(x * (1 + 0.1 * label) + torch.sin(5 * time)) + 0.3 * x * time


def smooth() -> Denoiser:
    return Denoiser(Smooth(), "eps", 1.0, CLASSES, SCHEDULE.noise_input)


# The schedule


@pytest.mark.parametrize(("timesteps", "start", "end"), [(400, 1e-4, 0.02), (1, 1e-4, 0.02), (7, 1e-3, 0.3)])
def test_the_tables_are_the_scripts(timesteps: int, start: float, end: float) -> None:
    _, alpha_bar = tables(timesteps, start, end)
    schedule = DiscreteBeta(timesteps=timesteps, beta_start=start, beta_end=end, zeroth=True)
    ours = [schedule.sigma_end, *schedule.sigmas.tolist()]
    assert ours == pytest.approx([math.sqrt((1 - a) / a) for a in alpha_bar], rel=1e-9)
    assert grid(schedule, timesteps) == ours[::-1]


def test_the_last_time_leaves_13_percent_of_the_image() -> None:
    assert math.sqrt(ABAR[T]) == pytest.approx(0.132, abs=5e-4)
    assert 1 / math.sqrt(1 + SCHEDULE.sigma_max**2) == pytest.approx(math.sqrt(ABAR[T]), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [SCHEDULE, DiscreteBeta(), DiscreteBeta(timesteps=1), DiscreteBeta(timesteps=2)])
def test_the_networks_noise_input_is_the_time(schedule: DiscreteBeta, dtype: torch.dtype) -> None:
    time = schedule.noise_input(schedule.sigmas.to(dtype))
    expected = torch.arange(1, schedule.timesteps + 1, dtype=torch.float64) / schedule.timesteps
    torch.testing.assert_close(time.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_between_two_levels_time_is_interpolated_in_log_sigma() -> None:
    low, high = SCHEDULE.sigmas[9], SCHEDULE.sigmas[10]
    between = torch.stack([low, (low * high).sqrt(), high])
    assert (SCHEDULE.noise_input(between) * T).tolist() == pytest.approx([10, 10.5, 11])
    beyond = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    assert (SCHEDULE.noise_input(beyond) * T).tolist() == pytest.approx([1, 400])


def test_training_draws_t_uniformly_and_independently(tiny_data) -> None:
    sigma = draws(CONFIG, tiny_data, 0, 8000).sigma
    t = SCHEDULE.noise_input(sigma.double()) * T
    assert (t - t.round()).abs().max() < 1e-3
    counts = torch.bincount((t.round().long() - 1) // 100, minlength=4)
    assert (counts - 2000).abs().max() < 4 * math.sqrt(8000 * 0.25 * 0.75)
    pairs = torch.corrcoef(torch.stack([t[:-1], t[1:]]))
    assert pairs[0, 1].abs() < 4 / math.sqrt(8000)


# The denoiser and its loss


def test_the_denoiser_is_eps_on_the_t_clock_for_all_t() -> None:
    denoiser, label = smooth(), torch.tensor([4])
    for t in range(1, T + 1):
        sigma = math.sqrt((1 - ABAR[t]) / ABAR[t])
        x_t = draw(t, 1, 1, 4, 4)
        eps = Smooth()(x_t, torch.tensor([t / T], dtype=torch.float64), label)
        x0 = (x_t - math.sqrt(1 - ABAR[t]) * eps) / math.sqrt(ABAR[t])
        x = x_t / math.sqrt(ABAR[t])
        ours = denoiser(x, torch.tensor([sigma], dtype=torch.float64), label)
        torch.testing.assert_close(ours, x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close((x - ours) / sigma, eps, rtol=1e-7, atol=1e-7)


def test_the_loss_is_the_scripts_for_the_same_draws() -> None:
    x0, eps, label = draw(1, 400, 1, 4, 4).sigmoid(), draw(2, 400, 1, 4, 4), torch.arange(400) % (CLASSES + 1)
    t = torch.arange(1, T + 1)
    abar = torch.tensor(ABAR, dtype=torch.float64)[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    expected = F.mse_loss(Smooth()(x_t, t.double() / T, label), eps)
    sigma = ((1 - abar) / abar).sqrt().flatten()
    torch.testing.assert_close(smooth().loss(x0, eps, sigma, label).mean(), expected, rtol=1e-9, atol=0)


def test_images_lie_in_zero_to_one(tiny_data) -> None:
    batch = draws(CONFIG, tiny_data, 0, 40)
    pixels = torch.cat([tiny_data.train.pixels[tiny_data.train.labels == label] for label in range(10)])
    assert (batch.x0.min().item(), batch.x0.max().item()) == (0.0, 1.0)
    torch.testing.assert_close(batch.x0.sum(), pixels.sum() / 255)


# Sampling


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0])
def test_the_chain_is_the_scripts_step_for_step(w: float) -> None:
    """x = (x - eps (1 - alpha_t) / sqrt(1 - abar_t)) / sqrt(alpha_t) + sqrt(beta_t) z, with z = 0 at t = 1."""
    denoiser, label = smooth(), torch.tensor([3, 7])
    null = torch.full_like(label, CLASSES)
    x = draw(0, 2, 1, 4, 4, dtype=torch.float32)
    z = [draw(1000 + k, 2, 1, 4, 4, dtype=torch.float32) for k in range(T)]
    sigmas = CONFIG.sampling.grid(SCHEDULE)
    start = x * (sigmas[0] ** 2 + CONFIG.sigma_data**2) ** 0.5
    steps = SAMPLERS[CONFIG.sampling.sampler](guide(denoiser, label, 1 + w), start, sigmas, z.__getitem__)
    count = 0
    for t, step in zip(range(T, 0, -1), steps, strict=True):
        time = torch.full((2,), t / T)
        eps = (1 + w) * Smooth()(x, time, label) - w * Smooth()(x, time, null)
        x = (x - eps * (BETA[t] / math.sqrt(1 - ABAR[t]))) / math.sqrt(1 - BETA[t])
        if t > 1:
            x = x + math.sqrt(BETA[t]) * z[T - t]
        ours = step.x / math.sqrt(1 + step.sigma**2)
        assert step.sigma == pytest.approx(math.sqrt((1 - ABAR[t - 1]) / ABAR[t - 1]), rel=1e-6)
        torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
        count += 1
    assert count == T


@pytest.mark.parametrize(("timesteps", "end"), [(10_000, 0.02), (1000, 0.2)])
def test_the_longest_chains_work_in_float32(timesteps: int, end: float) -> None:
    """The square of their highest noise level overflows float32; eps must not change."""
    schedule = DiscreteBeta(timesteps=timesteps, beta_start=1e-4, beta_end=end, zeroth=True)
    denoiser = Denoiser(Smooth(), "eps", 1.0, CLASSES, schedule.noise_input)
    x_t, sigma, label = draw(1, 1, 1, 4, 4, dtype=torch.float32), torch.tensor([schedule.sigma_max]), torch.tensor([4])
    assert sigma.item() > 2e19
    expected = Smooth()(x_t, torch.ones(1), label)
    x = x_t * sigma
    torch.testing.assert_close((x - denoiser(x, sigma, label)) / sigma, expected, rtol=1e-5, atol=1e-5)


def test_the_start_has_unit_variance_at_the_scripts_scale(tiny_data) -> None:
    model = DiffusionModel(build_denoiser(SMALL, tiny_data.info), SMALL, tiny_data.info)
    start = model.start(range(100), model.grid()[0]) * math.sqrt(ABAR[T])
    assert start.std().item() == pytest.approx(1, rel=0.01)
    assert start.mean().item() == pytest.approx(0, abs=0.01)


def test_the_start_is_the_noise_of_the_seed(tiny_data) -> None:
    model = DiffusionModel(build_denoiser(SMALL, tiny_data.info), SMALL, tiny_data.info)
    noise = rng.normal(0, rng.Stream.START, [5], (1, 28, 28))
    torch.testing.assert_close(model.start([5], model.grid()[0]) * math.sqrt(ABAR[T]), noise)


# The network


@torch.no_grad()
@pytest.mark.parametrize(("n_feat", "channels", "classes"), [(8, 1, 10), (16, 3, 4)])
def test_the_network_is_the_scripts(n_feat: int, channels: int, classes: int) -> None:
    net = used_context_unet(n_feat, channels, classes).double()
    x, time = draw(1, classes + 1, channels, 28, 28), torch.linspace(0, 1, classes + 1, dtype=torch.float64)
    label = torch.arange(classes + 1)  # the last one is the null label
    context = torch.zeros(classes + 1, classes, dtype=torch.float64)
    context[torch.arange(classes), torch.arange(classes)] = -1
    expected = functional(net.state_dict(), x, time[:, None], context)
    torch.testing.assert_close(net(x, time, label), expected, rtol=1e-9, atol=1e-9)


def test_parameters_and_their_names_are_the_scripts() -> None:
    net = CONFIG.net.build((1, 28, 28), 10)
    assert sum(parameter.numel() for parameter in net.parameters()) == 6_585_601
    state = net.state_dict()
    for name, shape in {
        "init_conv.conv1.0.weight": (128, 1, 3, 3),
        "init_conv.conv2.1.running_var": (128,),
        "down1.model.0.conv1.0.weight": (128, 128, 3, 3),
        "down2.model.0.conv2.1.num_batches_tracked": (),
        "timeembed1.model.0.weight": (256, 1),
        "timeembed2.model.2.weight": (128, 128),
        "contextembed1.model.0.weight": (256, 10),
        "contextembed2.model.2.bias": (128,),
        "up0.0.weight": (256, 256, 7, 7),
        "up1.model.0.weight": (512, 128, 2, 2),
        "up1.model.2.conv2.1.weight": (128,),
        "up2.model.0.weight": (256, 128, 2, 2),
        "out.0.weight": (128, 256, 3, 3),
        "out.3.bias": (1,),
    }.items():
        assert state[name].shape == shape, name


def test_a_residual_block_of_equal_channels_skips_both_convolutions() -> None:
    block = ResidualConvBlock(8, 8, is_res=True).eval()
    nn.init.zeros_(block.conv2[1].weight)  # type: ignore[arg-type]
    x = draw(1, 2, 8, 5, 5, dtype=torch.float32)
    torch.testing.assert_close(block(x), x / 1.414)  # GELU(0) = 0


@pytest.mark.parametrize(("height", "width"), [(16, 16), (27, 33), (28, 28), (32, 20), (64, 64)])
def test_images_may_have_any_size(height: int, width: int) -> None:
    net = used_context_unet(8)
    x = draw(1, 2, 1, height, width, dtype=torch.float32)
    assert net(x, torch.rand(2), torch.tensor([3, 10])).shape == x.shape


# The preset


def test_the_preset_is_the_experiment(tiny_data) -> None:
    chosen: dict[str, object] = {
        "images": None, "epochs": 20, "batch": 256, "black": 0.0, "parameterization": "eps", "sigma_data": 1.0,
        "augment": "none", "loss_weighting": "uniform", "stratified": False,
        "label_dropout": 0.1, "muon_lr": None, "adam_lr": 1e-4, "warmup": 0.0,
        "lr_by_epoch": True, "ema": None, "precision": "fp32", "pictures_every": 1, "gifs_every": 5,
        "gif_steps": None, "gif_stride": 20, "guidance_strengths": (0.0, 0.5, 2.0),
        "net": {"kind": "context_unet", "n_feat": 128},
        "schedule": {
            "kind": "discrete_beta", "timesteps": 400, "beta_start": 1e-4, "beta_end": 0.02, "zeroth": True,
        },
        "sampling": {
            "sampler": "ancestral_beta", "steps": None, "scale": 1.5, "schedule": None, "interval": None,
            "guide": None, "options": {},
        },
    }  # fmt: skip
    assert {name: value for name, value in CONFIG.model_dump().items() if name in chosen} == chosen
    assert CONFIG.length(60_000) == 1_200_000
    state = new_state(SMALL, tiny_data)
    (adam,) = state.optimizers
    assert isinstance(adam, torch.optim.Adam)
    group = adam.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0)
    assert len(group["params"]) == len(list(state.net.parameters()))


def test_batches_end_with_the_epoch_and_the_learning_rate_falls_once_an_epoch(tiny_data) -> None:
    config = SMALL.model_copy(update={"epochs": 4, "batch": 16})
    state, rates, seen = new_state(config, tiny_data), [], []
    for report in steps(state, config, tiny_data):
        seen.append(report.seen)
        rates.append(state.optimizers[0].param_groups[0]["lr"])
        for ours, other in zip(state.ema.state_dict().values(), state.net.state_dict().values(), strict=True):
            assert torch.equal(ours, other)  # no average
    assert seen == [end + 40 * epoch for epoch in range(4) for end in (16, 32, 40)]
    assert rates == pytest.approx([1e-4 * (1 - epoch / 4) for epoch in range(4) for _ in range(3)])


@pytest.mark.parametrize("timesteps", [1, 3, 10, 400])
def test_gifs_show_the_frames_that_the_script_keeps(timesteps: int) -> None:
    """It keeps the state after step t, with t - 1 steps left, where t % 20 == 0, t == T or t < 8; never pure noise."""
    kept = [left for left in range(timesteps, -1, -1) if pictures.is_frame(left, timesteps, CONFIG.gif_stride)]
    assert kept == [t - 1 for t in range(timesteps, 0, -1) if t % 20 == 0 or t == timesteps or t < 8]
    assert len(kept) == {1: 1, 3: 3, 10: 8, 400: 27}[timesteps]


def test_an_image_is_the_last_state_at_the_scripts_scale(tiny_data) -> None:
    config = SMALL.model_copy(update={"schedule": SCHEDULE.model_copy(update={"timesteps": 5})})
    model = DiffusionModel(build_denoiser(config, tiny_data.info), config, tiny_data.info)
    *_, last = model.steps([3], [0])
    x = last.x / math.sqrt(1 + last.sigma**2)
    assert last.sigma == pytest.approx(0.01, rel=1e-3)
    image = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(model([3], [0]), image)
    *_, (left, sigma, shown) = model.frames([3], [0])
    assert (left, sigma) == (0, last.sigma)
    assert torch.equal(shown, image)


def test_other_samplers_draw_with_the_scripts_model(tiny_data) -> None:
    model = DiffusionModel(build_denoiser(SMALL, tiny_data.info), SMALL, tiny_data.info)
    fewer = model.with_sampling(SamplingConfig(sampler="euler", steps=7, schedule=None))
    assert len(fewer.grid()) == 8
    assert set(fewer.grid()) <= set(model.grid())
    off_the_chain = SamplingConfig(sampler="dpmpp_2m", steps=4, schedule=Karras(sigma_min=0.02, sigma_max=7.5))
    for way in (fewer, model.with_sampling(off_the_chain)):
        assert way.generate([1, 2], [3, 4]).shape == (2, 1, 28, 28)


@pytest.mark.slow
def test_a_small_network_learns_forty_digits_by_heart(tiny_data) -> None:
    """A network that predicts zeros has a loss of one."""
    config = CONFIG.model_copy(
        update={"net": ContextUnetConfig(n_feat=16), "epochs": 100, "batch": 20, "adam_lr": 2e-3}
    )
    _, reports = trained(config, tiny_data)
    losses = torch.stack([report.losses["loss"] for report in reports])
    assert losses[0] > 0.9
    assert losses[-40:].mean() < 0.1
