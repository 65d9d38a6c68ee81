"""Guidance: extrapolates from a weaker prediction, without the label or of a weaker model."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from pocketdiff.denoiser import Denoiser

DenoiseFn = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> x0_hat, with label and guidance already bound."""


def guide(
    denoiser: "Denoiser", label: Int[Tensor, " b"], scale: float = 1.0, *,
    interval: tuple[float, float] | None = None, weak: "Denoiser | None" = None,
) -> DenoiseFn:  # fmt: skip
    """Binds labels and a guidance scale: ``x0_hat = weaker + scale * (stronger - weaker)``.

    Guidance of x0_hat equals guidance of the predicted noise, because x0_hat is linear in it. Sources: Ho and Salimans
    2022, equation 6, with strength ``w = scale - 1``; Kynkäänniemi et al. 2024 (interval); Karras et al. 2024
    (autoguidance).

    Args:
        denoiser: Maps (x, sigma, label) to x0_hat.
        label: A class index for each image.
        scale: Guidance scale. At 1 it is off, and a step costs one evaluation instead of two.
        interval: Lowest and highest noise level with guidance; outside, the scale is 1. None: guidance at all levels.
        weak: The weaker model of autoguidance, which also gets the label. None: ``denoiser`` without the label, in one
            call on a batch of twice the size.

    Returns:
        (x, sigma) -> x0_hat, for an ``x`` with one image for each label.
    """

    def denoise(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        level = x.new_full((len(x),), sigma)
        if scale == 1 or (interval is not None and not interval[0] <= sigma <= interval[1]):
            return denoiser(x, level, label)
        if weak is not None:
            return weak(x, level, label).lerp(denoiser(x, level, label), scale)
        labels = torch.cat([torch.full_like(label, denoiser.null), label])
        uncond, cond = denoiser(x.repeat(2, 1, 1, 1), level.repeat(2), labels).chunk(2)
        return uncond.lerp(cond, scale)

    return denoise
