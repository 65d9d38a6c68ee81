"""Training of diffusion models: the loop, its draws, its exactness."""

import math
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from pocketdiff.checkpoint import RunConfig
from pocketdiff.data import Dataset
from pocketdiff.errors import TrainingError
from pocketdiff.methods.diffusion import PRESETS, DiffusionConfig
from pocketdiff.methods.loop import StepReport, TrainState, batches
from pocketdiff.model import DiffusionModel
from tests.helpers import (
    assert_draws_the_requested_classes,
    assert_same,
    distances_to_class_means,
    draws,
    model_of,
    new_state,
    resumed,
    steps,
    tensors,
    trained,
)


@pytest.mark.parametrize("stops", [(1,), (5,), (6,), (3, 4), (2, 11)])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    stops: tuple[int, ...], tiny_config: DiffusionConfig, tiny_run: RunConfig, tiny_data: Dataset, tmp_path
) -> None:
    """Inside an epoch (an epoch is 40 images, 5 steps), at its edge, twice in a row, before the last step."""
    config = tiny_config
    whole, reports = trained(config, tiny_data)
    state, again = resumed(config, tiny_data, stops, tmp_path)
    assert_same(state, whole)
    assert [(r.step, r.seen, r.epoch, r.losses["loss"].item(), r.lr) for r in again] == [
        (r.step, r.seen, r.epoch, r.losses["loss"].item(), r.lr) for r in reports
    ]


def test_a_run_sees_exactly_its_images(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    state, reports = trained(tiny_config, tiny_data)
    assert state.seen == 92
    assert [r.seen for r in reports] == [*range(8, 92, 8), 92]
    assert [r.epoch for r in reports] == [(seen - 1) // 40 for seen in (*range(8, 92, 8), 92)]
    assert list(steps(state, tiny_config, tiny_data)) == []


def test_the_seed_decides_everything(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    torch.manual_seed(1)
    one, _ = trained(tiny_config, tiny_data)
    torch.manual_seed(2)
    same, _ = trained(tiny_config, tiny_data)
    other, _ = trained(tiny_config.model_copy(update={"seed": 1}), tiny_data)
    assert_same(one, same)
    assert not torch.equal(one.net.net.first.weight, other.net.net.first.weight)


def test_building_leaves_torchs_own_generator_as_it_was(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    before = torch.get_rng_state()
    trained(tiny_config.model_copy(update={"images": 8}), tiny_data)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_draws_do_not_depend_on_the_batch(augment: str, tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    config = tiny_config.model_copy(update={"augment": augment})
    whole = draws(config, tiny_data, 30, 20)
    parts = [draws(config, tiny_data, 30, 7), draws(config, tiny_data, 37, 13)]
    for field, halves in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(field, torch.cat(halves))


def test_flips_mirror_half_of_the_images_anew_in_each_epoch(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    """The order of the images, their noise and their labels stay the same."""
    flip = tiny_config.model_copy(update={"augment": "flip"})
    mirrored = []
    for epoch in range(2):
        plain, flipped = (draws(config, tiny_data, epoch * 40, 40) for config in (tiny_config, flip))
        assert all(torch.equal(a, b) for a, b in zip(plain[1:], flipped[1:], strict=True))
        same = (plain.x0 == flipped.x0).flatten(1).all(1)
        assert torch.equal(plain.x0[~same].flip(3), flipped.x0[~same])
        mirrored.append(~same)
        assert 10 <= same.sum() <= 30
    assert not torch.equal(*mirrored)


def test_an_epoch_shows_each_image_once_in_a_new_order(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    first, second = (draws(tiny_config, tiny_data, epoch * 40, 40).x0 for epoch in (0, 1))
    assert sorted(x.sum().item() for x in first) == sorted(x.sum().item() for x in second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_labels_are_dropped_at_their_rate(rate: float, tiny_data: Dataset) -> None:
    label = draws(DiffusionConfig(label_dropout=rate), tiny_data, 0, 2000).label
    assert (label == 10).double().mean().item() == pytest.approx(rate, abs=0.035)


def test_noise_levels_follow_the_schedule(tiny_data: Dataset) -> None:
    log_sigma = draws(DiffusionConfig(), tiny_data, 0, 4000).sigma.log()
    assert log_sigma.mean().item() == pytest.approx(0, abs=0.02)
    assert log_sigma.std().item() == pytest.approx(1, abs=0.02)


def test_progress_is_the_fraction_of_the_run_that_is_done(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    for config, length in ((tiny_config, 92), (DiffusionConfig(epochs=3, batch=8), 120)):
        state = TrainState({}, [], seen=64)
        assert next(batches(config, tiny_data.train, state)).progress == 64 / length


@pytest.mark.parametrize("field", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_step(
    field: str, tiny_config: DiffusionConfig, tiny_data: Dataset
) -> None:
    state = new_state(tiny_config, tiny_data)
    loop = steps(state, tiny_config, tiny_data)
    for _ in range(3):
        next(loop)
    before = {name: tensor.clone() for name, tensor in tensors(state).items()}
    if field == "loss":
        loss = state.net.loss
        state.net.loss = lambda *batch, **options: loss(*batch, **options) * math.nan
    else:
        next(state.net.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"not finite at step 4, .* --muon-lr"):
        next(loop)
    assert state.step == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(state).items())


def test_leaving_the_loop_is_safe(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    """The EMA is up to date at every yield: after one step it is that step's weights. The modules are in eval mode."""
    state = new_state(tiny_config, tiny_data)
    next(steps(state, tiny_config, tiny_data))
    for ema, net in zip(state.ema.parameters(), state.net.parameters(), strict=True):
        assert torch.equal(ema, net)
    assert not any(module.training for part in state.modules.values() for module in part.modules())


def test_bf16_keeps_weights_in_fp32(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    state, reports = trained(tiny_config.model_copy(update={"precision": "bf16"}), tiny_data)
    assert {parameter.dtype for parameter in state.net.parameters()} == {torch.float32}
    assert reports[-1].losses["loss"].isfinite()


def test_compile_compiles_the_trained_network_and_changes_no_name(
    tiny_config: DiffusionConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def note(module: torch.nn.Module) -> None:
        compiled.append(module)

    monkeypatch.setattr(torch.nn.Module, "compile", note)
    state = new_state(tiny_config.model_copy(update={"compile": True}), tiny_data)
    assert compiled == [state.net.net]
    assert state.net.state_dict().keys() == state.ema.state_dict().keys()


@pytest.mark.parametrize("weighting", ["min_snr", "edm"])
def test_the_loss_weighting_reaches_the_loss(weighting: str, tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    from pocketdiff.denoiser import WEIGHTINGS

    config = tiny_config.model_copy(update={"loss_weighting": weighting})
    state = new_state(config, tiny_data)
    batch = draws(config, tiny_data, 0, 8)
    expected = state.net.loss(*batch, weighting=WEIGHTINGS[weighting]).mean()
    plain = state.net.loss(*batch).mean()
    report = next(steps(state, config, tiny_data))
    torch.testing.assert_close(report.losses["loss"], expected.detach())
    assert abs(report.losses["loss"] - plain) > 1e-3


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=pytest.mark.slow if name == "gpu" else ()) for name in PRESETS]
)
def test_every_preset_takes_a_step(preset: str, tiny_data: Dataset) -> None:
    config = PRESETS[preset].model_copy(update={"images": 2, "epochs": None, "batch": 2, "compile": False})
    state, reports = trained(config, tiny_data)
    assert reports[0].losses["loss"].isfinite()
    assert all(parameter.isfinite().all() for parameter in state.ema.parameters())


class Learned(NamedTuple):
    """Forty digits, learned by heart."""

    reports: list[StepReport]
    before: torch.Tensor
    """The class means' distances before training."""
    model: DiffusionModel


@pytest.fixture(scope="module")
def learned(tiny_data: Dataset) -> Learned:
    config = PRESETS["quick"].model_copy(update={"images": 6_400, "batch": 32})
    state = new_state(config, tiny_data)
    model = model_of(state, config, tiny_data)
    before = distances_to_class_means(model, tiny_data)
    return Learned(list(steps(state, config, tiny_data)), before, model)


@pytest.mark.slow
def test_forty_digits_can_be_learned_by_heart(learned: Learned) -> None:
    """On real digits the loss falls far below that of a model which knows only their mean."""
    losses = torch.stack([report.losses["loss"] for report in learned.reports])
    assert losses[:5].mean() > 0.9
    assert losses[-20:].mean() < 0.3 * losses[:5].mean()


@pytest.mark.slow
def test_a_trained_model_draws_the_requested_classes(learned: Learned, tiny_data: Dataset) -> None:
    assert_draws_the_requested_classes(learned.model, tiny_data, learned.before)


COMPILED = """
import torch
from pocketdiff.checkpoint import load
from pocketdiff.data import Dataset
from pocketdiff.methods.diffusion import Diffusion, DiffusionConfig
from pocketdiff.methods.loop import train
from pocketdiff.nets.unet import UNetConfig

torch.set_num_threads(1)
pixels = torch.randint(256, (40, 1, 20, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
data = Dataset.from_arrays(pixels, torch.arange(40) % 4)
net = UNetConfig(widths=(8,), blocks=1, embedding=8)
for compiled in (False, True):
    config = DiffusionConfig(images=16, batch=8, net=net, compile=compiled)
    state = Diffusion().new_state(config, data.info, "cpu", load)
    print(*(report.losses["loss"].item() for report in train(Diffusion(), state, data.train, config)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler: apt install g++")
def test_compiled_steps_equal_the_plain_ones(tmp_path) -> None:
    """Up to rounding, because the kernels differ. In its own process: the tests' type checks cannot be compiled."""
    command = [sys.executable, "-c", COMPILED]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    plain, compiled = ([float(word) for word in line.split()] for line in done.stdout.splitlines())
    assert len(plain) == 2
    assert compiled == pytest.approx(plain, abs=1e-4)
    assert list(tmp_path.rglob("*.so"))  # It was really compiled.
