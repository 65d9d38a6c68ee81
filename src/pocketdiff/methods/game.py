"""The game of a generator against a discriminator: its settings, and the gradients of one step for both networks.

Generator and discriminator step at the same time, along gradients of one forward pass through both: the single-step
method of Nowozin et al. 2016 (f-GAN, algorithm 1). A step that cannot be taken leaves both networks unchanged.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from pocketdiff.config import MethodConfig
from pocketdiff.methods.loop import Losses
from pocketdiff.nets.gan import LOSSES, Gan, GanLosses
from pocketdiff.registry import Named


class GameConfig(MethodConfig):
    """What every method needs that trains a generator against a discriminator."""

    loss: Annotated[str, Named(LOSSES)] = "relativistic"
    """The adversarial loss."""
    classification: float = Field(0.3, ge=0, allow_inf_nan=False)
    """Weight of the classification loss, where the discriminator also predicts classes; 0: no such loss."""
    gradient_penalty: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of the gradient penalty at real and at generated images (R1 and R2); 0: no penalty."""
    penalty_every: int = Field(8, ge=1)
    """Steps between two penalties; the weight of each is multiplied by this."""
    discriminator_lr: float = Field(2e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of the discriminator's Adam."""


def play(
    gan: Gan, x0: Float[Tensor, "b c h w"], fake: Float[Tensor, "b c h w"], label: Int[Tensor, " b"],
    config: GameConfig, step: int,
) -> Losses:  # fmt: skip
    """Fills the gradients of one step from real images ``x0`` and the generator's images ``fake`` of the same labels.

    Generator and discriminator are scored in the same forward pass. If ``fake`` needs no gradient, the generator gets
    none.
    """
    both = torch.cat([x0, fake]), torch.cat([label, label])
    verdict = gan.discriminator(*both)
    loss = LOSSES.find(config.loss)(*verdict.real.chunk(2))
    losses = {"discriminator_loss": loss.discriminator.detach(), "generator_loss": loss.generator.detach()}
    if config.classification and verdict.classes is not None:
        wrong = (F.cross_entropy(classes, label) for classes in verdict.classes.chunk(2))
        loss = GanLosses(*(game + config.classification * task for game, task in zip(loss, wrong, strict=True)))
    generator, discriminator = (list(net.parameters()) for net in (gan.generator, gan.discriminator))
    if fake.requires_grad:
        gradients = torch.autograd.grad(loss.generator, generator, retain_graph=True, materialize_grads=True)
        for weight, gradient in zip(generator, gradients, strict=True):
            weight.grad = gradient
    gradients = torch.autograd.grad(loss.discriminator, discriminator, materialize_grads=True)
    if config.gradient_penalty and step % config.penalty_every == 0:
        penalty = gradient_penalty(gan.discriminator, both[0].detach(), both[1])
        # Twice the mean over both halves is R1 and R2 together.
        weighted = config.gradient_penalty * config.penalty_every * 2 * penalty
        more = torch.autograd.grad(weighted, discriminator, materialize_grads=True)
        gradients = tuple(torch._foreach_add(gradients, more))
    for weight, gradient in zip(discriminator, gradients, strict=True):
        weight.grad = gradient
    return losses


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
