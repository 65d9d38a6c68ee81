import itertools
import math
from typing import Any

import pytest
import torch

from pocketdiff import checkpoint
from pocketdiff.checkpoint import RunConfig
from pocketdiff.config import PRESETS, TrainConfig
from pocketdiff.data import Dataset
from pocketdiff.denoiser import Denoiser
from pocketdiff.loop import Metrics, TrainingError, TrainState
from pocketdiff.train import draw_batch, new_state, train


def tensors(state: TrainState[Any]) -> dict[str, torch.Tensor]:
    """All that a state holds."""
    return {
        **{f"net.{name}": tensor for name, tensor in state.net.state_dict().items()},
        **{f"ema.{name}": tensor for name, tensor in state.ema.state_dict().items()},
        **{
            f"{number}.{index}.{key}": tensor
            for number, optimizer in enumerate(state.optimizers)
            for index, kept in optimizer.state_dict()["state"].items()
            for key, tensor in kept.items()
        },
    }


def assert_same(one: TrainState[Any], other: TrainState[Any]) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert (one.step, one.seen) == (other.step, other.seen)


def finished(config: TrainConfig, data: Dataset) -> tuple[TrainState[Denoiser], list[Metrics]]:
    state = new_state(config, data.info)
    return state, list(train(state, data.train, config))


@pytest.mark.parametrize("stops", [(1,), (5,), (6,), (3, 4), (2, 11)])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    stops, tiny_config: TrainConfig, tiny_run: RunConfig, tiny_data, tmp_path
) -> None:
    """In mid-epoch (an epoch is 40 images, 5 steps), at its edge, twice in a row, before the last step."""
    config = tiny_config
    whole, metrics = finished(config, tiny_data)
    state, resumed = new_state(config, tiny_data.info), list[Metrics]()
    for stop in (*stops, None):
        resumed += itertools.islice(train(state, tiny_data.train, config), stop and stop - state.step)
        path = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
        state = new_state(config, tiny_data.info)
        checkpoint.restore_checkpoint(path, state, tiny_run)
    assert_same(state, whole)
    assert [(m.step, m.seen, m.epoch, m.losses["loss"].item(), m.lr) for m in resumed] == [
        (m.step, m.seen, m.epoch, m.losses["loss"].item(), m.lr) for m in metrics
    ]


def test_a_run_sees_just_its_images(tiny_config, tiny_data) -> None:
    state, metrics = finished(tiny_config, tiny_data)
    assert state.seen == 92
    assert [m.seen for m in metrics] == [*range(8, 92, 8), 92]
    assert [m.epoch for m in metrics] == [(seen - 1) // 40 for seen in (*range(8, 92, 8), 92)]
    assert list(train(state, tiny_data.train, tiny_config)) == []


def test_seeds_decide_everything(tiny_config, tiny_data) -> None:
    torch.manual_seed(1)
    one, _ = finished(tiny_config, tiny_data)
    torch.manual_seed(2)
    same, _ = finished(tiny_config, tiny_data)
    other, _ = finished(tiny_config.model_copy(update={"seed": 1}), tiny_data)
    assert_same(one, same)
    assert not torch.equal(one.net.net.first.weight, other.net.net.first.weight)  # type: ignore[arg-type]


def test_draws_do_not_depend_on_the_batch(tiny_config, tiny_data) -> None:
    whole = draw_batch(tiny_data.train, tiny_config, 10, 30, 20)
    parts = [draw_batch(tiny_data.train, tiny_config, 10, 30, 7), draw_batch(tiny_data.train, tiny_config, 10, 37, 13)]
    for field, halves in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(field, torch.cat(halves))


def test_an_epoch_shows_each_image_once_in_another_order_each_time(tiny_config, tiny_data) -> None:
    first, second = (draw_batch(tiny_data.train, tiny_config, 10, epoch * 40, 40).x0 for epoch in (0, 1))
    assert sorted(x.sum().item() for x in first) == sorted(x.sum().item() for x in second)
    assert not torch.equal(first, second)


def test_labels_are_dropped_at_their_rate(tiny_data) -> None:
    for rate in (0.0, 0.1, 0.5):
        batch = draw_batch(tiny_data.train, TrainConfig(label_dropout=rate), 10, 0, 4000)
        assert (batch.label == 10).double().mean().item() == pytest.approx(rate, abs=0.025)


def test_noise_levels_follow_the_schedule(tiny_data) -> None:
    log_sigma = draw_batch(tiny_data.train, TrainConfig(), 10, 0, 4000).sigma.log()
    assert log_sigma.mean().item() == pytest.approx(0, abs=0.02)
    assert log_sigma.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("field", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_step(field, tiny_config, tiny_data) -> None:
    state = new_state(tiny_config, tiny_data.info)
    steps = train(state, tiny_data.train, tiny_config)
    for _ in range(3):
        next(steps)
    before = {name: tensor.clone() for name, tensor in tensors(state).items()}
    if field == "loss":
        loss = state.net.loss
        state.net.loss = lambda *batch: loss(*batch) * math.nan  # type: ignore[method-assign]
    else:
        next(state.net.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"not finite at step 4, .* --muon-lr"):
        next(steps)
    assert state.step == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(state).items())


def test_leaving_the_loop_is_safe(tiny_config, tiny_data) -> None:
    """The EMA is up to date at every yield: after one step it is that step's weights."""
    state = new_state(tiny_config, tiny_data.info)
    for _ in train(state, tiny_data.train, tiny_config):
        break
    for ema, net in zip(state.ema.parameters(), state.net.parameters(), strict=True):
        assert torch.equal(ema, net)


def test_bf16_keeps_weights_in_fp32(tiny_config, tiny_data) -> None:
    state, metrics = finished(tiny_config.model_copy(update={"precision": "bf16"}), tiny_data)
    assert {parameter.dtype for parameter in state.net.parameters()} == {torch.float32}
    assert metrics[-1].losses["loss"].isfinite()


def test_compile_goes_to_the_network_and_changes_no_name(tiny_config, tiny_data, monkeypatch) -> None:
    compiled = []

    def note(module: torch.nn.Module) -> None:
        compiled.append(module)

    monkeypatch.setattr(torch.nn.Module, "compile", note)
    state = new_state(tiny_config.model_copy(update={"compile": True}), tiny_data.info)
    assert compiled == [state.net.net]
    assert state.net.state_dict().keys() == state.ema.state_dict().keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_a_step(preset, tiny_data) -> None:
    config = PRESETS[preset].model_copy(update={"images": 2, "epochs": None, "batch": 2, "compile": False})
    state, metrics = finished(config, tiny_data)
    assert metrics[0].losses["loss"].isfinite()
    assert all(parameter.isfinite().all() for parameter in state.ema.parameters())


@pytest.mark.slow
def test_learns_forty_digits_by_heart(tiny_data) -> None:
    """Overfitting is the oldest check: on real digits the loss falls far below what guessing can reach."""
    config = PRESETS["quick"].model_copy(update={"images": 6_400, "batch": 32})
    _, metrics = finished(config, tiny_data)
    first, last = (
        torch.stack([m.losses["loss"] for m in metrics[part]]).mean().item() for part in (slice(0, 5), slice(-20, None))
    )
    assert first > 0.9
    assert last < 0.3 * first
