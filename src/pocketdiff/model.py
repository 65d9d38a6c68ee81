"""Models: from labels and seeds to images. A model knows what it can do and what drawing with it costs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pocketdiff import rng
from pocketdiff.config import DenoiserConfig, MethodConfig, SamplingConfig
from pocketdiff.data import DataInfo, to_uint8
from pocketdiff.denoiser import Denoiser
from pocketdiff.errors import PluginError, RequestError, SamplingError
from pocketdiff.frozen import Frozen
from pocketdiff.guidance import DenoiseFn, guide
from pocketdiff.registry import plugins
from pocketdiff.samplers import Step
from pocketdiff.tensors import in_half, write_tensors

CHUNK = 256  # The most images in one batch of drawing, which bounds the memory.
CPU_CHUNK = 64  # The same on a CPU: as fast, and the first images are there sooner.
FORMAT = 2  # Version of model files.

Integers = Int[Tensor, " n"] | Int[np.ndarray, " n"] | Sequence[int]


class SamplingFacts(Frozen):
    """How a model draws; None for settings that it does not have."""

    sampler: str | None = None
    steps: int | None = None
    scale: float | None = None
    interval: tuple[float, float] | None = None
    guide: str | None = None
    options: dict[str, float | str] | None = None
    schedule: dict[str, Any] | None = None
    nfe: float
    """Network evaluations per image."""


class View(NamedTuple):
    """One way in which a run shows its model: ``still`` draws the image grid and ``slow`` the GIF, if there is one."""

    suffix: str  # Part of the file names, such as ``_w0.5``.
    caption: str
    still: "ImageModel"
    slow: "ImageModel | None" = None
    stride: int | None = None  # Which steps the GIF shows; None: every step.
    gifs_every: int | None = None  # Epochs between two GIFs; None: as for two in a run.


class Frame(NamedTuple):
    """A state during the denoising, at the noise level ``sigma``."""

    steps_left: int
    sigma: float
    pixels: UInt8[Tensor, "n c h w"]


class ImageModel(ABC):
    """A trained network that draws images, on the device of its weights: ``model(labels, seeds)``.

    Image i depends on its label and its seed only, not on its neighbours or its place in the batch.
    """

    config: MethodConfig
    conditional: bool = True  # Whether it draws the requested class.
    unconditional: bool = True  # Whether it draws without a label.
    sampling: SamplingConfig | None = None  # Its sampling settings; None for a model that draws in one step.

    def __init__(self, net: nn.Module, config: MethodConfig, info: DataInfo) -> None:
        self.net, self.config, self.info = net, config, info
        self.classes = info.classes  # The name of each class.
        self.null = len(info.classes)  # The label for "no label".

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return next(self.net.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Weights of the network that draws."""
        return sum(weight.numel() for weight in self.net.parameters())

    @abstractmethod
    def _rebuild(self) -> nn.Module:
        """A new network from the config."""

    @abstractmethod
    def _draw(self, labels: list[int], seeds: Sequence[int]) -> UInt8[Tensor, "m c h w"]:
        """At most `CHUNK` images, as bytes on the CPU."""

    def nfe(self) -> int:
        """Network evaluations per image."""
        return 1

    def how(self) -> str:
        """How it draws, in words."""
        return "1 step"

    def sampling_facts(self) -> SamplingFacts:
        """How it draws, as a record."""
        return SamplingFacts(nfe=self.nfe())

    def views(self) -> list[View]:
        """How a run shows it."""
        return [View("", "", self)]

    def with_sampling(self, sampling: SamplingConfig, guide: "ImageModel | None" = None) -> "ImageModel":  # noqa: ARG002
        """The same network with other sampling settings; raises RequestError if the model has none."""
        raise RequestError("this model draws in one step and has no sampling settings")

    def frames(self, labels: Integers, seeds: Integers | None = None) -> Iterator[Frame]:  # noqa: ARG002
        """The denoising: pure noise, then the state after each step; raises RequestError if there is only one step."""
        raise RequestError("this model draws in one step, so there is no denoising to show")

    def generate(self, labels: Integers, seeds: Integers | None = None) -> UInt8[Tensor, "n c h w"]:
        """Draws images, in batches of bounded memory.

        Args:
            labels: A class index for each image, or the null label.
            seeds: An integer for each image; 0, 1, 2, ... if left out.

        Returns:
            Bytes on the CPU, in the data's own polarity.

        Raises:
            RequestError: If the model does not know a label, or the numbers of labels and seeds differ.
            SamplingError: If the network gives values that are not finite.
        """
        empty = torch.empty(0, self.info.channels, self.info.height, self.info.width, dtype=torch.uint8)
        return torch.cat([empty, *self.chunks(labels, seeds)])

    __call__ = generate

    def chunks(self, labels: Integers, seeds: Integers | None = None) -> Iterator[UInt8[Tensor, "m c h w"]]:
        """What `generate` gives, batch by batch."""
        wanted, keys = self._checked(labels, seeds)
        size = CPU_CHUNK if self.device.type == "cpu" else CHUNK
        for at in range(0, len(wanted), size):
            yield self._draw(wanted[at : at + size], keys[at : at + size])

    def save(self, path: Path | str, *, half: bool = False) -> None:
        """Writes a model file: weights, config and facts of the data, under one SHA-256. ``half`` stores the weights as
        float16, in half the space; `load` makes float32 of them again.

        Raises:
            PluginError: If the config does not build the network, so that the file could not be loaded.
            RequestError: If float16 cannot hold a weight.
            TrainingError: If a weight is not finite.
            OSError: If the file cannot be written.
        """
        rebuilt = self._rebuild()
        shapes, wanted = ({k: v.shape for k, v in net.state_dict().items()} for net in (rebuilt, self.net))
        if repr(rebuilt) != repr(self.net) or shapes != wanted:
            raise PluginError(
                "the config does not build the network to save; register the network (NETS) and name it in the config"
            )
        config, info = (record.model_dump(mode="json") for record in (self.config, self.info))
        about = {"format": FORMAT, "kind": self.config.kind, "train": config, "data": info, **plugins(self.config)}
        weights = self.net.state_dict()
        write_tensors(Path(path), in_half(weights) if half else weights, about)

    def facts(self) -> dict[str, str]:
        """The lines of ``pocketdiff info``."""
        info, seen = self.info, "unknown images; the training settings in the config are the defaults"
        if info.train_images is not None:
            seen = f"{info.train_images:,} images, {info.test_images:,} held out, sha256 {info.sha256}"
        return {
            "method": self.config.kind,
            "images": f"{info.height} x {info.width}, {'grey' if info.channels == 1 else 'RGB'}",
            "classes": f"{len(info.classes)}: {', '.join(info.classes)}",
            "trained on": seen,
            "labels": "draws the requested class" if self.conditional else "draws without labels",
            "weights": f"{self.num_parameters:,}",
            "draws by": f"{self.how()}, {self.nfe():g} network evaluations per image",
        }

    def __repr__(self) -> str:
        info = self.info
        size = f"{info.height} x {info.width} x {info.channels}, {len(info.classes)} classes"
        return f"{type(self).__name__}({self.config.kind}, {size}, {self.num_parameters:,} weights, {self.how()})"

    def _checked(self, labels: Integers, seeds: Integers | None) -> tuple[list[int], Sequence[int]]:
        wanted = [index(label) for label in labels]
        keys: Sequence[int] = range(len(wanted))
        if seeds is not None:
            keys = seeds if isinstance(seeds, range) else [index(seed) for seed in seeds]
        if len(wanted) != len(keys):
            raise RequestError(f"{len(wanted)} labels but {len(keys)} seeds; give one seed for each label")
        if strange := [label for label in wanted if not 0 <= label <= self.null]:
            raise RequestError(f"label {strange[0]} does not exist; the {self.null} classes are 0 to {self.null - 1}")
        if not self.unconditional and self.null in wanted:
            raise RequestError(f"this model cannot draw without a label; give labels from 0 to {self.null - 1}")
        if not self.conditional and any(label != self.null for label in wanted):
            raise RequestError(f"this model knows no labels; give the null label, {self.null}, for each image")
        return wanted, keys


class DiffusionModel(ImageModel):
    """A trained denoiser with one way of sampling it: ``sampling``, or the config's own. ``guide`` is the weaker model
    that ``sampling.guide`` names; RequestError is raised if it is missing or does not fit.
    """

    config: DenoiserConfig
    sampling: SamplingConfig

    def __init__(
        self, denoiser: Denoiser, config: DenoiserConfig, info: DataInfo, sampling: SamplingConfig | None = None,
        guide: ImageModel | None = None,
    ) -> None:  # fmt: skip
        super().__init__(denoiser, config, info)
        self.denoiser = denoiser
        self.sampling = sampling or config.sampling
        self._guide: DiffusionModel | None = None
        if (name := self.sampling.guide) is not None:
            if guide is None:
                raise RequestError(f"sampling.guide names {name}: load it and give it as guide=")
            theirs = guide.info
            if (
                not isinstance(guide, DiffusionModel)
                or theirs.channels != info.channels
                or theirs.classes != info.classes
            ):
                raise RequestError(f"{name}: cannot guide this model; give a denoiser of the same data")
            self._guide = guide

    def with_sampling(self, sampling: SamplingConfig, guide: ImageModel | None = None) -> "DiffusionModel":
        """The same denoiser with other sampling settings; ``guide`` is the model that ``sampling.guide`` names."""
        if guide is None and sampling.guide == self.sampling.guide:
            guide = self._guide
        return type(self)(self.denoiser, self.config, self.info, sampling, guide)

    def grid(self) -> list[float]:
        """The noise levels of the steps; raises RequestError if the schedule does not have that many levels."""
        try:
            return self.sampling.grid(self.config.schedule)
        except ValueError as error:
            raise RequestError(str(error)) from error

    def nfe(self) -> int:
        """Network evaluations per image, counted while one pixel is sampled without the network."""
        counter: Any = _Counter(self.null)
        x, way = torch.zeros(1, 1, 1, 1), self.sampling
        weak = None if self._guide is None else counter
        denoise = guide(counter, x.new_zeros(1).long(), way.scale, interval=way.interval, weak=weak)
        list(way.rule()(denoise, x, self.grid(), lambda _step: x))
        return counter.evaluations

    def how(self) -> str:
        """How it draws, in words."""
        way = self.sampling
        steps = len(self.grid()) - 1
        words = [way.sampler, f"{steps} step{'s' * (steps != 1)}", f"scale {way.scale:g} (w = {way.scale - 1:g})"]
        words += [f"{name} {value}" for name, value in way.options.items()]
        if way.interval is not None:
            words.append("guidance from {:g} to {:g}".format(*way.interval))
        if way.guide is not None:
            words.append(f"guided by {way.guide}")
        return ", ".join(words)

    def sampling_facts(self) -> SamplingFacts:
        """How it draws, as a record."""
        schedule = self.sampling.schedule or self.config.schedule
        way = self.sampling.model_copy(update={"steps": len(self.grid()) - 1, "schedule": schedule})
        return SamplingFacts(**way.model_dump(mode="json"), nfe=self.nfe())

    def views(self) -> list[View]:
        """One view for each guidance strength of the config; GIFs have more steps than the sampler needs."""
        found, config = [], self.config
        for w in config.guidance_strengths:
            still = slow = self.with_sampling(config.sampling.model_copy(update={"scale": 1 + w}))
            if config.gif_steps is not None:
                levels = (still.sampling.schedule or config.schedule).levels
                slower = still.sampling.model_copy(update={"steps": int(min(config.gif_steps, levels))})
                slow = still if slower == still.sampling else self.with_sampling(slower)
            found.append(View(f"_w{w:g}", f"w = {w:g}", still, slow, config.gif_stride, config.gifs_every))
        return found

    def start(self, seeds: Sequence[int], sigma: float) -> Float[Tensor, "n c h w"]:
        """Pure noise at level ``sigma`` for each seed, drawn on the CPU so that all devices start alike. The
        variance is ``sigma^2 + sigma_data^2``, that of a noisy image: DDPM's unit-variance start on this clock.
        """
        shape = (self.info.channels, self.info.height, self.info.width)
        noise = rng.normal(0, rng.Stream.START, seeds, shape).to(self.device)
        return noise * (sigma**2 + self.config.sigma_data**2) ** 0.5

    def bind(self, labels: Integers) -> DenoiseFn:
        """The denoiser with labels and guidance bound: ``(x, sigma) -> x0_hat``."""
        label = torch.tensor([index(label) for label in labels], dtype=torch.long, device=self.device)
        weak = None if self._guide is None else self._guide.denoiser
        return guide(self.denoiser, label, self.sampling.scale, interval=self.sampling.interval, weak=weak)

    def steps(self, labels: Integers, seeds: Integers | None = None) -> Iterator[Step]:
        """Draws images as `generate` does and yields the state after each step; all are in memory at once."""
        wanted, keys = self._checked(labels, seeds)
        sigmas = self.grid()
        x = self.start(keys, sigmas[0])

        def noise(step: int) -> Tensor:
            return rng.normal(0, rng.Stream.STEP + step, keys, tuple(x.shape[1:])).to(self.device)

        return self.sampling.rule()(self.bind(wanted), x, sigmas, noise)

    def frames(self, labels: Integers, seeds: Integers | None = None) -> Iterator[Frame]:
        """The denoising: pure noise, then the state after each step; all images are in memory at once."""
        wanted, keys = self._checked(labels, seeds)
        sigmas = self.grid()
        left = len(sigmas) - 1
        yield Frame(left, sigmas[0], self.to_pixels(self.start(keys, sigmas[0]), sigmas[0]))
        for step in self.steps(wanted, keys):
            left -= 1
            yield Frame(left, step.sigma, self.to_pixels(step.x, step.sigma))

    def to_pixels(self, x: Float[Tensor, "n c h w"], sigma: float) -> UInt8[Tensor, "n c h w"]:
        """A state at noise level ``sigma`` as bytes on the CPU, at DDPM's scale: ``x / sqrt(1 + sigma^2)``. There pure
        noise has unit variance, and a clean image is unchanged.
        """
        return to_bytes(x / (1 + sigma**2) ** 0.5, self.config.black)

    def _rebuild(self) -> Denoiser:
        return build_denoiser(self.config, self.info)

    def _draw(self, labels: list[int], seeds: Sequence[int]) -> UInt8[Tensor, "m c h w"]:
        for step in self.steps(labels, seeds):
            last = step  # Only the last state is kept: a thousand would not fit into memory.
        return self.to_pixels(last.x, last.sigma)


class _Counter:
    """Stands in for a denoiser and counts evaluations."""

    def __init__(self, null: int) -> None:
        self.null, self.evaluations = null, 0

    def __call__(self, x: Tensor, _sigma: Tensor, _label: Tensor) -> Tensor:
        self.evaluations += len(x)
        return x


def build_net(config: Any, info: DataInfo) -> Any:
    """A new network of ``config.net`` in eval mode, in float32, on the CPU; torch's own generator is left as it was."""
    # torch's CPU generator uses 32 bits of a seed, so it gets 32 bits that depend on all of them.
    with rng.initial_weights(int(rng.generator(config.seed, rng.Stream.INIT).integers(2**32))):
        net = config.net.build((info.channels, info.height, info.width), len(info.classes))
    return net.to(memory_format=torch.channels_last).eval()


def build_denoiser(config: DenoiserConfig, info: DataInfo) -> Denoiser:
    """A new denoiser in eval mode, on the CPU; the config's seed decides its weights."""
    noise_input = config.schedule.noise_input
    net = build_net(config, info)
    return Denoiser(net, config.parameterization, config.sigma_data, len(info.classes), noise_input).eval()


def to_bytes(x: Float[Tensor, "n c h w"], black: float = -1.0) -> UInt8[Tensor, "n c h w"]:
    """Images in data units as bytes on the CPU; raises SamplingError if a value is not finite."""
    if not x.isfinite().all():
        raise SamplingError("the network gives values that are not finite; train it again with a lower learning rate")
    return to_uint8(x, black).cpu()
