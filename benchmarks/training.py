"""What the benchmarks share: contenders that train in turn, scores, finished runs, and what they write."""

import argparse
import copy
import json
import math
import os
import shlex
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

# OpenMP reads this when torch is loaded; the command line sets it too. Its threads then do not wait busily for long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import pocketdiff as pd
from pocketdiff import plots, rng
from pocketdiff.cli.console import cache_folder
from pocketdiff.config import MethodConfig
from pocketdiff.data import to_data_units
from pocketdiff.errors import EvaluationError, SamplingError
from pocketdiff.evaluation import find_or_train_classifiers
from pocketdiff.evaluation.records import values_of
from pocketdiff.evaluation.reference import Reference
from pocketdiff.evaluation.report import measured
from pocketdiff.evaluation.score import real_baseline
from pocketdiff.files import write_file
from pocketdiff.methods.loop import Batch, batches, train
from pocketdiff.model import DiffusionModel, ImageModel
from pocketdiff.optim import rise
from pocketdiff.records import Summary, commit, hardware, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAIN = {"frechet_train": "Fréchet distance", "accuracy": "label accuracy", "recall": "recall"}
"""The metrics in tables and plots, with their names there."""
_NETS: dict[str, dict[str, Any]] = {
    "unet": {"widths": (8, 16), "blocks": 1, "embedding": 16},
    "context_unet": {"n_feat": 8},
    "conv": {"latent": 8, "widths": (8, 16), "embedding": 16},
    "mlp": {"latent": 8, "generator": (32,), "discriminator": (32,)},
}
"""The networks of ``--tiny``."""


def changed(preset: str, **changes: Any) -> MethodConfig:
    """A preset with other values, which are validated."""
    config = pd.PRESETS[preset]
    return config.model_validate({**config.model_dump(), **changes})


def tiny(config: MethodConfig) -> MethodConfig:
    """The config with a small network, small batches and a length of 640 images."""
    small: Any = config
    return config.replace(net=small.net.replace(**_NETS[small.net.kind]), batch=16, images=640)


def mnist(small: bool) -> pd.Dataset:
    """MNIST, or with ``small`` its first images."""
    data = pd.load_data("mnist")
    return first_images(data) if small else data


def first_images(data: pd.Dataset) -> pd.Dataset:
    """The first 1,000 training and 400 test images of a data set."""
    (images, labels), (test_images, test_labels) = (
        (split.pixels[:n], split.labels[:n]) for split, n in ((data.train, 1000), (data.test, 400))
    )
    return pd.Dataset.from_arrays(images, labels, test_images, test_labels, classes=data.info.classes)


class Contender(ABC):
    """Something that trains in slices, in turn with others."""

    parameters: int  # Weights that are trained.
    batch: int
    seconds = 0.0  # Time in training steps.
    seen = 0  # Training images, repeats counted.
    finished = False  # Whether it is at the end of its run.

    def train(self, until: float) -> None:
        """Trains until `seconds` reaches a value, or to the end of the run."""
        began = time.perf_counter() - self.seconds
        while self.seconds < until and not self.finished:
            self._step()
            self.seconds = time.perf_counter() - began

    @abstractmethod
    def model(self) -> ImageModel:
        """The model with the averaged weights, as it is now."""

    @abstractmethod
    def _step(self) -> None:
        """Trains on one batch, and counts its images."""

    @abstractmethod
    def flops(self) -> float:
        """Floating-point operations for one image, forward and backward, counted by torch: those of convolutions and
        matrix products, without the optimizer's.
        """


class Preset(Contender):
    """A preset of the package, trained by its own loop."""

    def __init__(self, config: MethodConfig, data: pd.Dataset) -> None:
        self.config, self.data, self.batch = config, data, config.batch
        self.method = pd.METHODS.find(config.kind)
        self.state = self.method.new_state(config, data.info, "cpu", pd.load)
        self.parameters = _size(self.state.net)
        self._steps = train(self.method, self.state, data.train, config)

    def model(self) -> ImageModel:
        """As in `Contender`."""
        return self.method.model(self.state.ema, self.config, self.data.info)

    def _step(self) -> None:
        self.seen = next(self._steps).seen
        self.finished = self.seen >= self.config.length(len(self.data.train))

    def flops(self) -> float:
        """As in `Contender`: the mean over the steps between two penalties of a GAN."""
        batch, steps = next(batches(self.config, self.data.train, self.state)), getattr(self.config, "penalty_every", 1)
        some = Batch(batch.indices[:2], batch.pixels[:2], batch.label[:2], batch.progress)
        with _FlopCounter() as counter:
            for step in range(steps):
                self.method.backward(replace(self.state, step=step), some, self.config)
        return counter.flops / len(some.indices) / steps


class DiffusersLoop(Contender):
    """diffusers' ``UNet2DModel`` with class labels, in the loop of diffusers' unconditional training example.

    The network has as many weights as the laptop network had at commit 0935374, within 2%: 635,681. From the example
    (``examples/unconditional_image_generation/train_unconditional.py``) are: 1,000 levels of linear beta, the squared
    error of the predicted noise, AdamW with its betas and weight decay, gradients clipped to norm 1, cosine decay of
    the learning rate, and ``EMAModel`` with warm-up. In its favour, three things differ: the batches are cut from one
    tensor, without a data loader; the warm-up of the learning rate takes 5% of the time, because 500 steps would be
    minutes here; and a tenth of the labels is dropped, so that guidance can be used.

    Args:
        data: The training images.
        budget: Seconds of training in which the learning rate falls to zero.
        lr: Peak learning rate; 1e-4 is the example's.
        small: Whether the network is smaller, for ``--tiny``.
    """

    batch = 64

    def __init__(self, data: pd.Dataset, budget: float, lr: float = 1e-4, small: bool = False) -> None:
        try:
            from diffusers import DDPMScheduler, UNet2DModel  # noqa: PLC0415 (an extra)
            from diffusers.training_utils import EMAModel  # noqa: PLC0415
        except ImportError as error:
            raise SystemExit(f"diffusers cannot be imported ({error}); pip install 'pocketdiff[bench]'") from error
        self.data, self.budget, self.lr, self.null = data, budget, lr, len(data.info.classes)
        with rng.initial_weights(0):
            self.net = UNet2DModel(
                sample_size=data.info.height, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=8,
                block_out_channels=(8, 16) if small else (32, 64), down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2, add_attention=False, num_class_embeds=self.null + 1,
            )  # fmt: skip
        self.weights = list(self.net.parameters())
        self.parameters = _size(self.net)
        self.chain = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(self.weights, lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        self.ema = EMAModel(self.weights, decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
        self._random = torch.Generator().manual_seed(0)
        self._order = self._shuffled()

    def model(self) -> DiffusionModel:
        """As in `Contender`, with the package's own denoiser and samplers around the network."""
        schedule, averaged = pd.DiscreteBeta(timesteps=1000, beta_start=1e-4, beta_end=0.02), copy.deepcopy(self.net)
        self.ema.copy_to(averaged.parameters())
        # A model draws with its denoiser; the network that its config names is not used.
        config = pd.DiffusionConfig(parameterization="eps", sigma_data=1.0, schedule=schedule)
        denoiser = pd.Denoiser(_Diffusers(averaged), "eps", 1.0, self.null, schedule.noise_input).eval()
        return DiffusionModel(denoiser, config, self.data.info)

    def _step(self) -> None:
        progress = min(1.0, self.seconds / self.budget)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rise(progress, 0.05) * (1 + math.cos(math.pi * progress)) / 2
        indices = next(self._order)
        self.net.train()
        self._loss(indices).backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.weights)
        self.seen += len(indices)

    def flops(self) -> float:
        """As in `Contender`."""
        with _FlopCounter() as counter:
            self._loss(torch.arange(2)).backward()
        self.optimizer.zero_grad()
        return counter.flops / 2

    def _loss(self, indices: Tensor) -> Tensor:
        x0, n = to_data_units(self.data.train.pixels[indices]), len(indices)
        noise = torch.randn(x0.shape, generator=self._random)
        t = torch.randint(0, 1000, (n,), generator=self._random)
        dropped = torch.rand(n, generator=self._random) < 0.1
        label = self.data.train.labels[indices].masked_fill(dropped, self.null)
        return F.mse_loss(self.net(self.chain.add_noise(x0, noise, t), t, class_labels=label).sample, noise)

    def _shuffled(self) -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(len(self.data.train), generator=self._random).split(self.batch)


class _Diffusers(nn.Module):
    """A ``UNet2DModel`` as a denoiser's network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        """The predicted noise; the time t / T of the schedule is 1 / T at diffusers' timestep 0."""
        return self.net(x, noise * 1000 - 1, class_labels=label).sample


class _FlopCounter(TorchDispatchMode):
    """Counts operations by torch's formulas. Unlike torch's own counter it allows `torch.autograd.grad`."""

    flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _size(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def reference(data: pd.Dataset, small: bool) -> Reference:
    """What images are scored against; its features are kept in the user's cache. ``small``: against a few images."""
    classifiers = find_or_train_classifiers(data, cache_folder())
    if small:
        return Reference.of(first_images(data), classifiers, memorization=False)
    return Reference.of(data, classifiers, memorization=False, cache=cache_folder())


def score(model: ImageModel, against: Reference, n: int) -> dict[str, Any]:
    """How a model draws, the time for n images, and their score; a ``fault`` in its place if there is none."""
    facts: dict[str, Any] = {"how": model.how(), "nfe": model.nfe()}
    try:
        record = measured(model, against, n, 0, "model").record.model_dump(mode="json")
    except (EvaluationError, SamplingError) as error:  # A model early in its training may draw blank images.
        return {**facts, "metrics": {}, "fault": str(error)}
    metrics = {key: value for key, value in record["metrics"].items() if value is not None}
    drawing = record["provenance"]["drawing"]["seconds"]
    return {**facts, "drawing_seconds": drawing, "metrics": metrics, "intervals": record["intervals"]}


def score_of_real(against: Reference, n: int) -> dict[str, float]:
    """What n real test images score."""
    real = real_baseline(against, n)
    values = {} if real is None else values_of(real.metrics)
    return {key: value for key, value in values.items() if value is not None}


def panels(
    curves: Mapping[str, Iterable[tuple[float, Mapping[str, float]]]], across: str, real: Mapping[str, float]
) -> "Figure":
    """The main metrics side by side, from points (x, metrics) by name; x is logarithmic, and shares are linear."""
    found = []
    for key, title in MAIN.items():
        lines = {name: [(x, metrics[key]) for x, metrics in some if key in metrics] for name, some in curves.items()}
        found.append((title, {name: points for name, points in lines.items() if points}))
    marks = {title: real[key] for key, title in MAIN.items() if key in real}
    figure = plots.lines([panel for panel in found if panel[1]], across, marks)
    logarithmic(figure)
    for axis in figure.axes:
        if axis.get_title() in {MAIN[key] for key in MAIN if pd.METRICS[key].share}:
            axis.set_yscale("linear")
            axis.set_ylim(0, 1)
    return legible(figure)


def legible(figure: "Figure") -> "Figure":
    """Moves the legend beside the panels, where it hides no curve, and lets linear axes begin at 0."""
    if legend := figure.axes[0].get_legend():
        legend.remove()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize="small", frameon=False)
    for axis in figure.axes:
        if axis.get_yscale() == "linear":
            axis.set_ylim(0, axis.get_ylim()[1] * 1.03)
    return figure


def logarithmic(figure: "Figure") -> None:
    """Makes the x axes logarithmic, with short numbers, such as 20k."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter  # noqa: PLC0415 (takes a second)

    for axis in figure.axes:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="small networks and short measurements, as a test")
    return parser


def write(
    name: str, folder: Path, results: Mapping[str, Any], figures: "Mapping[str, Figure] | None" = None
) -> None:  # fmt: skip
    """Writes ``NAME.json``, with the command, the machine and the versions, and the plots by name, as SVG."""
    installed = {"diffusers": version("diffusers")} if "diffusers" in sys.modules else {}
    about = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "hardware": hardware().model_dump(mode="json"),
        "versions": {**versions().model_dump(mode="json"), **installed},
        "commit": commit(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / f"{name}.json", json.dumps({**about, **results}, indent=2) + "\n")
    for plot, figure in (figures or {}).items():
        write_file(folder / f"{plot}.svg", plots.svg(figure))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of some measurements, and all of them in order."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": list(values)}


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * (head.count(" | ") + 1), *body])


def cells(metrics: Mapping[str, float]) -> list[str]:
    """The main metrics for a table; empty where there is no value."""
    return [pd.METRICS[key].text(metrics.get(key)) for key in MAIN]


def finished(config: MethodConfig, folder: Path) -> Summary:
    """Trains a run on MNIST to its end, if it is not finished; each in a process of its own, for its peak memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_train, config, folder).result()


def _train(config: MethodConfig, folder: Path) -> Summary:
    run, tenth = pd.Run(config, pd.load_data("mnist"), folder), 0
    for report in run:
        if (now := 10 * report.seen // run.length) > tenth:
            tenth = now
            losses = ", ".join(f"{name} {float(loss):.4f}" for name, loss in report.losses.items())
            print(f"{folder}: {report.seen:,} of {run.length:,} images, {losses}", flush=True)
    assert run.summary is not None  # noqa: S101 (the loop ended)
    return run.summary
