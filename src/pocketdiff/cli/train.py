"""``pocketdiff train``: a run from its first image to its model file, or on from where it was left."""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from pocketdiff import checkpoint, pictures
from pocketdiff.checkpoint import MODEL_FILE, CheckpointError, RunConfig
from pocketdiff.cli.console import INTERRUPTED, Bar, Stop, locked, make_folder, pick_device, say, warn
from pocketdiff.cli.flags import Parser, UsageError, add_config, apply
from pocketdiff.cli.records import MetricsLog, summarize
from pocketdiff.config import PRESETS
from pocketdiff.data import Dataset, load_data
from pocketdiff.files import remove_leftovers, write_file
from pocketdiff.generate import DiffusionModel
from pocketdiff.train import Metrics, TrainState, train

DESCRIPTION = """Trains a model and leaves everything about the run in one folder: config.json, metrics.jsonl, pictures,
checkpoints, model.safetensors and summary.json. The same command again goes on with an unfinished run."""

EXAMPLES = """examples:
  pocketdiff train                                      MNIST, five minutes on two cores, into runs/laptop
  pocketdiff train --preset quick --seed 1 --out runs/a
  pocketdiff train --data photos --size 32              your own: one sub-folder of PNG or JPEG images a class
  pocketdiff train --schedule.kind cosine --parameterization eps --out runs/cosine
"""

ROWS = 4
"""Rows of generated images, and of real ones, in a run's pictures."""
SHOWN = 20
"""The most classes that a run's pictures show."""
ZOOM = 2
"""How much a run's grids are enlarged."""


def main(arguments: list[str]) -> int:
    """Parses the flags, trains, and returns the exit status."""
    flags, preset, device = _parse(arguments)
    config = apply(PRESETS[preset], flags)
    data = load_data(config.data, config.size, config.seed)
    name = preset if config.data == "mnist" else f"{preset}-{Path(config.data).stem}"
    out = Path("runs") / name if flags.out is None else Path(flags.out)
    make_folder(out)
    with locked(out):
        wanted = RunConfig(train=config, data=data.info)
        if not _claim(out, wanted, flags.resume):
            say(f"{out} is finished and nothing was changed; its model is {out / MODEL_FILE}")
            return 0
        remove_leftovers(out)
        return _Run(out, wanted, data, device, flags.resume).train()


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, str, torch.device]:
    """The flags, the preset and the device; the preset first, for the other flags' defaults are its own."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")
    first.add_argument("--device", nargs="?")
    early = first.parse_known_args(arguments)[0]
    device = pick_device(early.device or "auto")
    preset = early.preset or ("gpu" if device.type == "cuda" else "laptop")
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: there is no such preset; there are {', '.join(PRESETS)}")
    parser = Parser("pocketdiff train", "[flags]", DESCRIPTION, EXAMPLES)
    option = parser.add_argument_group("run").add_argument
    option("--preset", metavar=f"{{{','.join(PRESETS)}}}", help=f"where all settings begin (default: {preset})")
    option("--out", metavar="FOLDER", help="the run's folder (default: runs/PRESET, or runs/PRESET-DATA)")
    option(
        "--resume", metavar="{auto,never,CHECKPOINT}", default="auto",
        help="auto: go on with an unfinished run; never: refuse to touch one; or the checkpoint to go on from "
        "(default: auto)",
    )  # fmt: skip
    option("--device", metavar="NAME", default="auto", help="cpu, cuda, or auto: a GPU if there is one (default: auto)")
    add_config(parser, PRESETS[preset])
    return parser.parse(arguments), preset, device


def _claim(out: Path, wanted: RunConfig, resume: str) -> bool:
    """Makes a folder this run's; False if the run in it is finished.

    Raises:
        CheckpointError: If it holds another run, or something else, or may not be touched.
    """
    found = checkpoint.read_run_config(out)
    if found is None:
        if any(not child.match(".config.json.*.tmp") for child in out.iterdir()):
            raise CheckpointError(f"{out}: holds files that are no run; take another --out")
        write_file(out / "config.json", wanted.to_json())
        return True
    if resume == "never":
        raise CheckpointError(f"{out}: holds a run already, and --resume is never; take another --out")
    if differences := found.differences(wanted):
        raise CheckpointError(f"{out}: holds a run that differs in {', '.join(differences)}; take another --out")
    return not (out / "summary.json").exists()


class _Run:
    """A run's folder, its state, and its clocks, which go on where the last session's stopped."""

    def __init__(self, out: Path, run_config: RunConfig, data: Dataset, device: torch.device, resume: str) -> None:
        self.resume = resume
        self.out, self.run_config, self.config, self.data = out, run_config, run_config.train, data
        self.state = TrainState.new(self.config, data.info, device)
        self.model = DiffusionModel(self.state.ema, self.config, data.info)
        self.weights = sum(weight.numel() for weight in self.state.denoiser.parameters())
        self.training_seconds = self.other_seconds = 0.0
        self.log = MetricsLog(out / "metrics.jsonl", self.config.log_every)
        epochs = self.config.images / len(data.train)
        self.pictures_every = self.config.pictures_every or math.ceil(epochs / 4)
        self.gifs_every = self.config.gifs_every or math.ceil(epochs)
        self._restore()

    def _restore(self) -> None:
        """Goes to where the newest whole checkpoint stands, or the one asked for; to the start if there is none."""
        path, faults = Path(self.resume), list[str]()
        if self.resume in {"auto", "never"}:
            found = checkpoint.newest_checkpoint(self.out)
            if found is None:
                self.log.resume(0, 0, 0.0)
                return
            path, faults = found
        for fault in faults:
            warn(fault)
        manifest = checkpoint.restore_checkpoint(path, self.state, self.run_config)
        self.training_seconds, self.other_seconds = manifest.training_seconds, manifest.other_seconds
        self.log.resume(manifest.step, manifest.seen, manifest.training_seconds)
        say(f"going on from {path}: {manifest.seen:,} of {self.config.images:,} images")

    def train(self) -> int:
        """Trains to the end, or until a signal, and returns the exit status."""
        images, every, before = self.data.train, self.config.checkpoint_every, self.state.seen
        say(f"training on {self.config.images:,} images, {self.weights:,} weights, into {self.out}")
        with Stop() as stop:
            with Bar("training", self.config.images, before) as bar:
                for metrics in self._timed(train(self.state, images.to(self.model.device), self.config)):
                    stopping, last = stop.asked, metrics.seen == self.config.images
                    self.log.add(metrics, self.training_seconds, last)
                    bar.update(metrics.seen, self.log.note)
                    epochs = before // len(images), metrics.seen // len(images)
                    grids, gifs = _due(epochs, self.pictures_every), _due(epochs, self.gifs_every)
                    if (grids or gifs) and not last:
                        self._draw(epochs[1] - 1, grids, gifs)
                    if last or stopping or before // every < metrics.seen // every:
                        saved = checkpoint.save_checkpoint(
                            self.out, self.state, self.run_config, self.training_seconds, self.other_seconds
                        )
                    if stopping:
                        break
                    before = metrics.seen
            if self.state.seen < self.config.images:
                again = "the same command again" if self.resume == "auto" else "the same command with --resume auto"
                say(f"stopped, and saved as {saved}; {again} goes on from there")
                return INTERRUPTED
            self._finish()
        return 0

    def _timed(self, steps: Iterator[Metrics]) -> Iterator[Metrics]:
        """Counts the time inside the steps as training, and outside them as other."""
        left = time.perf_counter()
        for metrics in steps:
            entered = time.perf_counter()
            self.training_seconds += entered - left
            yield metrics
            left = time.perf_counter()
            self.other_seconds += left - entered

    def _draw(self, epoch: int, grids: bool, gifs: bool) -> list[Path]:
        """Draws generated images over real ones, and the denoising, for each guidance strength; the paths written."""
        folder = self.out / "pictures"
        folder.mkdir(exist_ok=True)
        columns = min(len(self.model.classes), SHOWN)
        labels = list(range(columns)) * ROWS
        seeds, ink = range(len(labels)), self.data.info.ink
        real = pictures.tile(self.data.train.first_of_each(labels), columns, ink, ZOOM)
        written = []
        for w in self.config.guidance_strengths:
            sampling = self.config.sampling.model_copy(update={"scale": 1 + w})
            if grids:
                images = self.model.generate(labels, seeds, sampling)
                if fault := pictures.health(images):
                    warn(fault)
                written.append(folder / f"image_ep{epoch}_w{w:g}.png")
                grid = pictures.tile(images, columns, ink, ZOOM)
                write_file(written[-1], pictures.png(pictures.over(grid, real)))
            if gifs:
                steps = int(min(self.config.gif_steps, sampling.schedule.levels))
                slower = sampling.model_copy(update={"steps": steps})
                frames = pictures.denoising(self.model, labels, seeds, slower)
                written.append(folder / f"gif_ep{epoch}_w{w:g}.gif")
                write_file(written[-1], pictures.gif([pictures.tile(frame, columns, ink) for frame in frames]))
        return written

    def _finish(self) -> None:
        """The last pictures, the model file, and the summary, which marks the run as finished."""
        began = time.perf_counter()
        epoch = (self.state.seen - 1) // len(self.data.train)
        written = self._draw(epoch, grids=True, gifs=True)
        model = self.out / MODEL_FILE
        checkpoint.save_model(model, self.state.ema, self.run_config)
        self.other_seconds += time.perf_counter() - began
        summary = self.out / "summary.json"
        about = summarize(self.state, self.training_seconds, self.other_seconds)
        write_file(summary, json.dumps(about, indent=2) + "\n")
        speed = self.state.seen / max(self.training_seconds, 1e-9)
        say(f"trained on {self.state.seen:,} images in {self.training_seconds:.0f} s, {speed:.0f} a second; wrote")
        for path in (*written, self.log.path, summary, model):
            say(f"  {path}")
        if len(list(model.parent.glob("pictures/*"))) > len(written):
            say(f"  {self.out / 'pictures'} (those of earlier epochs)")
        say(f"now draw: pocketdiff sample {self.out}")


def _due(epochs: tuple[int, int], every: int) -> bool:
    """Whether one of the epochs 0, every, 2 * every, ... ended between two counts of finished epochs."""
    before, after = epochs
    return -(-before // every) < -(-after // every)
