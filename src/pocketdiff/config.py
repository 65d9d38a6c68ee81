"""Configs: everything that decides what a training run gives, stored as JSON in the run's folder and the model file.

The command line makes a flag of every field. Each training method adds its own fields and presets (``methods/``).
"""

import math
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator

from pocketdiff.data import AUGMENTATIONS, Side
from pocketdiff.denoiser import PARAMETERIZATIONS
from pocketdiff.frozen import Alias, Filled, Frozen, Metavar
from pocketdiff.nets import NETS, NetConfig
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.optim import learning_rate
from pocketdiff.records import Count
from pocketdiff.registry import Named, OneOf
from pocketdiff.samplers import SAMPLERS, Sampler, sampler_options
from pocketdiff.schedule import MAX_LEVELS, SCHEDULES, Karras, LogNormal, Schedule, grid

Level = Annotated[float, Field(ge=0)]
AnyNet = Annotated[NetConfig, OneOf(NETS)]
AnySchedule = Annotated[Schedule, OneOf(SCHEDULES)]
RunOrFile = Annotated[str, Metavar("RUN_OR_FILE")]

MAX_PASSES = 200
"""The most passes over a small data set in a run whose length is the preset's."""
NEUTRAL_SCALE = 1.5
"""A guidance scale for data on which none was measured: nearly the best on Fashion-MNIST (docs/results.md)."""


def _square(size: Any) -> Any:
    """One number as height and width."""
    values = tuple(size) if isinstance(size, (list, tuple)) else (size,)
    return values * 2 if len(values) == 1 else values


class SamplingConfig(Frozen):
    """How a model is sampled by default; stored in its file."""

    sampler: Annotated[str, Named(SAMPLERS)] = "dpmpp_2m"
    """The rule for each step."""
    steps: int | None = Field(8, ge=1, le=MAX_LEVELS)
    """Number of steps, one denoiser call each (heun: two); none: one step for each level of the schedule."""
    scale: Annotated[float, Alias("w", 1.0, "Guidance strength, instead of the scale: w = scale - 1; 0 = off")] = Field(
        1.4, ge=0, allow_inf_nan=False
    )
    """Guidance scale; 1 = off."""
    schedule: AnySchedule | None = Karras(sigma_min=0.05)
    """Spreads the noise levels of the steps; none: the model's training schedule."""
    interval: Annotated[
        tuple[Level, Level] | None, BeforeValidator(lambda text: text.split(":") if isinstance(text, str) else text),
        Metavar("LOW:HIGH"),
    ] = None  # fmt: skip
    """Guidance only between two noise levels; outside, a step costs one evaluation; none: at every level."""
    guide: RunOrFile | None = None
    """Autoguidance: the run or model file of a weaker model, in place of the prediction without label; none: off."""
    options: dict[str, Annotated[float | str, Field(union_mode="left_to_right")]] = Field({})
    """Options of the sampler, such as eta=0.5 for ancestral."""
    common: ClassVar = ("sampler", "steps", "scale")

    @model_validator(mode="after")
    def _valid(self) -> "SamplingConfig":
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise ValueError(f"interval {self.interval[0]:g}:{self.interval[1]:g} must be LOW:HIGH with LOW below HIGH")
        defaults = sampler_options(self.sampler)
        for name, value in self.options.items():
            if name not in defaults:
                known = f"its options are {', '.join(defaults)}" if defaults else "it has no options"
                raise ValueError(f"the sampler {self.sampler} has no option {name!r}; {known}")
            if isinstance(defaults[name], float) and not isinstance(value, float):
                raise ValueError(f"the option {name} must be a number, not {value!r}")
        if self.options:  # Two steps on one pixel, so that the sampler itself can refuse a value.
            pixel = torch.zeros(1, 1, 1, 1)
            list(self.rule()(lambda x, _sigma: x, pixel, [2.0, 1.0, 0.0], lambda _step: pixel))
        if self.schedule is not None:
            self.grid(self.schedule)
        return self

    def grid(self, trained: Schedule) -> list[float]:
        """The noise levels of the steps, for a model of the schedule ``trained``; ValueError if there are too few."""
        schedule = self.schedule or trained
        if self.steps is None and schedule.levels == math.inf:
            raise ValueError(f"steps is none, but the {schedule.kind} schedule is continuous: give a number of steps")
        return grid(schedule, int(schedule.levels if self.steps is None else self.steps))

    def rule(self) -> Sampler:
        """The sampler with its options."""
        return partial(SAMPLERS.find(self.sampler), **self.options)


class MethodConfig(Frozen):
    """What every run needs. The same config and data give the same model; on the same CPU bit for bit."""

    kind: str
    """The training method: a key of ``METHODS``."""
    data: Annotated[str, Metavar("SOURCE")] = "mnist"
    """Data set: mnist, or the path of a folder of IDX files, a folder of image folders, or an .npz file."""
    size: Annotated[tuple[Side, Side], BeforeValidator(_square)] | None = None
    """Height and width for every image, or one number for both (default: chosen from the images' own sizes)."""
    augment: Annotated[str, Named(AUGMENTATIONS)] = "none"
    """Augmentation of the training images, such as flip, which mirrors half of them."""
    seed: int = 0
    """Decides the initial weights, the order of the images and all noise."""
    images: int | None = Field(100_000, ge=1)
    """Length of the run in training images, repeats counted."""
    epochs: int | None = Field(None, ge=1)
    """Length of the run in epochs, instead of images; the last batch of an epoch is then smaller."""
    parts: Annotated[tuple[Count, ...], Filled()] = ()
    """Images seen at the end of each earlier part, for a finished run that was made longer; the run fills it in."""
    batch: int = Field(64, ge=1)
    """Images in an optimizer step."""
    ema: float | None = Field(17.0, ge=0, allow_inf_nan=False)
    """Power of the weights' moving average: step i of t has the weight (i / t) ** ema; 0: mean; none: no average."""
    log_every: int = Field(2_000, ge=1)
    """Images between two lines of metrics.jsonl."""
    checkpoint_every: int = Field(4_000, ge=1)
    """Images between two checkpoints."""
    pictures_every: int | None = Field(None, ge=1)
    """Epochs between two image grids (default: at most five grids in a run); the end of the run always has one."""
    evaluate_every: int | None = Field(None, ge=1)
    """Images between two scores of the model; none: no scores. A score takes as long as drawing evaluate_images."""
    evaluate_images: int = Field(2_000, ge=1)
    """Images in a score of the model."""
    common: ClassVar[tuple[str, ...]] = (
        "data",
        "size",
        "augment",
        "seed",
        "images",
        "epochs",
        "batch",
        "evaluate_every",
    )
    either: ClassVar = ("images", "epochs")

    @model_validator(mode="before")
    @classmethod
    def _length_in_epochs(cls, given: Any) -> Any:
        """Epochs replace the default number of images."""
        epochs_only = isinstance(given, dict) and given.get("epochs") is not None and "images" not in given
        return {**given, "images": None} if epochs_only else given

    @model_validator(mode="after")
    def _one_length(self) -> "MethodConfig":
        if (self.images is None) == (self.epochs is None):
            raise ValueError("give the length of the run either in images or in epochs")
        ends = (0, *self.parts, self.images or math.inf)
        if any(end >= after for end, after in pairwise(ends)):
            raise ValueError("the parts of the run must end one after the other")
        return self

    def length(self, n: int) -> int:
        """Training images in the run, repeats counted, for a data set of ``n`` images."""
        return self.images if self.epochs is None else self.epochs * n  # type: ignore[return-value]

    def ends(self, n: int) -> tuple[int, ...]:
        """Images seen at the end of each part of the run; the last is its length."""
        return (*self.parts, self.length(n))

    def part(self, seen: int, n: int) -> tuple[int, int]:
        """Where the part that has the next image begins and ends, in images seen."""
        *earlier, length = self.ends(n)
        start = max(end for end in (0, *earlier) if end <= seen)
        return start, min((end for end in earlier if end > seen), default=length)

    def progress(self, seen: int, n: int) -> float:
        """Fraction of the part that is done, in [0, 1)."""
        start, end = self.part(seen, n)
        return (seen - start) / (end - start)

    def shortened(self, n: int) -> "MethodConfig":
        """The config with a length of at most `MAX_PASSES` passes over ``n`` images, in whole batches. A length in
        epochs stays.
        """
        if self.images is None or self.images <= MAX_PASSES * n:
            return self
        return self.replace(images=max(1, MAX_PASSES * n // self.batch) * self.batch)

    def with_neutral_scale(self) -> "MethodConfig":
        """The config for data without a measured guidance scale: at most `NEUTRAL_SCALE`. Without guidance, itself."""
        return self

    def learning_rate(self, seen: int, n: int) -> float:
        """Fraction of the peak learning rates after ``seen`` images, for a data set of ``n`` images."""
        return learning_rate(self.progress(seen, n), 0.0)


class DenoiserConfig(MethodConfig):
    """What every method that trains a denoiser needs."""

    black: float = Field(-1.0, ge=-1, le=0)
    """Value of a black pixel in data units; a white one is 1."""
    net: AnyNet = UNetConfig()
    """The network."""
    parameterization: Annotated[str, Named(PARAMETERIZATIONS)] = "flow"
    """What the network predicts."""
    sigma_data: float = Field(0.5, gt=0, allow_inf_nan=False)
    """Standard deviation of the data in data units; flow does not use it, and 1 gives DDPM's own scaling."""
    schedule: AnySchedule = LogNormal()
    """Spreads the noise levels of training."""
    muon_lr: float | None = Field(0.02, gt=0, allow_inf_nan=False)
    """Peak learning rate of Muon, for the hidden convolutions and matrices; none: Adam trains them."""
    adam_lr: float = Field(3e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of Adam, for all other weights."""
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of Adam's average of squared gradients."""
    warmup: float = Field(0.02, ge=0, lt=1)
    """Fraction of the run, or of a part of it, in which the learning rate rises; then it falls linearly to zero."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the network's matrix products and convolutions run in bfloat16; weights and optimizer stay in fp32."""
    compile: bool = False
    """Whether to use torch.compile, which takes a minute before the first step."""
    gifs_every: int | None = Field(None, ge=1)
    """Epochs between two sets of GIFs (default: at most two sets in a run); the end of the run always has one."""
    gif_steps: int | None = Field(30, ge=1, le=MAX_LEVELS)
    """Sampling steps in GIFs, at most one for each level of the schedule; none: the sampler's own number of steps."""
    gif_stride: int | None = Field(None, ge=1)
    """GIFs show each step t = T..1 that is T, a multiple of this, or below 8; none: every step."""
    guidance_strengths: Annotated[
        tuple[Annotated[float, Field(ge=-1, allow_inf_nan=False)], ...], Field(max_length=16)
    ] = (0.0, 0.5, 2.0)
    """Guidance strengths w = scale - 1 of the pictures."""
    sampling: SamplingConfig = SamplingConfig()
    """How the finished model is sampled by default."""

    @model_validator(mode="after")
    def _drawable(self) -> "DenoiserConfig":
        if len({f"{w:g}" for w in self.guidance_strengths}) < len(self.guidance_strengths):
            raise ValueError("two guidance_strengths are equal to six digits, so their pictures would have one name")
        if self.sampling.guide is not None:
            raise ValueError("sampling.guide is for drawing only, because a model file must be complete on its own")
        self.sampling.grid(self.schedule)
        return self

    def with_neutral_scale(self) -> "DenoiserConfig":
        """As in `MethodConfig`."""
        scale = min(self.sampling.scale, NEUTRAL_SCALE)
        return self.replace(sampling=self.sampling.replace(scale=scale))

    def learning_rate(self, seen: int, n: int) -> float:
        """As in `MethodConfig`, with the warmup."""
        return learning_rate(self.progress(seen, n), self.warmup)
