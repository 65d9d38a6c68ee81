"""Training: a state, and a generator that takes one optimizer step at a time."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pocketdiff import rng
from pocketdiff.config import TrainConfig
from pocketdiff.data import DataInfo, Images
from pocketdiff.denoiser import Denoiser
from pocketdiff.errors import PocketdiffError
from pocketdiff.generate import build_denoiser
from pocketdiff.optim import learning_rate, make_optimizers, take_step, update_ema


class TrainingError(PocketdiffError):
    """Training that cannot go on."""

    status = 1


@dataclass
class TrainState:
    """All that training changes. Every draw follows from the config's seed and ``seen``, so no generator is kept."""

    denoiser: Denoiser
    ema: Denoiser
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seen: int = 0

    @classmethod
    def new(cls, config: TrainConfig, info: DataInfo, device: torch.device | str = "cpu") -> "TrainState":
        """The state before the first step."""
        denoiser = build_denoiser(config, info).to(device)
        ema = copy.deepcopy(denoiser).requires_grad_(False)
        if config.compile:
            denoiser.net.compile()
        return cls(denoiser, ema, make_optimizers(denoiser.net, config.muon_lr, config.adam_lr, config.adam_beta2))


class Metrics(NamedTuple):
    """What a step reports."""

    step: int
    """Steps taken so far."""
    seen: int
    """Images seen so far, repeats counted."""
    epoch: int
    """Index of the epoch of the last image seen, from 0."""
    loss: Float[Tensor, ""]
    """The batch's mean loss, left on its device: the caller decides when to wait for it."""
    lr: float
    """Share of the peak learning rates at this step."""


class Batch(NamedTuple):
    """One optimizer step's draws."""

    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    sigma: Float[Tensor, " b"]
    label: Int[Tensor, " b"]


def draw_batch(data: Images, config: TrainConfig, null: int, seen: int, count: int) -> Batch:
    """Images, noise, noise levels and labels for the images ``seen`` to ``seen + count`` of a run.

    Each draw is keyed by how many images came before it, never by the batch, so the same images meet the same noise
    whatever the batch size and however many processes share the work.
    """
    indices = range(seen, seen + count)
    device = data.labels.device
    x0, label = data.batch(rng.visits(config.seed, indices, len(data)), config.black)
    eps = rng.normal(config.seed, rng.Stream.NOISE, indices, tuple(x0.shape[1:])).to(device)
    draw = rng.spread if config.even_levels else rng.uniform
    sigma = config.schedule(draw(config.seed, rng.Stream.LEVEL, indices)).float().to(device)
    dropped = (rng.uniform(config.seed, rng.Stream.DROP, indices) < config.label_dropout).to(device)
    return Batch(x0, eps, sigma, label.masked_fill(dropped, null))


def batch_loss(denoiser: Denoiser, batch: Batch, config: TrainConfig) -> Float[Tensor, ""]:
    """The batch's mean loss, at the config's precision."""
    with torch.autocast(batch.x0.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        return denoiser.loss(*batch).mean()


def train(state: TrainState, data: Images, config: TrainConfig) -> Iterator[Metrics]:
    """Trains until the config's images or epochs are seen, from wherever the state stands.

    Yields after the optimizer step and the EMA's update, so leaving the loop is always safe.

    Args:
        state: Changed in place.
        data: The training split, on the state's device.
        config: The run's config.

    Yields:
        The step's metrics.

    Raises:
        TrainingError: If the loss or a gradient is not finite; the state is then as the last step left it.
    """
    denoiser = state.denoiser.train()
    parameters = list(denoiser.parameters())
    n, length = len(data), config.length(len(data))
    while state.seen < length:
        # In whole epochs a batch ends where its epoch does; else where the run does.
        left = n - state.seen % n if config.epochs else length - state.seen
        batch = draw_batch(data, config, denoiser.null, state.seen, min(config.batch, left))
        loss = batch_loss(denoiser, batch, config)
        denoiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not (loss + norm).isfinite():
            raise TrainingError(
                f"the loss or a gradient is not finite at step {state.step + 1:,}, and the step was not taken; "
                "try a lower --muon-lr and --adam-lr, or --precision fp32"
            )
        done = state.seen - state.seen % n if config.lr_by_epoch else state.seen
        lr = learning_rate(done / length, config.warmup)
        take_step(state.optimizers, lr)
        state.step += 1
        state.seen += len(batch.label)
        update_ema(state.ema, denoiser, state.step, config.ema)
        yield Metrics(state.step, state.seen, (state.seen - 1) // n, loss.detach(), lr)
