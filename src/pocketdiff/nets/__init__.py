"""Networks, one file each, and what a network from elsewhere must provide.

To add one, write its file and add its config class to ``NETS``; for a GAN's pair of networks, to ``GANS``.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.gan import ConvGanConfig, Gan, MlpGanConfig
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.registry import Registry

Shape = tuple[int, int, int]
"""Shape of an image: (channels, height, width)."""


@runtime_checkable
class Network(Protocol):
    """A denoiser's network, an `nn.Module`. Labels are 0 to num_classes; num_classes is the null label."""

    @property
    def adam_only(self) -> tuple[str, ...]:
        """Names of the modules or parameters that Muon does not train, usually those at input and output."""

    def __call__(self, x: Tensor, noise: Tensor, label: Tensor, /) -> Tensor:
        """Maps scaled images (b, c, h, w), noise inputs (b,) and labels (b,) to a target of the images' shape."""


@runtime_checkable
class NetConfig(Protocol):
    """The config of a network: a `Frozen` class; its fields become flags."""

    @property
    def kind(self) -> str:
        """Its key in ``NETS``."""

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        """A new `Network` for images of this shape; torch's generator decides its weights. It must also work inside
        `shapes_only`, because a model file's tensors are compared with these shapes before the network is built.
        """


@runtime_checkable
class GanNet(NetConfig, Protocol):
    """The config of a GAN's networks; its ``kind`` is a key of ``GANS``."""

    @property
    def conditional(self) -> bool:
        """Whether the networks use labels."""

    @property
    def latent(self) -> int:
        """Size of the generator's noise vector."""

    def build(self, shape: Shape, num_classes: int) -> Gan:
        """New networks for images of this shape, as in `NetConfig`."""


NETS: Registry[type[NetConfig]] = Registry(
    "network", "pocketdiff.nets", {"unet": UNetConfig, "context_unet": ContextUnetConfig}
)

GANS: Registry[type[GanNet]] = Registry("GAN", "pocketdiff.gans", {"mlp": MlpGanConfig, "conv": ConvGanConfig})


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Networks that are built inside, on torch's device meta, have shapes but no values, so even the largest takes no
    memory and little time.
    """
    with torch.device("meta"), _NoInit():
        yield


class _NoInit(TorchFunctionMode):
    """Skips ``torch.nn.init``: on meta it does nothing, but makes torch import 800 modules."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
