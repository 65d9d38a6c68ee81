"""What every training run shares: a state, the walk over the images, and what each step reports."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pocketdiff.config import AnyConfig
from pocketdiff.errors import PocketdiffError
from pocketdiff.optim import update_ema

Losses = dict[str, Float[Tensor, ""]]
"""A step's losses by name, left on their device: the caller decides when to wait for them."""


class TrainingError(PocketdiffError):
    """Training that cannot go on."""

    status = 1


Net = TypeVar("Net", bound=nn.Module)


@dataclass
class TrainState(Generic[Net]):
    """All that training changes. Every draw follows from the config's seed and ``seen``, so no generator is kept."""

    net: Net
    """What is trained: a denoiser, or a generator with its discriminator."""
    ema: Net
    """The same with averaged weights."""
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seen: int = 0


class Metrics(NamedTuple):
    """What a step reports."""

    step: int
    """Steps taken so far."""
    seen: int
    """Images seen so far, repeats counted."""
    epoch: int
    """Index of the epoch of the last image seen, from 0."""
    losses: Losses
    """The batch's mean losses."""
    lr: float
    """Share of the peak learning rates at this step."""


def walk(
    state: TrainState[Any], n: int, config: AnyConfig, take_step: Callable[[range, float], Losses]
) -> Iterator[Metrics]:
    """Takes steps until the config's images or epochs are seen, from wherever the state stands.

    Yields after the step and the EMA's update, so leaving the loop is always safe.

    Args:
        state: Changed in place.
        n: How many training images there are.
        config: The run's config.
        take_step: Takes one optimizer step on the images of these indices in the run, at this share of the peak
            learning rates.

    Yields:
        The step's metrics.

    Raises:
        TrainingError: If ``take_step`` finds that it cannot be taken; the state is then as the last step left it.
    """
    length = config.length(n)
    while state.seen < length:
        # In whole epochs a batch ends where its epoch does; else where the run does.
        left = n - state.seen % n if config.epochs else length - state.seen
        ahead = range(state.seen, state.seen + min(config.batch, left))
        lr = config.learning_rate(state.seen, n)
        kept = [buffer.clone() for buffer in state.net.buffers()]  # What batch norm has seen, say.
        state.net.train()  # Whoever drew with it in between left it otherwise.
        try:
            losses = take_step(ahead, lr)
        except TrainingError:
            for buffer, before in zip(state.net.buffers(), kept, strict=True):
                buffer.copy_(before)
            raise
        state.step += 1
        state.seen += len(ahead)
        update_ema(state.ema, state.net, state.step, config.ema)
        yield Metrics(state.step, state.seen, (state.seen - 1) // n, losses, lr)


def check_finite(losses: Mapping[str, Tensor], gradients: list[Tensor], step: int, advice: str) -> None:
    """Sees, before a step is taken, that it does no harm.

    Args:
        losses: The step's losses.
        gradients: All of them.
        step: Steps taken before it.
        advice: What the user may try instead.

    Raises:
        TrainingError: If a loss or a gradient is not finite.
    """
    if not (sum(losses.values()) + torch.nn.utils.get_total_norm(gradients)).isfinite():
        raise TrainingError(
            f"a loss or a gradient is not finite at step {step + 1:,}, and the step was not taken; try {advice}"
        )
