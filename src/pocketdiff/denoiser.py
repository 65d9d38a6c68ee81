"""The denoiser: a network with three coefficients around it, and its loss.

``x0_hat = skip * x + out * net(in_ * x, noise, label)``. The three coefficients decide what the network predicts: the
noise (DDPM), the image, a velocity (progressive distillation, EDM) or the direction of rectified flow.

To add a parameterization or a loss weighting, write its function and add it to ``PARAMETERIZATIONS`` or ``WEIGHTINGS``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketdiff.registry import Registry


class Scaling(NamedTuple):
    """The coefficients of ``x0_hat = skip * x + out * net(in_ * x)`` at given noise levels."""

    skip: Tensor
    out: Tensor
    in_: Tensor


Parameterization = Callable[[Tensor, float], Scaling]
"""What the network predicts: (sigma, sigma_data) to the coefficients, which have sigma's shape (b, 1, 1, 1) and an
``out`` that is never 0."""
Weighting = Callable[[Tensor, Scaling, float], Tensor]
"""(sigma, scaling, sigma_data) to the weight of the squared error of the network's output, which is ``out ** -2`` times
that of x0_hat; all tensors are (b, 1, 1, 1)."""


def predict_eps(sigma: Tensor, sigma_data: float) -> Scaling:
    """The network predicts the noise. Source: Ho et al. 2020, equation 14 (with sigma_data = 1)."""
    return Scaling(torch.ones_like(sigma), -sigma, 1 / _hypot(sigma, sigma_data))


def predict_x0(sigma: Tensor, sigma_data: float) -> Scaling:
    """The network predicts the clean image."""
    return Scaling(torch.zeros_like(sigma), torch.ones_like(sigma), 1 / _hypot(sigma, sigma_data))


def predict_v(sigma: Tensor, sigma_data: float) -> Scaling:
    """The network predicts a velocity; EDM's preconditioning is the same with the opposite sign of the output.
    Source: Salimans and Ho 2022, appendix D (sigma_data = 1); Karras et al. 2022, table 1.
    """
    length = _hypot(sigma, sigma_data)
    return Scaling((sigma_data / length) ** 2, -sigma_data * (sigma / length), 1 / length)


def predict_flow(sigma: Tensor, sigma_data: float) -> Scaling:  # noqa: ARG001 (one signature for all)
    """The network's input is ``(1 - t) x0 + t eps`` with t = sigma / (1 + sigma), and it predicts ``eps - x0``.
    Source: Liu et al. 2022, equation 1 (time reversed). ``sigma_data`` is not used.
    """
    return Scaling(1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma))


def _hypot(sigma: Tensor, sigma_data: float) -> Tensor:
    """``sqrt(sigma^2 + sigma_data^2)``; finite also where sigma^2 overflows float32, as at the end of long chains."""
    return torch.hypot(sigma, sigma.new_tensor(sigma_data))


def uniform(sigma: Tensor, scaling: Scaling, sigma_data: float) -> Tensor:  # noqa: ARG001 (one signature for all)
    """Weight 1: the simple loss of the paper that introduced each parameterization."""
    return torch.ones_like(sigma)


def min_snr(sigma: Tensor, scaling: Scaling, sigma_data: float) -> Tensor:
    """The error of ``x0_hat / sigma_data`` has the weight ``min(SNR, 5)``, with
    ``SNR = (sigma_data / sigma)^2``. Source: Hang et al. 2023 (gamma = 5, sigma_data = 1).
    """
    return ((sigma_data / sigma).clamp(max=5**0.5) * scaling.out / sigma_data).square()


def edm(sigma: Tensor, scaling: Scaling, sigma_data: float) -> Tensor:
    """The error of ``x0_hat`` has the weight ``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2``. For `predict_v`
    the weight is 1. Source: Karras et al. 2022, table 1.
    """
    return (_hypot(sigma, sigma_data) / (sigma * sigma_data) * scaling.out).square()


PARAMETERIZATIONS: Registry[Parameterization] = Registry(
    "parameterization", "pocketdiff.parameterizations",
    {"eps": predict_eps, "x0": predict_x0, "v": predict_v, "flow": predict_flow},
)  # fmt: skip

WEIGHTINGS: Registry[Weighting] = Registry(
    "loss weighting", "pocketdiff.weightings", {"uniform": uniform, "min_snr": min_snr, "edm": edm}
)


class Denoiser(nn.Module):
    """A network with its coefficients: predicts the clean image.

    Args:
        net: Maps (scaled image (b, c, h, w), noise input (b,), label (b,)) to its target, which has the image's shape.
        parameterization: What the network predicts: a key of ``PARAMETERIZATIONS``.
        sigma_data: Standard deviation of the data, in data units; 1 gives DDPM's own scaling.
        num_classes: Number of classes; the null label, for "no label", is ``num_classes``.
        noise_input: Maps noise levels (b,) to the network's noise input; usually a schedule's ``noise_input``.
    """

    def __init__(
        self, net: nn.Module, parameterization: str, sigma_data: float, num_classes: int,
        noise_input: Callable[[Tensor], Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.net = net
        self.parameterization = parameterization
        self.sigma_data = sigma_data
        self.null = num_classes
        self.noise_input = noise_input
        self._scaling = PARAMETERIZATIONS.find(parameterization)

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        return f"{self.parameterization}, sigma_data={self.sigma_data:g}, num_classes={self.null}"

    def scaling(self, sigma: Float[Tensor, " b"]) -> Scaling:
        """The three coefficients, each (b, 1, 1, 1)."""
        return self._scaling(sigma.view(-1, 1, 1, 1), self.sigma_data)

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The expected clean image, ``x0_hat``, for noisy images ``x`` at levels ``sigma`` > 0."""
        skip, out, in_ = self.scaling(sigma)
        return skip * x + out * self._predict(in_ * x, sigma, label)

    def loss(
        self, x0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"],
        label: Int[Tensor, " b"], weighting: Weighting = uniform,
    ) -> Float[Tensor, " b"]:  # fmt: skip
        """Weighted mean squared error of each image, in the network's output space.

        ``x0`` is in data units, ``eps`` is unit noise, each ``sigma`` is above 0, and ``label`` is ``null`` where the
        label is dropped.
        """
        level = sigma.view(-1, 1, 1, 1)
        x = x0 + level * eps
        scaling = skip, out, in_ = self.scaling(sigma)
        target = (x0 - skip * x) / out
        error = (self._predict(in_ * x, sigma, label) - target).square().mean((1, 2, 3))
        return error * weighting(level, scaling, self.sigma_data).flatten()

    def _predict(self, scaled: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        output: Tensor = self.net(scaled, self.noise_input(sigma), label)
        return output.to(scaled.dtype)
