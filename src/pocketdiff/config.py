"""Configs: everything that decides what a training run gives, and the presets.

A config is frozen and strict, holds plain values, and lies as JSON in the run's folder and in the model's file. The
command line makes a flag of every field.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pocketdiff.data import MAX_SIDE, MIN_SIDE
from pocketdiff.denoiser import PARAMETERIZATIONS
from pocketdiff.frozen import Frozen
from pocketdiff.nets import NETS, Net
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.samplers import SAMPLERS
from pocketdiff.schedule import SCHEDULES, Karras, LogNormal, Schedule, grid

if TYPE_CHECKING:
    ParameterizationName = str
    SamplerName = str
    AnySchedule = Schedule
    AnyNet = Net
else:  # What a config may name is what the registries hold.
    ParameterizationName = Literal[tuple(PARAMETERIZATIONS)]
    SamplerName = Literal[tuple(SAMPLERS)]
    AnySchedule = Annotated[reduce(or_, SCHEDULES.values()), Field(discriminator="kind")]
    AnyNet = Annotated[reduce(or_, NETS.values()), Field(discriminator="kind")] if len(NETS) > 1 else Net


Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]


def _square(size: Any) -> Any:
    """One number as height and width."""
    if isinstance(size, (list, tuple)):
        return tuple(size) * 2 if len(size) == 1 else size
    return (size, size)


class SamplingConfig(Frozen):
    """How a model is sampled where nothing else is asked for; kept in its file."""

    sampler: SamplerName = "dpmpp_2m"
    """The rule for each step."""
    steps: int = Field(10, ge=1, le=100_000)
    """Number of steps; each costs one denoiser call (heun: two)."""
    scale: float = Field(1.5, ge=0, allow_inf_nan=False)
    """Guidance scale; 1 = off. DDPM-MNIST's strength w is scale - 1."""
    schedule: AnySchedule = Karras(sigma_min=0.05)
    """Spreads the noise levels that sampling walks down."""

    @model_validator(mode="after")
    def _has_levels(self) -> "SamplingConfig":
        grid(self.schedule, self.steps)
        return self


class TrainConfig(Frozen):
    """One training run. The same config and data give the same model; on the same CPU bit for bit."""

    data: str = "mnist"
    """Data set: mnist, or the path of a folder of IDX files, a folder of image folders, or an .npz file."""
    size: Annotated[tuple[Side, Side], BeforeValidator(_square)] | None = None
    """Height and width to bring every image to, or one number for both; needed where the data are of mixed size."""
    seed: int = 0
    """Decides the first weights, the order of the images and every draw of noise."""
    images: int = Field(100_000, ge=1)
    """Length of the run: how many images are seen, repeats counted."""
    batch: int = Field(64, ge=1)
    """Images in an optimizer step."""

    net: AnyNet = UNetConfig()
    """The network."""
    parameterization: ParameterizationName = "flow"
    """What the network predicts."""
    sigma_data: float = Field(0.5, gt=0, allow_inf_nan=False)
    """The data's standard deviation, in data units; flow does without it, and 1 gives DDPM's own scaling."""
    schedule: AnySchedule = LogNormal()
    """Spreads the noise levels that training draws."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the images that are learned without their label, which guidance needs."""

    muon_lr: float = Field(0.02, gt=0, allow_inf_nan=False)
    """Peak learning rate of Muon, for the hidden convolutions and matrices."""
    adamw_lr: float = Field(3e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of AdamW, for all else."""
    warmup: float = Field(0.02, ge=0, lt=1)
    """Share of the run in which the learning rate rises; it falls to zero, linearly, in the rest."""
    ema: float = Field(17.0, ge=0, allow_inf_nan=False)
    """Power of the weights' moving average: step i of t counts as (i / t) ** ema; 0 is the plain mean."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the network's matrix work in bfloat16; weights and optimizer stay in fp32."""
    compile: bool = False
    """Whether the network goes through torch.compile, which takes a minute before the first step."""

    log_every: int = Field(2_000, ge=1)
    """Images between two lines of metrics.jsonl."""
    checkpoint_every: int = Field(4_000, ge=1)
    """Images between two checkpoints."""
    pictures_every: int | None = Field(None, ge=1)
    """Epochs between two grids of pictures; by default so many that a run has at most five. One always ends it."""
    gifs_every: int | None = Field(None, ge=1)
    """Epochs between two sets of GIFs; by default so many that a run has at most two. One set always ends it."""
    gif_steps: int = Field(30, ge=1, le=100_000)
    """Steps from noise to digits in GIFs, where the schedule has so many: the eye wants more than a sampler needs."""
    guidance_strengths: tuple[Annotated[float, Field(ge=-1, allow_inf_nan=False)], ...] = (0.0, 0.5, 2.0)
    """The guidance strengths w = scale - 1 that pictures are drawn for."""

    sampling: SamplingConfig = SamplingConfig()
    """How the finished model is sampled by default."""


# Times and shares are of two CPU cores; docs/results.md has the machine and the commands.
PRESETS: dict[str, TrainConfig] = {
    # 65 s; 96.05% of its digits are read as their label.
    "quick": TrainConfig(images=22_000, batch=32, muon_lr=0.015, sampling=SamplingConfig(steps=6)),
    # 253 s; 99.05%.
    "laptop": TrainConfig(),
    # Not yet measured on a GPU.
    "gpu": TrainConfig(
        images=6_000_128,  # whole batches, for torch.compile builds the network anew for another size
        batch=512,
        net=UNetConfig(widths=(128, 256), embedding=256),
        precision="bf16",
        compile=True,
        log_every=50_000,
        checkpoint_every=600_000,
    ),
}
