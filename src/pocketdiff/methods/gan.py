"""Generative adversarial networks: a plain one, and a small conditional one of today.

Generator and discriminator step at the same time, along gradients of one forward pass through both: the single-step
method of Nowozin et al. 2016 (f-GAN, algorithm 1). A step that cannot be taken leaves both networks unchanged.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from pocketdiff import rng
from pocketdiff.config import MethodConfig
from pocketdiff.data import DataInfo, to_data_units
from pocketdiff.methods.loop import Batch, Losses, Method, TrainState
from pocketdiff.model import ImageModel, build_net, to_bytes
from pocketdiff.nets import GANS, GanNet
from pocketdiff.nets.gan import LOSSES, ConvGanConfig, Gan, GanLosses, MlpGanConfig
from pocketdiff.registry import Named, OneOf


class GanConfig(MethodConfig):
    """One training run of a GAN."""

    kind: Literal["gan"] = "gan"
    net: Annotated[GanNet, OneOf(GANS)] = ConvGanConfig()
    """Generator and discriminator."""
    loss: Annotated[str, Named(LOSSES)] = "relativistic"
    """The adversarial loss."""
    classification: float = Field(0.3, ge=0, allow_inf_nan=False)
    """Weight of the classification loss, where the discriminator also predicts classes; 0: no such loss."""
    gradient_penalty: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of the gradient penalty at real and at generated images (R1 and R2); 0: no penalty."""
    penalty_every: int = Field(8, ge=1)
    """Steps between two penalties; the weight of each is multiplied by this."""
    generator_lr: float = Field(2e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of the generator's Adam."""
    discriminator_lr: float = Field(2e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of the discriminator's Adam."""
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
        gan: Gan = state.net
        generator, discriminator = (list(net.parameters()) for net in (gan.generator, gan.discriminator))
        x0, label = to_data_units(batch.pixels), batch.label
        z = rng.normal(config.seed, rng.Stream.LATENT, batch.indices, (config.net.latent,)).to(x0.device)
        fake = gan.generator(z, label)
        both = torch.cat([x0, fake]), torch.cat([label, label])
        verdict = gan.discriminator(*both)
        loss = LOSSES.find(config.loss)(*verdict.real.chunk(2))
        losses = {"discriminator_loss": loss.discriminator.detach(), "generator_loss": loss.generator.detach()}
        if config.classification and verdict.classes is not None:
            wrong = (F.cross_entropy(classes, label) for classes in verdict.classes.chunk(2))
            loss = GanLosses(*(game + config.classification * task for game, task in zip(loss, wrong, strict=True)))
        of_generator = torch.autograd.grad(loss.generator, generator, retain_graph=True)
        of_discriminator = torch.autograd.grad(loss.discriminator, discriminator, materialize_grads=True)
        if config.gradient_penalty and state.step % config.penalty_every == 0:
            penalty = gradient_penalty(gan.discriminator, both[0].detach(), both[1])
            # Twice the mean over both halves is R1 and R2 together.
            weighted = config.gradient_penalty * config.penalty_every * 2 * penalty
            more = torch.autograd.grad(weighted, discriminator, materialize_grads=True)
            of_discriminator = tuple(torch._foreach_add(of_discriminator, more))
        for weight, gradient in zip([*generator, *discriminator], [*of_generator, *of_discriminator], strict=True):
            weight.grad = gradient
        return losses

    def model(self, module: Gan, config: GanConfig, info: DataInfo) -> GanModel:
        """The model that draws with the generator's weights."""
        return GanModel(module.generator, config, info)


def gradient_penalty(
    discriminator: nn.Module, x: Float[Tensor, "b c h w"], label: Int[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Half the squared norm of the logit's gradient with respect to the image, averaged over the images. Sources:
    Mescheder et al. 2018, equations 9 (R1, of real images) and 10 (R2, of generated ones); Karras et al. 2020,
    appendix B, for every few steps.
    """
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x, label).real.sum(), x, create_graph=True)
    return gradient.square().sum() / (2 * len(x))
