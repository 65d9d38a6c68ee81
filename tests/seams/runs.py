"""Small runs, and how the tests compare them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketdiff.checkpoint import read_checkpoint
from pocketdiff.config import MethodConfig, SamplingConfig
from pocketdiff.data import Dataset
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.methods.gan import GanConfig
from pocketdiff.nets.gan import MlpGanConfig
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.run import Run

CONFIG = DiffusionConfig(
    images=92,
    batch=8,
    net=UNetConfig(widths=(8,), blocks=1, embedding=8),
    sampling=SamplingConfig(steps=2),
    guidance_strengths=(0.0, 0.5),
    gif_steps=3,
    log_every=16,
    checkpoint_every=16,
)
"""12 steps over a little more than two epochs; a checkpoint after every second one."""
GAN = GanConfig(
    images=92, batch=8, net=MlpGanConfig(latent=8, generator=(16,), discriminator=(16,)), classification=0.0,
    log_every=16, checkpoint_every=16, pictures_every=1,
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run that have no times in them."""
    timed = {".lock", "summary.json", "metrics.jsonl"}
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in timed and "checkpoints" not in name}


def log(run: Run) -> list[dict[str, Any]]:
    """The lines of the log, without times."""
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def finish(run: Run) -> Run:
    """Trains to the end."""
    for _ in run:
        pass
    return run


def finished_run(config: MethodConfig, data: Dataset, folder: Path) -> Run:
    """A run trained to its end, for fixtures of a module: they do not wait for the measurement of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketdiff.run.run.fp32_peak", lambda device: 1e11)
        return finish(Run(config, data, folder))


def stopped_and_finished(config: MethodConfig, data: Dataset, folder: Path, stops: tuple[int, ...]) -> Run:
    """A run that was left after each of these steps, and continued by a new object each time."""
    for stop in (*stops, None):
        for report in Run(config, data, folder):
            if report.step == stop:
                break
    return Run(config, data, folder)


def assert_ends_like(run: Run, other: Run) -> None:
    """A run of several sessions left the same state, files and log as another one."""
    assert run.finished
    assert contents(run.folder.path) == contents(other.folder.path)
    (mine,), (theirs,) = (each.folder.saved_checkpoints() for each in (run, other))
    assert mine.name == theirs.name
    one, two = (read_checkpoint(path).tensors for path in (mine, theirs))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert log(run) == log(other)
