"""Consistency distillation: a trained diffusion model becomes one that draws in one or two steps.

The student starts as a copy of the teacher. It learns to give the same image at two noise levels of one path: the
teacher, with guidance, takes a step from the higher level to the lower one, and that step shrinks during the run.
Sources: Song et al. 2023 (consistency models), algorithm 2; Geng et al. 2024 (ECT), section 3.
"""

import copy
import math
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from pocketdiff import rng
from pocketdiff.config import AnySchedule, SamplingConfig
from pocketdiff.data import DataInfo, to_data_units
from pocketdiff.denoiser import PARAMETERIZATIONS, Denoiser
from pocketdiff.errors import RequestError
from pocketdiff.methods.loop import Batch, DenoiserMethod, Device, Load, Losses, TrainState
from pocketdiff.methods.source import take, weights_sha256
from pocketdiff.methods.student import FewStepModel, StudentConfig, load_teacher, start_within, teacher_weights
from pocketdiff.schedule import Karras, LogNormal

_Hop = Annotated[float, Field(gt=1, allow_inf_nan=False)]


class ConsistencyConfig(StudentConfig):
    """One distillation run. Network, parameterization and schedule are the teacher's."""

    kind: Literal["consistency"] = "consistency"
    teacher_scale: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Guidance scale of the teacher; none: the teacher's own sampling scale."""
    levels: AnySchedule = LogNormal(mean=0.4, std=1.4)
    """Spreads the noise levels of training."""
    highest: float = Field(0.15, ge=0, le=1)
    """Fraction of the images at the highest noise level, where drawing starts."""
    hop: tuple[_Hop, _Hop] = (4.0, 64.0)
    """The teacher's step is about 1 / hop of the noise level; hop doubles in the run, from the first to the second."""
    huber: float = Field(0.03, ge=0, allow_inf_nan=False)
    """Where the pseudo-Huber loss turns from squares to absolute values, per square root of the image's values."""
    images: int | None = Field(40_000, ge=1)
    """Length of the run in training images, repeats counted."""
    muon_lr: float | None = Field(0.005, gt=0, allow_inf_nan=False)
    """Peak learning rate of Muon, for the hidden convolutions and matrices; none: Adam trains them."""
    adam_lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of Adam, for all other weights."""
    sampling: SamplingConfig = SamplingConfig(
        sampler="consistency", steps=2, scale=1.0, schedule=Karras(sigma_min=1.5, sigma_max=10.0)
    )
    """How the finished model is sampled by default. Its highest noise level is also that of training."""


PRESETS = {"consistency": ConsistencyConfig()}


class Consistency(DenoiserMethod[ConsistencyConfig]):
    """The training method."""

    config = ConsistencyConfig
    presets = PRESETS
    advice = "a lower --muon-lr and --adam-lr"

    def complete(self, config: ConsistencyConfig, load: Load) -> ConsistencyConfig:
        """The config with what it takes from the teacher; raises RequestError if they do not fit."""
        teacher = load_teacher(config.teacher, load)
        theirs: Any = teacher.config
        at_zero = PARAMETERIZATIONS.find(theirs.parameterization)(torch.zeros(1), theirs.sigma_data)
        if float(at_zero.skip) != 1 or float(at_zero.out) != 0:
            fault = f"predicts {theirs.parameterization}, which is not the image itself at noise level 0"
            raise RequestError(f"{config.teacher}: {fault}; give a teacher that predicts flow, v or eps")
        taken: dict[str, Any] = {"teacher_sha256": weights_sha256(teacher)}
        if config.teacher_scale is None:
            taken["teacher_scale"] = getattr(teacher.sampling, "scale", None)
        taken["sampling"] = start_within(config.sampling, theirs.schedule.sigma_max)
        return take(config, teacher, "the teacher's", **taken)

    def new_state(self, config: ConsistencyConfig, info: DataInfo, device: Device, load: Load) -> TrainState:
        """The state before the first step: student, average and teacher have the teacher's weights."""
        weights = teacher_weights(config.teacher, load, info)
        state = super().new_state(config, info, device, load)
        state.modules["teacher"] = copy.deepcopy(state.ema)
        for module in state.modules.values():
            module.load_state_dict(weights)
        return state

    def backward(self, state: TrainState, batch: Batch, config: ConsistencyConfig) -> Losses:
        """Fills the gradients."""
        student, teacher, scale = state.net, state.modules["teacher"], config.teacher_scale
        x0, label, indices = to_data_units(batch.pixels, config.black), batch.label, batch.indices
        eps = rng.normal(config.seed, rng.Stream.NOISE, indices, tuple(x0.shape[1:])).to(x0)
        top = config.sampling.grid(config.schedule)[0]
        sigma = config.levels(rng.stratified(config.seed, rng.Stream.LEVEL, indices)).clamp(max=top)
        sigma[rng.uniform(config.seed, rng.Stream.DROP, indices) < config.highest] = top
        later = bool(config.parts) and indices.start >= config.parts[0]  # An added part keeps the last hop.
        lower = self._lower(sigma, 1.0 if later else batch.progress, config)
        sigma, lower = sigma.float().to(x0.device), lower.float().to(x0.device)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            x = x0 + sigma.view(-1, 1, 1, 1) * eps
            with torch.no_grad():
                x0_hat = teacher(x, sigma, label)
                if scale not in (None, 1):
                    uncond = teacher(x, sigma, torch.full_like(label, student.null))
                    x0_hat = uncond.lerp(x0_hat, scale)
                x_lower = x0_hat.lerp(x, (lower / sigma).view(-1, 1, 1, 1))  # An Euler step.
                # At noise level 0 the target is the teacher's image; the network is never evaluated there.
                known = student(x_lower, lower.clamp(min=1e-3), label)
                target = torch.where(lower.view(-1, 1, 1, 1) < 1e-3, x_lower, known)
            error = (student(x, sigma, label) - target).square().sum((1, 2, 3))
        c = config.huber * x0[0].numel() ** 0.5
        loss = ((error + c**2).sqrt() - c).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def model(self, module: Denoiser, config: ConsistencyConfig, info: DataInfo) -> FewStepModel:
        """The model that draws with a denoiser's weights."""
        return FewStepModel(module, config, info)

    @staticmethod
    def _lower(sigma: Float[Tensor, " b"], progress: float, config: ConsistencyConfig) -> Float[Tensor, " b"]:
        """The lower noise level of each pair. Source: Geng et al. 2024, section 3.2, with k = 8 and b = 1."""
        first, last = config.hop
        doublings = int(progress * (math.floor(math.log2(last / first)) + 1))
        hop = min(first * 2**doublings, max(first, last))
        return (sigma * (1 - (1 + 8 * torch.sigmoid(-sigma)) / hop)).clamp(min=0)
