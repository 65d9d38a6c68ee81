"""From labels and seeds to images: a network with all that drawing needs bound to it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from operator import index
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pocketdiff import rng
from pocketdiff.config import AnyConfig, GanConfig, SamplingConfig, TrainConfig
from pocketdiff.data import DataInfo, to_uint8
from pocketdiff.denoiser import Denoiser
from pocketdiff.errors import PocketdiffError
from pocketdiff.guidance import guide
from pocketdiff.nets.gan import Gan
from pocketdiff.samplers import SAMPLERS, Step

CHUNK = 256
"""The most images drawn at once, which bounds the memory."""

Integers = Int[Tensor, " n"] | Int[np.ndarray, " n"] | Sequence[int]
Network = TypeVar("Network", bound=nn.Module)


class RequestError(PocketdiffError):
    """A request that a model cannot meet."""


class SamplingError(PocketdiffError):
    """A model that gives no image."""

    status = 1


def build_denoiser(config: TrainConfig, info: DataInfo) -> Denoiser:
    """A new denoiser for these data, its first weights decided by the config's seed; on the CPU."""
    num_classes = len(info.classes)
    net = _initialised(lambda: config.net.build(info.channels, num_classes), config.seed)
    denoiser = Denoiser(net, config.parameterization, config.sigma_data, num_classes, config.schedule.noise_input)
    return denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_gan(config: GanConfig, info: DataInfo) -> Gan:
    """A new generator and discriminator for these data, their first weights decided by the seed; on the CPU."""
    shape = (info.channels, info.height, info.width)
    gan = _initialised(lambda: config.net.build(shape, len(info.classes)), config.seed)
    return gan.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _initialised(build: Callable[[], Network], seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        # torch's CPU generator heeds only 32 bits of a seed, so it is given 32 that depend on all of them.
        torch.manual_seed(int(rng.generator(seed, rng.Stream.INIT).integers(2**32)))
        return build()


class ImageModel(ABC):
    """A trained network as an ImageFn: ``model(labels, seeds)`` gives images.

    Image i depends on its label and its seed, and neither on its neighbours nor on its place in the batch.

    Args:
        net: With its weights loaded, on the device to draw on: all that a model file holds.
        config: The run's config.
        info: The data's facts.
    """

    config: AnyConfig
    conditional: bool = True
    """Whether it draws the class that it is asked for."""
    unconditional: bool = True
    """Whether it draws without a label."""

    def __init__(self, net: nn.Module, config: AnyConfig, info: DataInfo) -> None:
        self.net, self.config, self.info = net, config, info

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each class index."""
        return self.info.classes

    @property
    def null(self) -> int:
        """The label that stands for none: ``len(classes)``."""
        return len(self.info.classes)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.net.parameters()).device

    @abstractmethod
    def evaluations(self) -> int:
        """How often the network is asked for an image."""

    @abstractmethod
    def _draw(self, labels: list[int], seeds: list[int]) -> UInt8[Tensor, "m c h w"]:
        """At most `CHUNK` images, as bytes on the CPU."""

    def generate(self, labels: Integers, seeds: Integers) -> UInt8[Tensor, "n c h w"]:
        """Draws images, in batches of bounded memory.

        Args:
            labels: A class index for each image, or the null label.
            seeds: A seed for each image: any integers.

        Returns:
            Bytes on the CPU, in the data's own polarity.

        Raises:
            RequestError: If a label is none that the model knows, or labels and seeds are not equally many.
            SamplingError: If the network gives values that are not finite.
        """
        empty = torch.empty(0, self.info.channels, self.info.height, self.info.width, dtype=torch.uint8)
        return torch.cat([empty, *self.chunks(labels, seeds)])

    __call__ = generate

    def chunks(self, labels: Integers, seeds: Integers) -> Iterator[UInt8[Tensor, "m c h w"]]:
        """What `generate` gives, batch after batch as they are drawn."""
        wanted, keys = self._checked(labels, seeds)
        for at in range(0, len(wanted), CHUNK):
            yield self._draw(wanted[at : at + CHUNK], keys[at : at + CHUNK])

    def _checked(self, labels: Integers, seeds: Integers) -> tuple[list[int], list[int]]:
        wanted, keys = _integers(labels), _integers(seeds)
        if len(wanted) != len(keys):
            raise RequestError(f"{len(wanted)} labels but {len(keys)} seeds; give one seed for each label")
        if strange := [label for label in wanted if not 0 <= label <= self.null]:
            raise RequestError(f"label {strange[0]} is none of the {self.null} classes, 0 to {self.null - 1}")
        if not self.unconditional and self.null in wanted:
            raise RequestError(f"this model draws nothing without a label: give one of 0 to {self.null - 1}")
        if not self.conditional and any(label != self.null for label in wanted):
            raise RequestError(f"this model learned no labels: give {self.null}, which stands for none, for each image")
        return wanted, keys


class DiffusionModel(ImageModel):
    """A trained denoiser, and one way of sampling it.

    Args:
        denoiser: With its weights loaded, on the device to sample on.
        config: The run's config.
        info: The data's facts.
        sampling: Sampler, steps, scale and schedule; by default the config's own.
    """

    config: TrainConfig

    def __init__(
        self, denoiser: Denoiser, config: TrainConfig, info: DataInfo, sampling: SamplingConfig | None = None
    ) -> None:
        super().__init__(denoiser, config, info)
        self.denoiser = denoiser
        self.sampling = sampling or config.sampling

    def with_sampling(self, sampling: SamplingConfig) -> "DiffusionModel":
        """The same denoiser, sampled in another way."""
        return DiffusionModel(self.denoiser, self.config, self.info, sampling)

    def grid(self) -> list[float]:
        """The noise levels that sampling walks down.

        Raises:
            RequestError: If there are not so many.
        """
        try:
            return self.sampling.grid(self.config.schedule)
        except ValueError as error:
            raise RequestError(str(error)) from error

    def evaluations(self) -> int:
        """How often the network is asked for an image: counted while sampling an image of one pixel without it."""
        calls = 0

        def denoise(x: Tensor, _sigma: float) -> Tensor:
            nonlocal calls
            calls += 1
            return x

        x = torch.zeros(1, 1, 1, 1)
        for _ in SAMPLERS[self.sampling.sampler](denoise, x, self.grid(), lambda _step: x):
            pass
        return calls * (1 if self.sampling.scale == 1 else 2)

    def start(self, seeds: Sequence[int], sigma: float) -> Float[Tensor, "n c h w"]:
        """Pure noise at level ``sigma``: one tensor a seed, drawn on the CPU so that every device starts alike.

        Its variance is ``sigma^2 + sigma_data^2``, as if it held an image: DDPM's unit-variance start on this clock.
        """
        shape = (self.info.channels, self.info.height, self.info.width)
        noise = rng.normal(0, rng.Stream.START, seeds, shape).to(self.device)
        return noise * (sigma**2 + self.config.sigma_data**2) ** 0.5

    def steps(self, labels: Integers, seeds: Integers) -> Iterator[Step]:
        """Draws images and yields the state after every step; all n images are in memory at once.

        Takes what `generate` takes; the null label draws without one.

        Raises:
            RequestError: As `generate`, or if there are not so many steps.
        """
        wanted, keys = self._checked(labels, seeds)
        sigmas = self.grid()
        x = self.start(keys, sigmas[0])
        classes = torch.tensor(wanted, dtype=torch.long, device=self.device)
        denoise = guide(self.denoiser.eval(), classes, self.sampling.scale)

        def noise(step: int) -> Tensor:
            return rng.normal(0, rng.Stream.STEP + step, keys, tuple(x.shape[1:])).to(self.device)

        return SAMPLERS[self.sampling.sampler](denoise, x, sigmas, noise)

    def to_pixels(self, x: Float[Tensor, "n c h w"], sigma: float) -> UInt8[Tensor, "n c h w"]:
        """A state at noise level ``sigma`` as bytes on the CPU, at DDPM's scale: ``x / sqrt(1 + sigma^2)``.

        At that scale pure noise has unit variance, and a clean image is itself.

        Raises:
            SamplingError: If a value is not finite.
        """
        return _to_bytes(x / (1 + sigma**2) ** 0.5, self.config.black)

    def _draw(self, labels: list[int], seeds: list[int]) -> UInt8[Tensor, "m c h w"]:
        for step in self.steps(labels, seeds):
            last = step  # Only this is kept: a thousand steps would not fit.
        return self.to_pixels(last.x, last.sigma)


class GanModel(ImageModel):
    """A trained generator, which draws in a single step.

    Args:
        generator: With its weights loaded, on the device to draw on.
        config: The run's config.
        info: The data's facts.
    """

    config: GanConfig

    def __init__(self, generator: nn.Module, config: GanConfig, info: DataInfo) -> None:
        super().__init__(generator, config, info)
        self.generator = generator
        self.conditional = config.net.conditional
        self.unconditional = not self.conditional

    def evaluations(self) -> int:
        """One."""
        return 1

    @torch.no_grad()
    def _draw(self, labels: list[int], seeds: list[int]) -> UInt8[Tensor, "m c h w"]:
        z = rng.normal(0, rng.Stream.START, seeds, (self.config.net.latent,)).to(self.device)
        return _to_bytes(self.generator.eval()(z, torch.tensor(labels, dtype=torch.long, device=self.device)))


def build_model(config: AnyConfig, info: DataInfo) -> DiffusionModel | GanModel:
    """A new model for these data, its weights as training begins with them; on the CPU."""
    if isinstance(config, GanConfig):
        return GanModel(build_gan(config, info).generator, config, info)
    return DiffusionModel(build_denoiser(config, info), config, info)


def _to_bytes(x: Float[Tensor, "n c h w"], black: float = -1.0) -> UInt8[Tensor, "n c h w"]:
    if not x.isfinite().all():
        raise SamplingError("the network gives values that are not finite; train it again, with a lower learning rate")
    return to_uint8(x, black).cpu()


def _integers(values: Integers) -> list[int]:
    return [index(value) for value in values]
