"""The denoiser: a network with three coefficients around it, and the package's only loss.

``x0_hat = skip * x + out * net(in_ * x, noise, label)``. What the network itself predicts, the noise (DDPM), the image,
a velocity (progressive distillation, EDM) or rectified flow's direction, is a choice of the three coefficients.

To add a parameterization, write its function and name it in ``PARAMETERIZATIONS``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Scaling(NamedTuple):
    """The coefficients of ``x0_hat = skip * x + out * net(in_ * x)`` at given noise levels."""

    skip: Tensor
    out: Tensor
    in_: Tensor


Parameterization = Callable[[Tensor, float], Scaling]
NoiseInput = Callable[[Tensor], Tensor]


def eps(sigma: Tensor, sigma_data: float) -> Scaling:
    """The network predicts the noise. Source: Ho et al. 2020, equation 14 (with sigma_data = 1)."""
    return Scaling(torch.ones_like(sigma), -sigma, 1 / _hypot(sigma, sigma_data))


def x0(sigma: Tensor, sigma_data: float) -> Scaling:
    """The network predicts the clean image."""
    return Scaling(torch.zeros_like(sigma), torch.ones_like(sigma), 1 / _hypot(sigma, sigma_data))


def v(sigma: Tensor, sigma_data: float) -> Scaling:
    """The network predicts a velocity; EDM's preconditioning is this with the sign of the output turned.

    Source: Salimans and Ho 2022, appendix D (sigma_data = 1); Karras et al. 2022, table 1.
    """
    length = _hypot(sigma, sigma_data)
    return Scaling((sigma_data / length) ** 2, -sigma_data * (sigma / length), 1 / length)


def flow(sigma: Tensor, sigma_data: float) -> Scaling:  # noqa: ARG001 (one signature for all)
    """The network sees ``(1 - t) x0 + t eps`` with t = sigma / (1 + sigma) and predicts ``eps - x0``.

    Source: Liu et al. 2022, equation 1 (time reversed). ``sigma_data`` plays no part.
    """
    return Scaling(1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma))


def _hypot(sigma: Tensor, sigma_data: float) -> Tensor:
    """``sqrt(sigma^2 + sigma_data^2)``, also where the square is beyond float32: long chains have such levels."""
    return torch.hypot(sigma, sigma.new_tensor(sigma_data))


PARAMETERIZATIONS: dict[str, Parameterization] = {"eps": eps, "x0": x0, "v": v, "flow": flow}


class Denoiser(nn.Module):
    """A network made into an estimate of the clean image.

    Args:
        net: Maps (scaled image (b, c, h, w), noise input (b,), label (b,)) to its own target, shaped like the image.
        parameterization: What the network predicts: a key of ``PARAMETERIZATIONS``.
        sigma_data: Standard deviation of the data, in data units; 1 gives DDPM's own scaling.
        num_classes: Number of classes; the null label, for "no label", is ``num_classes``.
        noise_input: Maps noise levels (b,) to what the network is told of them; usually a schedule's ``noise_input``.
    """

    def __init__(
        self, net: nn.Module, parameterization: str, sigma_data: float, num_classes: int, noise_input: NoiseInput
    ) -> None:
        super().__init__()
        self.net = net
        self.parameterization = PARAMETERIZATIONS[parameterization]
        self.sigma_data = sigma_data
        self.null = num_classes
        self.noise_input = noise_input

    def scaling(self, sigma: Float[Tensor, " b"]) -> Scaling:
        """The three coefficients, each (b, 1, 1, 1)."""
        return self.parameterization(sigma.view(-1, 1, 1, 1), self.sigma_data)

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The expected clean image, ``x0_hat``, for noisy images ``x`` at levels ``sigma`` > 0."""
        skip, out, in_ = self.scaling(sigma)
        return skip * x + out * self._predict(in_ * x, sigma, label)

    def loss(
        self, x0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"],
        label: Int[Tensor, " b"],
    ) -> Float[Tensor, " b"]:  # fmt: skip
        """Mean squared error per image in the network's output space, where weight 1 is each paper's simple loss.

        Args:
            x0: Clean images, data units.
            eps: Unit noise.
            sigma: Noise levels, each > 0.
            label: Class indices; ``null`` where the label is dropped.
        """
        x = x0 + sigma.view(-1, 1, 1, 1) * eps
        skip, out, in_ = self.scaling(sigma)
        target = (x0 - skip * x) / out
        return (self._predict(in_ * x, sigma, label) - target).square().mean((1, 2, 3))

    def _predict(self, scaled: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        output: Tensor = self.net(scaled, self.noise_input(sigma), label)
        return output.to(scaled.dtype)
