"""Optimizers: Muon for the hidden matrices and convolutions, Adam for the rest; the learning rate; the EMA."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pocketdiff.errors import PluginError


def make_optimizers(
    net: nn.Module, muon_lr: float | None, adam_lr: float, betas: tuple[float, float] = (0.9, 0.99),
    momentum: float = 0.95,
) -> list[torch.optim.Optimizer]:  # fmt: skip
    """Muon for the hidden weights of two or more dimensions, Adam for all other parameters.

    Args:
        net: A network with an attribute ``adam_only``: the names of modules or parameters that Muon does not suit.
        muon_lr: Peak learning rate of Muon; None: Adam trains all parameters.
        adam_lr: Peak learning rate of Adam.
        betas: Decays of Adam's averages of gradients and of squared gradients.
        momentum: Decay of Muon's average of gradients.

    Returns:
        Muon and Adam, or Adam alone. Every parameter group has its ``peak_lr``, which `take_step` scales.

    Raises:
        PluginError: If the network has no ``adam_only``, or a name in it fits no parameter.
    """
    named = {f"{name}.": parameter for name, parameter in net.named_parameters()}
    if (adam_only := getattr(net, "adam_only", None)) is None:
        raise PluginError(f"{type(net).__name__} has no adam_only; name its modules at input and output, or give ()")
    prefixes = tuple(f"{name}." for name in adam_only)
    if unknown := [prefix[:-1] for prefix in prefixes if not any(name.startswith(prefix) for name in named)]:
        raise PluginError(f"{type(net).__name__}: adam_only names {unknown[0]!r}, which has no parameters; remove it")
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named.items():
        use_muon = muon_lr is not None and parameter.ndim >= 2 and not name.startswith(prefixes)
        (hidden if use_muon else rest).append(parameter)
    adam = torch.optim.Adam([{"params": rest, "peak_lr": adam_lr}], adam_lr, betas=betas, fused=True)
    return [adam] if muon_lr is None else [Muon([{"params": hidden, "peak_lr": muon_lr}], muon_lr, momentum), adam]


def learning_rate(progress: float, warmup: float) -> float:
    """Fraction of the peak learning rate: a linear warmup, times a linear decay to 0 at the end of the run.

    ``progress`` is the completed fraction of the run, in [0, 1); ``warmup`` is the fraction in which the rate rises.
    """
    return rise(progress, warmup) * (1 - progress)


def rise(progress: float, warmup: float) -> float:
    """Fraction of the peak learning rate in a linear warmup, 1 after it; the arguments are those of `learning_rate`."""
    return min(1.0, (progress + 1e-3) / (warmup + 1e-3))


def take_step(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Takes a step with each optimizer, at the fraction ``lr`` of its peak learning rates."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr
        optimizer.step()


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum: all singular values of a weight matrix's update are about equal.

    A convolution's kernel is treated as a matrix (out, in * kernel area). Source: Jordan et al. 2024.

    Args:
        params: Groups of weights of two or more dimensions.
        lr: Learning rate: about the spectral norm of a step, for matrices with at least as many columns as rows.
        momentum: Decay of the gradients' moving average, with Nesterov momentum.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """Takes one step with the current gradients. Weights without a gradient stay as they are."""
        for group in self.param_groups:
            if not (weights := [weight for weight in group["params"] if weight.grad is not None]):
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            averages, gradients = [self.state[weight]["momentum"] for weight in weights], [w.grad for w in weights]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            # Matrices of the same shape are orthogonalized in one call, which is faster.
            stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight, ahead in zip(weights, torch._foreach_lerp(gradients, averages, group["momentum"]), strict=True):
                matrix = ahead.flatten(1)
                stacks.setdefault(matrix.shape, []).append((weight, matrix))
            for (height, width), stack in stacks.items():
                stretch = max(1.0, height / width) ** 0.5
                updates = orthogonalize(torch.stack([matrix for _, matrix in stack]))
                for (weight, _), update in zip(stack, updates, strict=True):
                    weight.add_(update.view_as(weight), alpha=-group["lr"] * stretch)


def orthogonalize(matrix: Float[Tensor, "*stack m n"]) -> Float[Tensor, "*stack m n"]:
    """Moves the singular values of each matrix close to 1 (0.7 to 1.2) in five Newton-Schulz steps.

    Each step is ``X <- (a I + b A + c A^2) X`` with ``A = X X^T``. All factors commute with A, so the loop works on the
    small A alone and multiplies X once, at the end: 2.5 times less work for a 3 x 3 convolution's matrix.

    Source: Jordan et al. 2024 (Muon), with its coefficients.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalize(matrix.mT).mT
    matrix = matrix / (torch.linalg.matrix_norm(matrix, keepdim=True) + 1e-7)
    gram = matrix @ matrix.mT
    total = eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    for _ in range(4):
        factor = _factor(gram, eye)
        total, gram = factor @ total, factor @ gram @ factor
    return _factor(gram, eye) @ total @ matrix


def _factor(gram: Tensor, eye: Tensor) -> Tensor:
    return 3.4445 * eye - 4.7750 * gram + 2.0315 * gram @ gram


def ema_decay(step: int, power: float | None) -> float:
    """Decay of the moving average of the weights at a step (1, 2, ...): ``(1 - 1 / step) ** (power + 1)``.

    Step i of t then has a weight of about ``(i / t) ** power``: a run of any length forgets its start. No warmup is
    needed, because the average after step 1 is step 1. With ``power`` None the average equals the current weights.
    Source: Karras et al. 2024 (EDM2), equation 3.
    """
    return 0.0 if power is None else (1 - 1 / step) ** (power + 1)


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, step: int, power: float | None) -> None:
    """Moves the averaged weights towards the current ones; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - ema_decay(step, power))
    for average, buffer in zip(ema.buffers(), net.buffers(), strict=True):
        average.copy_(buffer)
