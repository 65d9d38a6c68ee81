"""What the benchmarks share: presets with other values, and finished runs."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# OpenMP reads this when torch is loaded; the command line sets it too. Its threads then do not wait busily for long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pocketdiff as pd
from pocketdiff.config import MethodConfig
from pocketdiff.records import Summary


def changed(preset: str, **changes: Any) -> MethodConfig:
    """A preset with other values, which are validated."""
    config = pd.PRESETS[preset]
    return config.model_validate({**config.model_dump(), **changes})


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
