"""Classifier-free guidance: one denoiser, asked with the label and without."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from pocketdiff.denoiser import Denoiser

DenoiseFn = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> x0_hat, with label and guidance already bound."""


def guide(denoiser: "Denoiser", label: Int[Tensor, " b"], scale: float = 1.0) -> DenoiseFn:
    """Binds a label and a guidance scale: ``x0_hat = uncond + scale * (cond - uncond)``.

    Source: Ho and Salimans 2022, equation 6, whose strength is ``w = scale - 1``. Guidance in x0 space equals guidance
    in the noise's, for x0_hat is linear in eps_hat.

    Args:
        denoiser: Maps (x, sigma, label) to x0_hat.
        label: A class index an image.
        scale: Guidance scale; 1 = off, and then each step costs one call; else one call on a batch twice as large.

    Returns:
        (x, sigma) -> x0_hat, for x of the same batch as ``label``.
    """

    def denoise(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        level = x.new_full((len(x),), sigma)
        if scale == 1:
            return denoiser(x, level, label)
        labels = torch.cat([torch.full_like(label, denoiser.null), label])
        uncond, cond = denoiser(x.repeat(2, 1, 1, 1), level.repeat(2), labels).chunk(2)
        return uncond.lerp(cond, scale)

    return denoise
