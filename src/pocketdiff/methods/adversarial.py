"""Adversarial distillation: a trained diffusion model becomes one that draws in one or two network evaluations.

The generator starts as a copy of the teacher and learns against a new discriminator, as in `game`. It is called
at the highest noise level, where drawing starts; a part of the images then gets new noise and a second call. Source:
Zheng and Yang 2024 (D2O: an adversarial loss alone, on a diffusion network); Song et al. 2023, algorithm 1 (sampler).
"""

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from pocketdiff import rng
from pocketdiff.config import SamplingConfig
from pocketdiff.data import DataInfo, to_data_units
from pocketdiff.denoiser import Denoiser
from pocketdiff.methods.game import GameConfig, play
from pocketdiff.methods.loop import Batch, Device, Load, Losses, Method, TrainState
from pocketdiff.methods.source import take, weights_sha256
from pocketdiff.methods.student import FewStepModel, StudentConfig, load_teacher, start_within, teacher_weights
from pocketdiff.model import ImageModel, build_denoiser
from pocketdiff.nets.gan import ConvDiscriminator, ConvGanConfig, Gan
from pocketdiff.nets.unet import Widths
from pocketdiff.optim import make_optimizers
from pocketdiff.schedule import Karras


class AdversarialConfig(GameConfig, StudentConfig):
    """One distillation run. Network, parameterization and schedule are the teacher's."""

    kind: Literal["adversarial"] = "adversarial"
    second: float = Field(0.5, ge=0, le=1)
    """Fraction of the images that are drawn with two evaluations in training; the others are drawn with one."""
    discriminator: Widths = (32, 64)
    """Channels at each level of the discriminator."""
    discriminator_first: int = Field(2_000, ge=0)
    """Images at the start of the run that train the discriminator alone; an untrained one spoils the generator."""
    images: int | None = Field(25_000, ge=1)
    """Length of the run in training images, repeats counted."""
    batch: int = Field(32, ge=1)
    """Images in an optimizer step."""
    muon_lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Peak learning rate of the generator's Muon, for the hidden convolutions and matrices; none: Adam trains them."""
    adam_lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of the generator's Adam, for all other weights."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay of Muon's average of gradients."""
    sampling: SamplingConfig = SamplingConfig(
        sampler="consistency", steps=1, scale=1.0, schedule=Karras(sigma_min=1.5, sigma_max=10.0)
    )
    """How the finished model is sampled by default."""


PRESETS = {"distill": AdversarialConfig()}


def distillation(path: Path | str, teacher: ImageModel, steps: int) -> AdversarialConfig:
    """The preset for the teacher at this path, its data, and a model that draws in one step or two."""
    preset, theirs = PRESETS["distill"], teacher.config
    sampling = preset.sampling.replace(steps=steps)
    return preset.replace(teacher=str(path), data=theirs.data, size=theirs.size, sampling=sampling)


class Adversarial(Method[AdversarialConfig]):
    """The training method."""

    config = AdversarialConfig
    presets = PRESETS
    advice = "a lower --muon-lr, --adam-lr and --discriminator-lr"

    def complete(self, config: AdversarialConfig, load: Load) -> AdversarialConfig:
        """The config with what it takes from the teacher; raises RequestError if they do not fit."""
        teacher = load_teacher(config.teacher, load)
        sampling = start_within(config.sampling, teacher.config.schedule.sigma_max)
        return take(config, teacher, "the teacher's", teacher_sha256=weights_sha256(teacher), sampling=sampling)

    def build(self, config: AdversarialConfig, info: DataInfo) -> Gan:
        """A new generator, which is a denoiser, and a new discriminator."""
        generator, shape = build_denoiser(config, info), (info.channels, info.height, info.width)
        with rng.initial_weights(int(rng.generator(config.seed, rng.Stream.INIT, 1).integers(2**32))):
            discriminator = ConvDiscriminator(ConvGanConfig(widths=config.discriminator), shape, len(info.classes))
        return Gan(generator, discriminator.to(memory_format=torch.channels_last)).eval()  # type: ignore[call-overload]

    def new_state(self, config: AdversarialConfig, info: DataInfo, device: Device, load: Load) -> TrainState:
        """The state before the first step: the generator and its average have the teacher's weights."""
        weights = teacher_weights(config.teacher, load, info)
        state = super().new_state(config, info, device, load)
        for gan in (state.net, state.ema):
            gan.generator.load_state_dict(weights)
        return state

    def optimizers(self, net: Gan, config: AdversarialConfig) -> list[torch.optim.Optimizer]:
        """Muon and Adam for the generator, Adam for the discriminator."""
        generator: Any = net.generator
        if config.compile:
            generator.net.compile()
        peak = config.discriminator_lr
        of_discriminator = [{"params": list(net.discriminator.parameters()), "lr": peak, "peak_lr": peak}]
        betas = (0.0, config.adam_beta2)
        return [
            *make_optimizers(generator.net, config.muon_lr, config.adam_lr, betas, config.momentum),
            torch.optim.Adam(of_discriminator, betas=betas, fused=True),
        ]

    def backward(self, state: TrainState, batch: Batch, config: AdversarialConfig) -> Losses:
        """Fills the gradients of both networks; at the start of the run only the discriminator's."""
        x0, label = to_data_units(batch.pixels, config.black), batch.label
        with (
            torch.set_grad_enabled(batch.indices.start >= config.discriminator_first),
            torch.autocast(x0.device.type, torch.bfloat16, enabled=config.precision == "bf16"),
        ):
            fake = self.draw(state.net.generator, batch, config)
        return play(state.net, x0, fake.float(), label, config, state.step)

    def draw(self, generator: Denoiser, batch: Batch, config: AdversarialConfig) -> Float[Tensor, "b c h w"]:
        """Images of the batch's labels, each by one evaluation or two; gradients flow through the last one."""
        top, middle, _ = config.sampling.replace(steps=2).grid(config.schedule)
        label, device, shape = batch.label, batch.pixels.device, tuple(batch.pixels.shape[1:])
        noise, again = (
            rng.normal(config.seed, stream, batch.indices, shape).to(device)
            for stream in (rng.Stream.NOISE, rng.Stream.LATENT)
        )
        x = noise * (top**2 + config.sigma_data**2) ** 0.5
        sigma = torch.full((len(label),), top, device=device)
        two = (rng.uniform(config.seed, rng.Stream.LEVEL, batch.indices) < config.second).to(device)
        if two.any():
            with torch.no_grad():
                x[two] = generator(x[two], sigma[two], label[two]) + middle * again[two]
            sigma[two] = middle
        return generator(x, sigma, label)

    def model(self, module: Gan, config: AdversarialConfig, info: DataInfo) -> FewStepModel:
        """The model that draws with the generator's weights."""
        generator: Any = module.generator
        return FewStepModel(generator, config, info)
