"""Training of a GAN: the same walk over the images as a diffusion model's, with two networks and two losses.

Both networks move at once, along gradients of one pass through both: the single-step method of Nowozin et al. 2016
(f-GAN, algorithm 1). The images of a step are then made once instead of twice, and a step that cannot be taken leaves
both networks as they were.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketdiff import rng
from pocketdiff.config import GanConfig
from pocketdiff.data import DataInfo, Images
from pocketdiff.generate import build_gan
from pocketdiff.loop import Losses, Metrics, TrainState, check_finite, walk
from pocketdiff.nets.gan import LOSSES, Gan, GanLosses
from pocketdiff.optim import take_step

_ADVICE = "a lower --generator-lr and --discriminator-lr"


def new_state(config: GanConfig, info: DataInfo, device: torch.device | str = "cpu") -> TrainState[Gan]:
    """The state before the first step; its net is the generator with its discriminator."""
    gan = build_gan(config, info).to(device)
    peaks = ((gan.generator, config.generator_lr), (gan.discriminator, config.discriminator_lr))
    groups = [{"params": list(net.parameters()), "lr": peak, "peak_lr": peak} for net, peak in peaks]
    adam = torch.optim.Adam(groups, betas=(config.adam_beta1, config.adam_beta2), fused=True)
    return TrainState(gan, copy.deepcopy(gan).requires_grad_(False), [adam])


def train(state: TrainState[Gan], data: Images, config: GanConfig) -> Iterator[Metrics]:
    """Trains a GAN until the config's images or epochs are seen, from wherever the state stands.

    Args:
        state: Of `new_state`; changed in place.
        data: The training split, on the state's device.
        config: The run's config.

    Yields:
        Each step's metrics, after the step and the EMA's update, so leaving the loop is always safe.

    Raises:
        TrainingError: If a loss or a gradient is not finite; the state is then as the last step left it.
    """
    gan = state.net
    generator, discriminator = (list(net.parameters()) for net in (gan.generator, gan.discriminator))
    lose = LOSSES[config.loss]

    def step(ahead: range, lr: float) -> Losses:
        x0, label = data.batch(rng.visits(config.seed, ahead, len(data)))
        z = rng.normal(config.seed, rng.Stream.LATENT, ahead, (config.net.latent,)).to(x0.device)
        fake = gan.generator(z, label)
        both = torch.cat([x0, fake]), torch.cat([label, label])
        verdict = gan.discriminator(*both)
        loss = lose(*verdict.real.chunk(2))
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
        gradients = [*of_generator, *of_discriminator]
        check_finite(losses, gradients, state.step, _ADVICE)
        for parameter, gradient in zip([*generator, *discriminator], gradients, strict=True):
            parameter.grad = gradient
        take_step(state.optimizers, lr)
        return losses

    return walk(state, len(data), config, step)


def gradient_penalty(
    discriminator: nn.Module, x: Float[Tensor, "b c h w"], label: Int[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Half the squared length of the logit's gradient by the image, mean over the images.

    It keeps the discriminator smooth, so that the game can settle. Every few steps are enough (Karras et al. 2020,
    appendix B). Source: Mescheder et al. 2018, equations 9 (R1, of real images) and 10 (R2, of generated ones).
    """
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x, label).real.sum(), x, create_graph=True)
    return gradient.square().sum() / (2 * len(x))
