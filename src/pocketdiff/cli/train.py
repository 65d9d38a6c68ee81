"""``pocketdiff train``: a training run, from its first image to its model file, or an unfinished one continued."""

import contextlib
from pathlib import Path
from typing import Annotated

import torch

from pocketdiff.cli.console import INTERRUPTED, Bar, Stop, amount, cache_folder, pick_device, say, warn
from pocketdiff.cli.flags import Metavar, UsageError, apply, parse, peek
from pocketdiff.config import MethodConfig
from pocketdiff.data import Dataset, load_data
from pocketdiff.frozen import Frozen
from pocketdiff.methods import PRESETS
from pocketdiff.methods.loop import StepReport
from pocketdiff.records import Summary
from pocketdiff.run import Run

LONG = 3600.0
"""A run that takes more seconds than this is announced."""
_MEASURED = 20
"""Steps after which the speed is known."""
_SMOOTHING = 0.95
"""Decay of the shown moving averages."""


class RunOptions(Frozen):
    """Run: its folder and device."""

    out: Annotated[Path | None, Metavar("FOLDER")] = None
    """The run's folder (default: in runs, named after the preset and the data)."""
    resume: Annotated[str, Metavar("{auto,never,CHECKPOINT}")] = "auto"
    """auto: continue an unfinished run; never: refuse a folder with a run; or the checkpoint to continue from."""
    device: Annotated[str, Metavar("NAME")] = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""


class TrainOptions(RunOptions):
    r"""Trains a model. Everything about the run goes into one folder: config.json, metrics.jsonl, pictures,
    checkpoints, model.safetensors and summary.json. The same command again continues an unfinished run; with a greater
    length it continues a finished one.

    Examples:
      pocketdiff train                                      MNIST, about five minutes on two cores, into runs/laptop
      pocketdiff train --preset quick --seed 1 --out runs/a
      pocketdiff train --preset quick --images 44000        continues the finished run in runs/quick
      pocketdiff train --data photos                        your own: one sub-folder of PNG or JPEG images per class
      pocketdiff train --data photos --init-from runs/old   starts from the weights of another run
      pocketdiff train --schedule.kind cosine --parameterization eps --out runs/cosine
      pocketdiff train --preset gan-conditional             a GAN of the same size, to compare with
      pocketdiff train --preset ddpm                        the original experiment, a day or more; small, two minutes:
      pocketdiff train --preset ddpm --out runs/small --n-feat 16 --epochs 1 --timesteps 100 --beta-end 0.08 \
          --batch 128 --adam-lr 2e-3
    """

    preset: Annotated[str, Metavar(PRESETS)] = "laptop"
    """Where all settings begin."""


def main(arguments: list[str]) -> int:
    """Trains and returns the exit status."""
    preset = peek(arguments, "--preset") or "laptop"
    if preset not in PRESETS:
        raise UsageError(f"there is no such preset; there are {', '.join(PRESETS)}", f"--preset {preset}")
    options, given = parse("train", arguments, TrainOptions, PRESETS[preset], "config: the defaults are the preset's")
    device = pick_device(options.device)
    config = apply(PRESETS[preset], given)
    data = load_data(config.data, config.size, config.seed)
    if not {"images", "epochs"} & given.keys():
        config = config.shortened(len(data.train))
    if config.data != "mnist" and "sampling.scale" not in given:
        config = config.with_neutral_scale()  # A preset's scale is for MNIST.
    name = preset if config.data == "mnist" else f"{preset}-{Path(config.data).stem}"
    out = options.out or Path("runs") / name
    if device.type == "cuda" and options.preset == "laptop":
        say("there is a GPU here: --preset gpu trains a larger model on it")
    return train(config, data, out, device, options.resume)


def train(config: MethodConfig, data: Dataset, out: Path, device: torch.device, resume: str) -> int:
    """Trains in the folder ``out``, or continues there, with a bar; returns the exit status."""
    with Bar() as bar, Stop() as stop:
        screen = _Screen(bar, stop)
        run = Run(config, data, out, device=device, resume=resume, cache=cache_folder(), progress=screen)
        if run.finished:
            unchanged = "" if run.resumed_from else ", and nothing was changed"
            say(f"{out} is finished{unchanged}; its model is {run.folder.model}")
            return 0
        if run.resumed_from is not None:
            say(f"continuing from {run.resumed_from}: {run.state.seen:,} of {run.length:,} images")
        weights = sum(weight.numel() for weight in run.state.net.parameters())
        n = len(data.train)
        passes = f"{run.length / n:,.1f}".removesuffix(".0")
        passes += " pass" if passes == "1" else " passes"
        say(f"training on {run.length:,} images ({passes} over {n:,}), {weights:,} weights, into {out}")
        try:
            with contextlib.closing(iter(run)) as reports:  # Closing saves; an error of the save is not swallowed.
                for report in reports:
                    screen.step(report, run)
                    if stop.requested:
                        break
        except KeyboardInterrupt:
            pass  # While it drew or scored; the run has saved itself, as it does after a break.
    if run.summary is None:
        again = "the same command" if resume == "auto" else "the same command with --resume auto"
        say(f"stopped, and saved as {run.saved}; {again} continues from there" if run.saved else "stopped")
        return INTERRUPTED
    _report(run, run.summary)
    return 0


class _Screen:
    """What the bar shows of a run: all its work, losses and speed, and what is drawn, scored or saved meanwhile.

    It is the run's Progress callback, and leaves drawing and scoring when a signal came.
    """

    def __init__(self, bar: Bar, stop: Stop) -> None:
        self.bar, self.stop = bar, stop
        self.run: Run | None = None
        """The run after its first step of this session. What comes before has bars of its own."""
        self.losses: dict[str, float] = {}
        self.steps, self.seen, self.images, self.seconds, self.spent = 0, 0, 0.0, 0.0, 0.0
        self.announced = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Progress of other work than training."""
        self.stop.check()
        if self.run is None:
            self.bar(what, done, total)
        else:
            self._show(self.run, ", ".join(filter(None, [what, amount(done, total)])))

    def step(self, report: StepReport, run: Run) -> None:
        """Progress of training: moving averages of the losses and of the speed. Announces a long run, once."""
        for name, loss in report.losses.items():
            value = float(loss)
            self.losses[name] = _SMOOTHING * self.losses.get(name, value) + (1 - _SMOOTHING) * value
        words = [f"{name.replace('_', ' ')} {loss:.4f}" for name, loss in self.losses.items()]
        spent = run.training_seconds
        if self.run is not None:  # The first step takes longer: it warms up, and may compile.
            self.images = _SMOOTHING * self.images + report.seen - self.seen
            self.seconds = _SMOOTHING * self.seconds + spent - self.spent
            words.append(f"{self.images / self.seconds:.0f} img/s")
        self.run, self.seen, self.spent, self.steps = run, report.seen, spent, self.steps + 1
        self._show(run, *words)
        if self.steps >= _MEASURED and not self.announced and self.bar.left is not None:
            self.announced = True
            if self.bar.left > LONG:
                hours, again = (
                    self.bar.left / 3600,
                    "Ctrl-C stops it at any time, and the same command continues from there",
                )
                warn(f"the run takes about {hours:.1f} hours more on this machine; {again}")

    def _show(self, run: Run, *words: str) -> None:
        self.bar.show("training", *run.work(), f"{run.state.seen:,} of {run.length:,} images", *words)


def _report(run: Run, summary: Summary) -> None:
    """Names everything that the run wrote."""
    speed = f"{summary.training_seconds:.0f} s, {summary.images_per_second:.0f} a second"
    say(f"trained on {summary.images_seen:,} images in {speed}; wrote")
    for path in run.written:
        say(f"  {path}")
    if len(list(run.folder.pictures.iterdir())) > sum(path.parent == run.folder.pictures for path in run.written):
        say(f"  {run.folder.pictures} (those of earlier epochs)")
    say(f"now draw: pocketdiff sample {run.folder}")
