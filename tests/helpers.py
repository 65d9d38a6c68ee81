"""Helpers that several test files share."""

from typing import Any

import torch

from pocketdiff import checkpoint
from pocketdiff.config import MethodConfig
from pocketdiff.data import Dataset
from pocketdiff.methods import METHODS
from pocketdiff.methods.loop import StepReport, TrainState, train


def new_state(config: MethodConfig, data: Dataset) -> TrainState:
    """The state before the first step."""
    return METHODS.find(config.kind).new_state(config, data.info, "cpu", checkpoint.load)


def steps(state: TrainState, config: MethodConfig, data: Dataset) -> Any:
    """The training loop of a state."""
    return train(METHODS.find(config.kind), state, data.train, config)


def trained(config: MethodConfig, data: Dataset) -> tuple[TrainState, list[StepReport]]:
    """A state after the whole run, and its reports."""
    state = new_state(config, data)
    return state, list(steps(state, config, data))


def model_of(state: TrainState, config: MethodConfig, data: Dataset) -> Any:
    """The model that draws with a state's averaged weights."""
    return METHODS.find(config.kind).model(state.ema, config, data.info)


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    """Every tensor of a state."""
    modules = {
        f"{part}.{name}": tensor
        for part, module in state.modules.items()
        for name, tensor in module.state_dict().items()
    }
    optimizers = {
        f"{number}.{index}.{key}": tensor
        for number, optimizer in enumerate(state.optimizers)
        for index, kept in optimizer.state_dict()["state"].items()
        for key, tensor in kept.items()
    }
    return modules | optimizers


def assert_same(one: TrainState, other: TrainState) -> None:
    """Two states are equal bit for bit."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert (one.step, one.seen) == (other.step, other.seen)
