"""Optimizers: Muon for the hidden matrices and convolutions, Adam for the rest; the learning rate; the EMA."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def make_optimizers(
    net: nn.Module, muon_lr: float | None, adam_lr: float, adam_beta2: float = 0.99
) -> list[torch.optim.Optimizer]:
    """Muon for every weight of two or more dimensions inside the network, Adam for the rest.

    Args:
        net: A network whose ``edges`` names its modules at input and output, which Muon does not suit.
        muon_lr: Peak learning rate of Muon; None leaves every weight to Adam.
        adam_lr: Peak learning rate of Adam.
        adam_beta2: How much of Adam's mean of squared gradients stays at a step.

    Returns:
        Both, or Adam alone; every group of parameters carries its ``peak_lr``, which `learning_rate` scales.
    """
    edges = tuple(f"{name}." for name in getattr(net, "edges", ()))
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        inside = muon_lr is not None and parameter.ndim >= 2 and not name.startswith(edges)
        (hidden if inside else rest).append(parameter)
    adam = torch.optim.Adam([{"params": rest, "peak_lr": adam_lr}], adam_lr, betas=(0.9, adam_beta2), fused=True)
    return [adam] if muon_lr is None else [Muon([{"params": hidden, "peak_lr": muon_lr}], muon_lr), adam]


def learning_rate(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: up in a line over ``warmup``, down in a line to 0 at the end of the run.

    Args:
        progress: Share of the run that is done, in [0, 1).
        warmup: Share of the run in which the learning rate rises.
    """
    rising = (progress + 1e-3) / (warmup + 1e-3)
    return min(1.0, rising) * (1 - progress)


def take_step(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Every optimizer's step, at the share ``lr`` of its peak learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr
        optimizer.step()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized: every direction of a weight matrix moves by the same amount.

    A convolution's kernel counts as the matrix (out, in * kernel area). Source: Jordan et al. 2024.

    Args:
        params: Groups of weights of two or more dimensions.
        lr: Learning rate: the spectral norm of a step, for matrices at least as wide as high.
        momentum: Of the gradient's moving average, with Nesterov's look ahead.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """Takes one step along the gradients at hand."""
        for group in self.param_groups:
            # Matrices of one shape are orthogonalized together: they are small, and many calls would cost more.
            stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                stacks.setdefault(ahead.shape, []).append((parameter, ahead))
            for (height, width), stack in stacks.items():
                stretch = max(1.0, height / width) ** 0.5
                updates = orthogonalize(torch.stack([ahead for _, ahead in stack]))
                for (parameter, _), update in zip(stack, updates, strict=True):
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * stretch)


def orthogonalize(matrix: Float[Tensor, "*stack m n"]) -> Float[Tensor, "*stack m n"]:
    """Brings the singular values of a matrix, or of each in a stack, near 1 (0.7 to 1.2) in five Newton-Schulz steps.

    Each step is ``X <- (a I + b A + c A^2) X`` with ``A = X X^T``. All factors commute with A, so the steps are taken
    on the small A alone and X is multiplied once, at the end: 2.5 times less work for a 3 x 3 convolution's matrix.

    Source: Jordan et al. 2024 (Muon), with its coefficients.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalize(matrix.mT).mT
    matrix = matrix / (torch.linalg.matrix_norm(matrix, keepdim=True) + 1e-7)
    gram = matrix @ matrix.mT
    total = eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(5):
        factor = 3.4445 * eye - 4.7750 * gram + 2.0315 * gram @ gram
        total = factor @ total
        gram = factor @ gram @ factor
    return total @ matrix


def ema_decay(step: int, power: float | None) -> float:
    """How much of the moving average stays at a step (1, 2, ...): ``(1 - 1 / step) ** (power + 1)``.

    The average then weighs step i of t as ``(i / t) ** power``, near enough: it forgets the start however long the run,
    and needs no warm-up, for after one step it is that step. Without a power nothing stays: the average is the present.
    Source: Karras et al. 2024 (EDM2), equation 3.
    """
    return 0.0 if power is None else (1 - 1 / step) ** (power + 1)


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, step: int, power: float | None) -> None:
    """Moves the averaged weights towards the present ones; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - ema_decay(step, power))
    for average, buffer in zip(ema.buffers(), net.buffers(), strict=True):
        average.copy_(buffer)
