"""Generative adversarial networks: a plain one, and a small conditional one of today."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from pocketdiff import rng
from pocketdiff.data import DataInfo, to_data_units
from pocketdiff.methods.game import GameConfig, play
from pocketdiff.methods.loop import Batch, Losses, Method, TrainState
from pocketdiff.model import ImageModel, build_net, to_bytes
from pocketdiff.nets import GANS, GanNet
from pocketdiff.nets.gan import ConvGanConfig, Gan, MlpGanConfig
from pocketdiff.registry import OneOf


class GanConfig(GameConfig):
    """One training run of a GAN."""

    kind: Literal["gan"] = "gan"
    net: Annotated[GanNet, OneOf(GANS)] = ConvGanConfig()
    """Generator and discriminator."""
    generator_lr: float = Field(2e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of the generator's Adam."""
    adam_beta1: float = Field(0.0, ge=0, lt=1)
    """Decay of Adam's average of gradients."""
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of Adam's average of squared gradients."""
    lr_decay: bool = True
    """Whether the learning rates fall linearly to zero in the run."""

    @model_validator(mode="after")
    def _has_classes(self) -> "GanConfig":
        if self.classification and not self.net.conditional:
            raise ValueError(f"the {self.net.kind} discriminator predicts no classes, so classification must be 0")
        return self

    def learning_rate(self, seen: int, n: int) -> float:
        """As in `MethodConfig`, or constant."""
        return super().learning_rate(seen, n) if self.lr_decay else 1.0


# Times are of two CPU cores; docs/gan.md has the commands.
PRESETS = {
    # The plain GAN of the original experiment's comparison. Four minutes; Fréchet distance 49 after 25 epochs.
    # adam_beta1 is that of Radford et al. 2016; with 0.9 the images were still noise after three epochs.
    "gan": GanConfig(
        epochs=20, batch=256, ema=None, net=MlpGanConfig(), loss="nonsaturating", classification=0.0,
        gradient_penalty=0.0, generator_lr=1e-4, discriminator_lr=1e-4, adam_beta1=0.5, adam_beta2=0.999,
        lr_decay=False, log_every=2_560, checkpoint_every=60_000, pictures_every=1,
    ),
    # A GAN of today, as large as the laptop network. Four minutes; 0.55, label accuracy 98.9%.
    "gan-conditional": GanConfig(batch=32, pictures_every=1),
}  # fmt: skip


class GanModel(ImageModel):
    """A trained generator, which draws in a single step."""

    config: GanConfig

    def __init__(self, generator: nn.Module, config: GanConfig, info: DataInfo) -> None:
        super().__init__(generator, config, info)
        self.conditional = config.net.conditional
        self.unconditional = not self.conditional

    def how(self) -> str:
        """How it draws, in words."""
        return "GAN, 1 step"

    def _rebuild(self) -> nn.Module:
        return build_net(self.config, self.info).generator

    @torch.no_grad()
    def _draw(self, labels: list[int], seeds: Sequence[int]) -> UInt8[Tensor, "m c h w"]:
        z = rng.normal(0, rng.Stream.START, seeds, (self.config.net.latent,)).to(self.device)
        return to_bytes(self.net(z, torch.tensor(labels, dtype=torch.long, device=self.device)))


class GanMethod(Method[GanConfig]):
    """The training method."""

    config = GanConfig
    presets = PRESETS
    advice = "a lower --generator-lr and --discriminator-lr"

    def build(self, config: GanConfig, info: DataInfo) -> Gan:
        """A new generator and discriminator."""
        return build_net(config, info)

    def optimizers(self, net: Gan, config: GanConfig) -> list[torch.optim.Optimizer]:
        """One Adam with a learning rate for each network."""
        peaks = ((net.generator, config.generator_lr), (net.discriminator, config.discriminator_lr))
        groups = [{"params": list(part.parameters()), "lr": peak, "peak_lr": peak} for part, peak in peaks]
        return [torch.optim.Adam(groups, betas=(config.adam_beta1, config.adam_beta2), fused=True)]

    def backward(self, state: TrainState, batch: Batch, config: GanConfig) -> Losses:
        """Fills the gradients of both networks."""
        x0, label = to_data_units(batch.pixels), batch.label
        z = rng.normal(config.seed, rng.Stream.LATENT, batch.indices, (config.net.latent,)).to(x0.device)
        return play(state.net, x0, state.net.generator(z, label), label, config, state.step)

    def model(self, module: Gan, config: GanConfig, info: DataInfo) -> GanModel:
        """The model that draws with the generator's weights."""
        return GanModel(module.generator, config, info)
