"""Training of a diffusion model: a generator that takes one optimizer step at a time."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pocketdiff import rng
from pocketdiff.config import TrainConfig
from pocketdiff.data import DataInfo, Images
from pocketdiff.denoiser import Denoiser
from pocketdiff.generate import build_denoiser
from pocketdiff.loop import Losses, Metrics, TrainState, check_finite, walk
from pocketdiff.optim import make_optimizers, take_step

_ADVICE = "a lower --muon-lr and --adam-lr, or --precision fp32"


def new_state(config: TrainConfig, info: DataInfo, device: torch.device | str = "cpu") -> TrainState[Denoiser]:
    """The state before the first step; its net is the denoiser."""
    denoiser = build_denoiser(config, info).to(device)
    ema = copy.deepcopy(denoiser).requires_grad_(False)
    if config.compile:
        denoiser.net.compile()
    return TrainState(denoiser, ema, make_optimizers(denoiser.net, config.muon_lr, config.adam_lr, config.adam_beta2))


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


def train(state: TrainState[Denoiser], data: Images, config: TrainConfig) -> Iterator[Metrics]:
    """Trains a denoiser until the config's images or epochs are seen, from wherever the state stands.

    Args:
        state: Of `new_state`; changed in place.
        data: The training split, on the state's device.
        config: The run's config.

    Yields:
        Each step's metrics, after the step and the EMA's update, so leaving the loop is always safe.

    Raises:
        TrainingError: If the loss or a gradient is not finite; the state is then as the last step left it.
    """
    denoiser = state.net
    parameters = list(denoiser.parameters())

    def step(ahead: range, lr: float) -> Losses:
        loss = batch_loss(denoiser, draw_batch(data, config, denoiser.null, ahead.start, len(ahead)), config)
        denoiser.zero_grad(set_to_none=True)
        loss.backward()
        losses = {"loss": loss.detach()}
        check_finite(losses, [p.grad for p in parameters if p.grad is not None], state.step, _ADVICE)
        take_step(state.optimizers, lr)
        return losses

    return walk(state, len(data), config, step)
