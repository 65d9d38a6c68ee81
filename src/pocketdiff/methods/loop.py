"""The one training loop, and what a training method has to provide."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pocketdiff import rng
from pocketdiff.config import DenoiserConfig, MethodConfig
from pocketdiff.data import AUGMENTATIONS, DataInfo, Images
from pocketdiff.denoiser import Denoiser
from pocketdiff.errors import TrainingError
from pocketdiff.model import ImageModel, build_denoiser
from pocketdiff.optim import make_optimizers, take_step, update_ema

Losses = dict[str, Float[Tensor, ""]]
"""A step's mean losses by name, left on their device: the caller decides when to wait for them."""
Load = Callable[[str], ImageModel]
"""Loads a model from the path of a run or a model file: a method's teacher, for example."""
Device = torch.device | str
Config = TypeVar("Config", bound=MethodConfig)
AnyDenoiserConfig = TypeVar("AnyDenoiserConfig", bound=DenoiserConfig)


@dataclass
class TrainState:
    """Everything that training changes. All randomness follows from the config's seed and ``seen``."""

    modules: dict[str, nn.Module]
    """``net``, ``ema``, and what else the method needs, such as a ``teacher``. A checkpoint saves each."""
    optimizers: list[torch.optim.Optimizer]
    step: int = 0  # Optimizer steps taken.
    seen: int = 0  # Images seen, repeats counted.

    @property
    def net(self) -> Any:
        """The module that is trained: a denoiser, or a generator with its discriminator."""
        return self.modules["net"]

    @property
    def ema(self) -> Any:
        """The same with averaged weights."""
        return self.modules["ema"]


class Batch(NamedTuple):
    """The training images of one optimizer step, after augmentation."""

    indices: range  # Their indices in the run: the key of every random draw.
    pixels: UInt8[Tensor, "b c h w"]
    label: Int[Tensor, " b"]
    progress: float  # Fraction of the run, or of its present part, that is done, in [0, 1).


class StepReport(NamedTuple):
    """What a step reports: the state's step and images after it, and its losses."""

    step: int
    seen: int
    epoch: int  # Index of the epoch of the last image seen, from 0.
    losses: Losses
    lr: float  # Fraction of the peak learning rates at this step.


@runtime_checkable
class Method(Protocol[Config]):
    """A training method: one object, in one file, named in ``METHODS``. Inherit from this class."""

    config: type[Config]  # Its config class; the default of the field ``kind`` is the method's name.
    presets: Mapping[str, Config]
    advice: str  # What to try when a loss is not finite.

    @abstractmethod
    def build(self, config: Config, info: DataInfo) -> nn.Module:
        """A new module to train, in eval mode, on the CPU; the config's seed decides its weights."""

    @abstractmethod
    def optimizers(self, net: Any, config: Config) -> list[torch.optim.Optimizer]:
        """New optimizers; each parameter group has a ``peak_lr``."""

    @abstractmethod
    def backward(self, state: TrainState, batch: Batch, config: Config) -> Losses:
        """Fills the gradients of ``state.net``; changes nothing else but its buffers."""

    @abstractmethod
    def model(self, module: Any, config: Config, info: DataInfo) -> ImageModel:
        """The model that draws with a module's weights (``state.ema``, or what `build` gives)."""

    def complete(self, config: Config, load: Load) -> Config:  # noqa: ARG002
        """The config with what it takes from other models, such as a teacher's network; here nothing."""
        return config

    def new_state(self, config: Config, info: DataInfo, device: Device, load: Load) -> TrainState:  # noqa: ARG002
        """The state before the first step."""
        net = self.build(config, info).to(device)
        ema = copy.deepcopy(net).requires_grad_(False)
        return TrainState({"net": net, "ema": ema}, self.optimizers(net, config))


class DenoiserMethod(Method[AnyDenoiserConfig]):
    """A method that trains a denoiser."""

    def build(self, config: AnyDenoiserConfig, info: DataInfo) -> Denoiser:
        """A new denoiser; the config's seed decides its weights."""
        return build_denoiser(config, info)

    def optimizers(self, net: Denoiser, config: AnyDenoiserConfig) -> list[torch.optim.Optimizer]:
        """Muon and Adam; the network is compiled if the config says so."""
        if config.compile:
            net.net.compile()
        return make_optimizers(net.net, config.muon_lr, config.adam_lr, (0.9, config.adam_beta2))


def batches(config: MethodConfig, data: Images, state: TrainState) -> Iterator[Batch]:
    """The batches from the state's position to the end of the run."""
    n = len(data)
    augment = AUGMENTATIONS.find(config.augment)
    while state.seen < config.length(n):
        # A batch ends with its part of the run, and in a run of whole epochs also with its epoch.
        _, end = config.part(state.seen, n)
        if config.epochs:
            end = min(end, state.seen - state.seen % n + n)
        indices = range(state.seen, min(end, state.seen + config.batch))
        chosen = rng.visit_order(config.seed, indices, n).to(data.labels.device)
        pixels = augment(data.pixels[chosen], config.seed, indices)
        yield Batch(indices, pixels, data.labels[chosen], config.progress(state.seen, n))


def train(method: Method[Any], state: TrainState, data: Images, config: MethodConfig) -> Iterator[StepReport]:
    """Trains from wherever the state is to the end of the run, on the training split on the state's device.

    The reports come after a step and the EMA's update, so leaving the loop is always safe.

    Raises:
        TrainingError: If a loss or a gradient is not finite; the state is then as the last step left it.
    """
    for batch in batches(config, data, state):
        buffers = [buffer.clone() for buffer in state.net.buffers()]  # Batch norm changes its own in a forward pass.
        state.net.train().zero_grad(set_to_none=True)
        try:
            losses = method.backward(state, batch, config)
            check_finite(losses, state, method.advice)
        except BaseException:
            for buffer, before in zip(state.net.buffers(), buffers, strict=True):
                buffer.copy_(before)
            raise
        finally:
            state.net.eval()
        lr = config.learning_rate(state.seen, len(data))
        take_step(state.optimizers, lr)
        state.step += 1
        state.seen += len(batch.indices)
        update_ema(state.ema, state.net, state.step, config.ema)
        yield StepReport(state.step, state.seen, (state.seen - 1) // len(data), losses, lr)


def check_finite(losses: Losses, state: TrainState, advice: str) -> None:
    """Raises TrainingError if a loss or a gradient is not finite."""
    gradients = [weight.grad for weight in state.net.parameters() if weight.grad is not None]
    if not (sum(losses.values()) + torch.nn.utils.get_total_norm(gradients)).isfinite():
        raise TrainingError(
            f"a loss or a gradient is not finite at step {state.step + 1:,}, and the step was not taken; try {advice}"
        )
