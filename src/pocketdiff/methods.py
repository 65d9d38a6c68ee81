"""What can be trained: for each kind of config, how a run begins, how it goes on, and what draws with its weights."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pocketdiff import gan, train
from pocketdiff.generate import DiffusionModel, GanModel
from pocketdiff.loop import Metrics, TrainState


class Method(NamedTuple):
    """A way of training, for configs of one kind."""

    new_state: Callable[..., TrainState[Any]]
    """(config, info, device) to the state before the first step."""
    train: Callable[..., Iterator[Metrics]]
    """(state, data, config) to the steps."""
    model: Callable[..., DiffusionModel | GanModel]
    """(net of a state, config, info) to what draws with its weights, as they are at the time."""


METHODS: dict[str, Method] = {
    "diffusion": Method(train.new_state, train.train, DiffusionModel),
    "gan": Method(gan.new_state, gan.train, lambda net, config, info: GanModel(net.generator, config, info)),
}
