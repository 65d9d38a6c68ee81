"""From labels and seeds to images: a denoiser with all that sampling needs bound to it."""

from collections.abc import Iterator, Sequence
from operator import index

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pocketdiff import rng
from pocketdiff.config import SamplingConfig, TrainConfig
from pocketdiff.data import DataInfo, to_uint8
from pocketdiff.denoiser import Denoiser
from pocketdiff.errors import PocketdiffError
from pocketdiff.guidance import guide
from pocketdiff.samplers import SAMPLERS, Step

CHUNK = 256
"""The most images drawn at once, which bounds the memory."""

Integers = Int[Tensor, " n"] | Int[np.ndarray, " n"] | Sequence[int]


class RequestError(PocketdiffError):
    """A request that a model cannot meet."""


class SamplingError(PocketdiffError):
    """A model that gives no image."""

    status = 1


def build_denoiser(config: TrainConfig, info: DataInfo) -> Denoiser:
    """A new denoiser for these data, its first weights decided by the config's seed; on the CPU."""
    num_classes = len(info.classes)
    with torch.random.fork_rng(devices=[]):
        # torch's CPU generator heeds only 32 bits of a seed, so it is given 32 that depend on all of them.
        torch.manual_seed(int(rng.generator(config.seed, rng.Stream.INIT).integers(2**32)))
        net = config.net.build(info.channels, num_classes)
    denoiser = Denoiser(net, config.parameterization, config.sigma_data, num_classes, config.schedule.noise_input)
    return denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class DiffusionModel:
    """A trained denoiser as an ImageFn: ``model(labels, seeds)`` gives images.

    Image i depends on its label and its seed, and neither on its neighbours nor on its place in the batch.

    Args:
        denoiser: With its weights loaded, on the device to sample on.
        config: The run's config; its ``sampling`` is what holds where nothing else is asked for.
        info: The data's facts.
    """

    def __init__(self, denoiser: Denoiser, config: TrainConfig, info: DataInfo) -> None:
        self.denoiser = denoiser
        self.config = config
        self.info = info

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each class index."""
        return self.info.classes

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.denoiser.parameters()).device

    def grid(self, sampling: SamplingConfig | None = None) -> list[float]:
        """The noise levels that sampling walks down; by default as the config has it.

        Raises:
            RequestError: If there are not so many.
        """
        try:
            return (sampling or self.config.sampling).grid(self.config.schedule)
        except ValueError as error:
            raise RequestError(str(error)) from error

    def start(self, seeds: Sequence[int], sigma: float) -> Float[Tensor, "n c h w"]:
        """Pure noise at level ``sigma``: one tensor a seed, drawn on the CPU so that every device starts alike.

        Its variance is ``sigma^2 + sigma_data^2``, as if it held an image: DDPM's unit-variance start on this clock.
        """
        shape = (self.info.channels, self.info.height, self.info.width)
        noise = rng.normal(0, rng.Stream.START, seeds, shape).to(self.device)
        return noise * (sigma**2 + self.config.sigma_data**2) ** 0.5

    def steps(
        self,
        labels: Integers,
        seeds: Integers,
        sampling: SamplingConfig | None = None,
    ) -> Iterator[Step]:
        """Draws images and yields the state after every step; all n images are in memory at once.

        Args:
            labels: A class index for each image; ``len(classes)``, the null label, draws without one.
            seeds: A seed for each image: any integers.
            sampling: Sampler, steps, scale and schedule; by default the config's own.

        Raises:
            RequestError: If a label is none of the classes, labels and seeds are not equally many, or steps too many.
        """
        sampling = sampling or self.config.sampling
        wanted, keys = _integers(labels), _integers(seeds)
        _check_equally_many(wanted, keys)
        if strange := [label for label in wanted if not 0 <= label <= len(self.classes)]:
            raise RequestError(
                f"label {strange[0]} is none of the {len(self.classes)} classes, 0 to {len(self.classes) - 1}"
            )
        sigmas = self.grid(sampling)
        x = self.start(keys, sigmas[0])
        denoise = guide(
            self.denoiser.eval(), torch.tensor(wanted, dtype=torch.long, device=self.device), sampling.scale
        )

        def noise(step: int) -> Tensor:
            return rng.normal(0, rng.Stream.STEP + step, keys, tuple(x.shape[1:])).to(self.device)

        return SAMPLERS[sampling.sampler](denoise, x, sigmas, noise)

    def generate(
        self,
        labels: Integers,
        seeds: Integers,
        sampling: SamplingConfig | None = None,
    ) -> UInt8[Tensor, "n c h w"]:
        """Draws images, in batches of bounded memory; takes what `steps` takes.

        Returns:
            Bytes on the CPU, in the data's own polarity.

        Raises:
            RequestError: As `steps`.
            SamplingError: If the network gives values that are not finite.
        """
        empty = torch.empty(0, self.info.channels, self.info.height, self.info.width, dtype=torch.uint8)
        return torch.cat([empty, *self.chunks(labels, seeds, sampling)])

    __call__ = generate

    def chunks(
        self, labels: Integers, seeds: Integers, sampling: SamplingConfig | None = None
    ) -> Iterator[UInt8[Tensor, "m c h w"]]:
        """What `generate` gives, batch after batch as they are drawn."""
        wanted, keys = _integers(labels), _integers(seeds)
        _check_equally_many(wanted, keys)
        for at in range(0, len(wanted), CHUNK):
            for step in self.steps(wanted[at : at + CHUNK], keys[at : at + CHUNK], sampling):
                last = step  # Only this is kept: a thousand steps would not fit.
            yield self.to_pixels(last.x, last.sigma)

    def to_pixels(self, x: Float[Tensor, "n c h w"], sigma: float) -> UInt8[Tensor, "n c h w"]:
        """A state at noise level ``sigma`` as bytes on the CPU, at DDPM's scale: ``x / sqrt(1 + sigma^2)``.

        At that scale pure noise has unit variance, and a clean image is itself.

        Raises:
            SamplingError: If a value is not finite.
        """
        if not x.isfinite().all():
            raise SamplingError(
                "the network gives values that are not finite; train it again, with a lower learning rate"
            )
        return to_uint8(x / (1 + sigma**2) ** 0.5, self.config.black).cpu()


def _check_equally_many(labels: list[int], seeds: list[int]) -> None:
    if len(labels) != len(seeds):
        raise RequestError(f"{len(labels)} labels but {len(seeds)} seeds; give one seed for each label")


def _integers(values: Integers) -> list[int]:
    return [index(value) for value in values]
