"""Configs: everything that decides what a training run gives, and the presets.

A config is frozen and strict, holds plain values, and lies as JSON in the run's folder and in the model's file. The
command line makes a flag of every field.
"""

import math
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pocketdiff.data import MAX_SIDE, MIN_SIDE
from pocketdiff.denoiser import PARAMETERIZATIONS
from pocketdiff.frozen import Frozen
from pocketdiff.nets import GANS, NETS, GanNet, Net
from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.gan import LOSSES, ConvGanConfig, MlpGanConfig
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.optim import learning_rate
from pocketdiff.samplers import SAMPLERS
from pocketdiff.schedule import SCHEDULES, DiscreteBeta, Karras, LogNormal, Schedule, grid

if TYPE_CHECKING:
    ParameterizationName = str
    SamplerName = str
    AnySchedule = Schedule
    AnyNet = Net
    AnyGan = GanNet
    LossName = str
else:  # What a config may name is what the registries hold.
    ParameterizationName = Literal[tuple(PARAMETERIZATIONS)]
    SamplerName = Literal[tuple(SAMPLERS)]
    AnySchedule = Annotated[reduce(or_, SCHEDULES.values()), Field(discriminator="kind")]
    AnyNet = Annotated[reduce(or_, NETS.values()), Field(discriminator="kind")]
    AnyGan = Annotated[reduce(or_, GANS.values()), Field(discriminator="kind")]
    LossName = Literal[tuple(LOSSES)]

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
    steps: int | None = Field(8, ge=1, le=100_000)
    """Number of steps, each of one denoiser call (heun: two); none: as many as the schedule has levels."""
    scale: float = Field(1.4, ge=0, allow_inf_nan=False)
    """Guidance scale; 1 = off. DDPM-MNIST's strength w is scale - 1."""
    schedule: AnySchedule | None = Karras(sigma_min=0.05)
    """Spreads the noise levels that sampling walks down; none: the one that the model was trained with."""

    @model_validator(mode="after")
    def _has_levels(self) -> "SamplingConfig":
        if self.schedule is not None:
            self.grid(self.schedule)
        return self

    def grid(self, trained: Schedule) -> list[float]:
        """The noise levels that sampling walks down, for a model that was trained with the schedule ``trained``.

        Raises:
            ValueError: If there are not so many.
        """
        schedule = self.schedule or trained
        if self.steps is None and schedule.levels == math.inf:
            raise ValueError(f"steps is none, but the {schedule.kind} schedule has no number of levels of its own")
        return grid(schedule, int(schedule.levels if self.steps is None else self.steps))


class CommonConfig(Frozen):
    """What every run is told, whatever it trains. The same config and data give the same model; on the same CPU bit for
    bit.
    """

    data: str = "mnist"
    """Data set: mnist, or the path of a folder of IDX files, a folder of image folders, or an .npz file."""
    size: Annotated[tuple[Side, Side], BeforeValidator(_square)] | None = None
    """Height and width to bring every image to, or one number for both; needed where the data are of mixed size."""
    seed: int = 0
    """Decides the first weights, the order of the images and every draw of noise."""
    images: int | None = Field(100_000, ge=1)
    """Length of the run: how many images are seen, repeats counted."""
    epochs: int | None = Field(None, ge=1)
    """Length of the run in passes over the data, in place of images; each pass then ends with a smaller batch."""
    batch: int = Field(64, ge=1)
    """Images in an optimizer step."""
    ema: float | None = Field(17.0, ge=0, allow_inf_nan=False)
    """Power of the weights' moving average: step i of t counts as (i / t) ** ema; 0: plain mean; none: no average."""

    log_every: int = Field(2_000, ge=1)
    """Images between two lines of metrics.jsonl."""
    checkpoint_every: int = Field(4_000, ge=1)
    """Images between two checkpoints."""
    pictures_every: int | None = Field(None, ge=1)
    """Epochs between two grids of pictures; by default so many that a run has at most five. One always ends it."""
    evaluate_every: int | None = Field(None, ge=1)
    """Images between two scores of the model as it stands; none: it is not scored. Each takes about as long as drawing
    evaluate_images images."""
    evaluate_images: int = Field(2_000, ge=1)
    """How many images a score of the model is made of."""

    either: ClassVar = ("images", "epochs")
    """Fields of which one holds."""

    @model_validator(mode="before")
    @classmethod
    def _length_in_epochs(cls, given: Any) -> Any:
        """Epochs take the place of the default number of images."""
        if isinstance(given, dict) and given.get("epochs") is not None and "images" not in given:
            return {**given, "images": None}
        return given

    @model_validator(mode="after")
    def _one_length(self) -> "CommonConfig":
        if (self.images is None) == (self.epochs is None):
            raise ValueError("the length is told in images or in epochs: give one of them, and not both")
        return self

    def length(self, n: int) -> int:
        """How many images the run sees, repeats counted, of ``n`` that there are."""
        return self.images if self.epochs is None else self.epochs * n  # type: ignore[return-value]


class TrainConfig(CommonConfig):
    """One training run of a diffusion model."""

    kind: Literal["diffusion"] = "diffusion"
    black: float = Field(-1.0, ge=-1, le=0)
    """What a black pixel is in data units, where a white one is 1."""

    net: AnyNet = UNetConfig()
    """The network."""
    parameterization: ParameterizationName = "flow"
    """What the network predicts."""
    sigma_data: float = Field(0.5, gt=0, allow_inf_nan=False)
    """The data's standard deviation, in data units; flow does without it, and 1 gives DDPM's own scaling."""
    schedule: AnySchedule = LogNormal()
    """Spreads the noise levels that training draws."""
    even_levels: bool = True
    """Whether the noise levels of successive images are spread evenly, which steadies the loss, or independent."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the images that are learned without their label, which guidance needs."""

    muon_lr: float | None = Field(0.02, gt=0, allow_inf_nan=False)
    """Peak learning rate of Muon, for the hidden convolutions and matrices; none leaves them to Adam."""
    adam_lr: float = Field(3e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of Adam, for all else."""
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    """How much of Adam's mean of squared gradients stays at a step."""
    warmup: float = Field(0.02, ge=0, lt=1)
    """Share of the run in which the learning rate rises; it falls to zero, linearly, in the rest."""
    lr_by_epoch: bool = False
    """Whether the learning rate changes only from one epoch to the next, instead of with every step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the network's matrix work in bfloat16; weights and optimizer stay in fp32."""
    compile: bool = False
    """Whether the network goes through torch.compile, which takes a minute before the first step."""

    gifs_every: int | None = Field(None, ge=1)
    """Epochs between two sets of GIFs; by default so many that a run has at most two. One set always ends it."""
    gif_steps: int | None = Field(30, ge=1, le=100_000)
    """Steps from noise to digits in GIFs, where the schedule has so many, for the eye wants more than a sampler needs;
    none: as many as sampling takes."""
    gif_stride: int | None = Field(None, ge=1)
    """Training's GIFs show the state after each step whose number, counted from the last, this divides, after the first
    and after the last seven; none: every state."""
    guidance_strengths: tuple[Annotated[float, Field(ge=-1, allow_inf_nan=False)], ...] = (0.0, 0.5, 2.0)
    """The guidance strengths w = scale - 1 that pictures are drawn for."""

    sampling: SamplingConfig = SamplingConfig()
    """How the finished model is sampled by default."""

    @model_validator(mode="after")
    def _sound(self) -> "TrainConfig":
        if len({f"{w:g}" for w in self.guidance_strengths}) < len(self.guidance_strengths):
            raise ValueError("guidance_strengths that are equal to six digits would give pictures of one name")
        self.sampling.grid(self.schedule)
        return self

    def learning_rate(self, seen: int, n: int) -> float:
        """Share of the peak learning rates after ``seen`` images, of ``n`` that there are."""
        done = seen - seen % n if self.lr_by_epoch else seen
        return learning_rate(done / self.length(n), self.warmup)


class GanConfig(CommonConfig):
    """One training run of a GAN."""

    kind: Literal["gan"] = "gan"

    net: AnyGan = ConvGanConfig()
    """Generator and discriminator."""
    loss: LossName = "relativistic"
    """What the two play for."""
    classification: float = Field(0.3, ge=0, allow_inf_nan=False)
    """Weight of a second task, where the discriminator also reads classes: it learns to read real images' labels, and
    the generator to have its images read as theirs; 0: none."""
    gradient_penalty: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of half the squared gradient of the discriminator, at real and at generated images; 0: none."""
    penalty_every: int = Field(8, ge=1)
    """Steps between two of these penalties, each then so many times as heavy."""

    generator_lr: float = Field(2e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of the generator's Adam."""
    discriminator_lr: float = Field(2e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of the discriminator's Adam."""
    adam_beta1: float = Field(0.0, ge=0, lt=1)
    """How much of Adam's mean of gradients stays at a step."""
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    """How much of Adam's mean of squared gradients stays at a step."""
    lr_decay: bool = True
    """Whether the learning rates fall to zero, linearly, in the run."""

    @model_validator(mode="after")
    def _has_classes(self) -> "GanConfig":
        if self.classification and not self.net.conditional:
            raise ValueError(f"the {self.net.kind} discriminator reads no classes: classification must be 0")
        return self

    def learning_rate(self, seen: int, n: int) -> float:
        """Share of the peak learning rates after ``seen`` images, of ``n`` that there are."""
        return learning_rate(seen / self.length(n), 0.0) if self.lr_decay else 1.0


AnyConfig = TrainConfig | GanConfig
"""The config of a run, its ``kind`` told by its own class."""


# Times are of two CPU cores; docs/results.md has the machine, the spread and the commands.
PRESETS: dict[str, TrainConfig] = {
    # A minute; Fréchet distance 2.84, label accuracy 99.2%.
    "quick": TrainConfig(images=22_000, batch=32, muon_lr=0.015, sampling=SamplingConfig(steps=10, scale=2.4)),
    # Four minutes; 0.67, 99.1%.
    "laptop": TrainConfig(),
    # The original experiment, each figure its own: docs/ddpm.md. A day or more; not yet run whole.
    "ddpm": TrainConfig(
        epochs=20,
        batch=256,
        black=0.0,
        net=ContextUnetConfig(n_feat=128),
        parameterization="eps",
        sigma_data=1.0,
        schedule=DiscreteBeta(timesteps=400, beta_start=1e-4, beta_end=0.02, zeroth=True),
        even_levels=False,
        label_dropout=0.1,
        muon_lr=None,
        adam_lr=1e-4,
        adam_beta2=0.999,
        warmup=0.0,
        lr_by_epoch=True,
        ema=None,
        log_every=2_560,
        checkpoint_every=12_800,
        pictures_every=1,
        gifs_every=5,
        gif_steps=None,
        gif_stride=20,
        guidance_strengths=(0.0, 0.5, 2.0),
        sampling=SamplingConfig(sampler="ancestral_beta", steps=None, scale=1.5, schedule=None),
    ),
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

# Times are of two CPU cores; docs/gan.md has the commands.
GAN_PRESETS: dict[str, GanConfig] = {
    # The plain GAN of the original experiment's comparison. Four minutes; Fréchet distance 49 after 25 epochs.
    "gan": GanConfig(
        epochs=20,
        batch=256,
        ema=None,
        log_every=2_560,
        checkpoint_every=60_000,
        pictures_every=1,
        net=MlpGanConfig(),
        loss="nonsaturating",
        classification=0.0,
        gradient_penalty=0.0,
        generator_lr=1e-4,
        discriminator_lr=1e-4,
        adam_beta1=0.5,  # as Radford et al. 2016 found for GANs: with 0.9 this one was still noise after three epochs
        adam_beta2=0.999,
        lr_decay=False,
    ),
    # A GAN of today, of the laptop network's size. Four minutes; 0.55, label accuracy 98.9%.
    "gan-conditional": GanConfig(batch=32, pictures_every=1),
}
