"""``pocketdiff train``: a run from its first image to its model file, or on from where it was left."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from pocketdiff import checkpoint
from pocketdiff.checkpoint import MODEL_FILE, CheckpointError, RunConfig
from pocketdiff.cli.console import INTERRUPTED, Bar, Stop, locked, make_folder, pick_device, say, warn
from pocketdiff.cli.flags import Parser, UsageError, add_config, apply
from pocketdiff.cli.forecast import seconds_to_ask, seconds_to_train
from pocketdiff.cli.gallery import Due, Gallery
from pocketdiff.cli.records import MetricsLog, summarize
from pocketdiff.cli.scoring import Scoring, check_scoring
from pocketdiff.config import GAN_PRESETS, PRESETS, AnyConfig
from pocketdiff.data import Dataset, load_data
from pocketdiff.files import remove_leftovers, write_file
from pocketdiff.loop import Metrics
from pocketdiff.methods import METHODS

DESCRIPTION = """Trains a model and leaves everything about the run in one folder: config.json, metrics.jsonl, pictures,
checkpoints, model.safetensors and summary.json. The same command again goes on with an unfinished run."""

EXAMPLES = """examples:
  pocketdiff train                                      MNIST, five minutes on two cores, into runs/laptop
  pocketdiff train --preset quick --seed 1 --out runs/a
  pocketdiff train --data photos --size 32              your own: one sub-folder of PNG or JPEG images a class
  pocketdiff train --schedule.kind cosine --parameterization eps --out runs/cosine
  pocketdiff train --preset gan-conditional             a GAN of the same size, to compare with
  pocketdiff train --preset ddpm                        the original experiment, a day or more; small, two minutes:
  pocketdiff train --preset ddpm --out runs/small --n-feat 16 --epochs 1 --timesteps 100 --beta-end 0.08 \\
      --batch 128 --adam-lr 2e-3
"""

Note = Callable[[str], None]
"""Takes a few words on what is being done."""
ALL_PRESETS: dict[str, AnyConfig] = {**PRESETS, **GAN_PRESETS}
LONG = 3600.0
"""Seconds from which on a run is announced as long."""


def main(arguments: list[str]) -> int:
    """Parses the flags, trains, and returns the exit status."""
    flags, preset, device = _parse(arguments)
    config = apply(ALL_PRESETS[preset], flags)
    data = load_data(config.data, config.size, config.seed)
    check_scoring(config, data)
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
    if preset not in ALL_PRESETS:
        raise UsageError(f"--preset {preset}: there is no such preset; there are {', '.join(ALL_PRESETS)}")
    parser = Parser("pocketdiff train", "[flags]", DESCRIPTION, EXAMPLES)
    option = parser.add_argument_group("run").add_argument
    option("--preset", metavar=f"{{{','.join(ALL_PRESETS)}}}", help=f"where all settings begin (default: {preset})")
    option("--out", metavar="FOLDER", help="the run's folder (default: runs/PRESET, or runs/PRESET-DATA)")
    option(
        "--resume", metavar="{auto,never,CHECKPOINT}", default="auto",
        help="auto: go on with an unfinished run; never: refuse to touch one; or the checkpoint to go on from "
        "(default: auto)",
    )  # fmt: skip
    option("--device", metavar="NAME", default="auto", help="cpu, cuda, or auto: a GPU if there is one (default: auto)")
    add_config(parser, ALL_PRESETS[preset])
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
        self.length = self.config.length(len(data.train))
        self.method = METHODS[self.config.kind]
        self.state = self.method.new_state(self.config, data.info, device)
        self.model = self.method.model(self.state.ema, self.config, data.info)
        self.gallery = Gallery(out / "pictures", self.model, data.train)
        self.weights = sum(weight.numel() for weight in self.state.net.parameters())
        self.training_seconds = self.trained_before = self.other_before = 0.0
        self.began = time.perf_counter()
        self.log = MetricsLog(out / "metrics.jsonl", self.config.log_every)
        self.saved: Path | None = None
        self.drawn: list[Path] = []
        self._restore()
        self.scoring = Scoring(data, self.model, self.log)

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
        self.saved = path
        self.training_seconds = self.trained_before = manifest.training_seconds
        self.other_before = manifest.other_seconds
        self.log.resume(manifest.step, manifest.seen, manifest.training_seconds)
        say(f"going on from {path}: {manifest.seen:,} of {self.length:,} images")

    def train(self) -> int:
        """Trains to the end, or until a signal, and returns the exit status."""
        say(f"training on {self.length:,} images, {self.weights:,} weights, into {self.out}")
        if self.model.device.type == "cpu":
            self._forewarn()
        with Stop() as stop:
            if not self._train(stop):
                again = "the same command again" if self.resume == "auto" else "the same command with --resume auto"
                say(f"stopped, and saved as {self.saved}; {again} goes on from there")
                return INTERRUPTED
            self._finish()
        return 0

    def _forewarn(self) -> None:
        """Says how long a run will take, where that is long: measured on a few images, before anything is changed."""
        left = self.length - self.state.seen
        asked = self.gallery.work(self.state.seen) + self.scoring.work(self.state.seen)
        training = left * seconds_to_train(self.state, self.data.train, self.config)
        drawing = asked * seconds_to_ask(self.model, len(self.gallery.labels))
        if training + drawing >= LONG:
            total, *parts = (f"{seconds / 3600:.1f}" for seconds in (training + drawing, training, drawing))
            warn(
                f"on this CPU that takes about {total} hours: {parts[0]} of training and {parts[1]} of pictures and "
                "scores; Ctrl-C stops it at any time, and the same command goes on from there"
            )

    def _train(self, stop: Stop) -> bool:
        """Trains and draws to the end; False if a signal came first."""
        images, every = self.data.train, self.config.checkpoint_every
        last = min(self.config.batch, len(images)) if self.config.epochs else self.config.batch
        seen = self.state.seen
        # A run that was stopped while it drew or scored has saved itself, but owes what was due.
        owed = self._due(max(0, seen - last), seen) if seen else []
        with Bar("training", self.length, seen) as bar:
            if not self._look(owed, bar, stop):
                return False
            for metrics in self._timed(self.method.train(self.state, images.to(self.model.device), self.config)):
                self.log.add(metrics, self.training_seconds, metrics.seen == self.length)
                bar.update(metrics.seen, self.log.note)
                due = self._due(seen, metrics.seen)
                if due or stop.asked or seen // every < metrics.seen // every:
                    self.saved = checkpoint.save_checkpoint(
                        self.out, self.state, self.run_config, self.training_seconds, self.other_seconds
                    )
                if stop.asked or not self._look(due, bar, stop):
                    return False
                seen = metrics.seen
        return True

    def _due(self, before: int, after: int) -> list[Callable[[Note], None]]:
        """The looks at the model that are due when ``after`` images are seen, after ``before`` at the step before."""
        looks: list[Callable[[Note], None]] = []
        if due := self.gallery.due(before, after):
            looks.append(partial(self._draw, due))
        if self.scoring.due(before, after):
            looks.append(partial(self.scoring.score, self.state.step, self.state.seen))
        return looks

    def _draw(self, due: Due, note: Note) -> None:
        self.drawn = self.gallery.draw(due, note)

    def _look(self, looks: list[Callable[[Note], None]], bar: Bar, stop: Stop) -> bool:
        """Takes the looks; False if a signal came first, which need not wait, for the state is saved."""
        if not looks:
            return True
        try:
            with stop.at_once():
                for look in looks:
                    look(lambda note: bar.update(self.state.seen, note))
        except KeyboardInterrupt:
            return False
        return True

    def _timed(self, steps: Iterator[Metrics]) -> Iterator[Metrics]:
        """Counts the time inside the steps as training."""
        entered = time.perf_counter()
        for metrics in steps:
            self.training_seconds += time.perf_counter() - entered
            yield metrics
            entered = time.perf_counter()

    @property
    def other_seconds(self) -> float:
        """Time spent on all else: pictures, checkpoints, getting ready; of earlier sessions, up to their last save."""
        session = time.perf_counter() - self.began
        return self.other_before + session - (self.training_seconds - self.trained_before)

    def _finish(self) -> None:
        """The model file, and the summary, which marks the run as finished."""
        model = self.out / MODEL_FILE
        checkpoint.save_model(model, self.model)
        drawn = [*self.drawn, *self.scoring.plot(self.gallery.folder)]
        summary = self.out / "summary.json"
        about = summarize(self.state, self.training_seconds, self.other_seconds)
        write_file(summary, json.dumps(about, indent=2) + "\n")
        speed = self.state.seen / max(self.training_seconds, 1e-9)
        say(f"trained on {self.state.seen:,} images in {self.training_seconds:.0f} s, {speed:.0f} a second; wrote")
        for path in (*drawn, self.log.path, summary, model):
            say(f"  {path}")
        if len(list(self.gallery.folder.iterdir())) > len(drawn):
            say(f"  {self.gallery.folder} (those of earlier epochs)")
        say(f"now draw: pocketdiff sample {self.out}")
