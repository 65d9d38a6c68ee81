"""The figures of the presets: each is trained with several seeds and scored; a table shows means and spreads.

    python benchmarks/presets.py [--presets quick laptop] [--seeds 0 1 2] [--images N] [--runs runs] [--n 10000]

Finished runs and scores in RUNS are used again, and unfinished runs continue. On two cores six runs take half an hour,
and their scores about as long.
"""

import argparse
import statistics
from pathlib import Path
from typing import NamedTuple

from training import changed, finished

import pocketdiff as pd
from pocketdiff.evaluation import Metric, ScoreFile
from pocketdiff.records import Summary


class Result(NamedTuple):
    """One run and its score."""

    summary: Summary
    score: ScoreFile


def result(preset: str, seed: int, images: int | None, data: pd.Dataset, runs: Path, n: int) -> Result:
    """One run's summary and score, made if they are missing."""
    length = {} if images is None else {"images": images, "epochs": None}
    run = runs / f"{preset}-{seed}"
    summary, path = finished(changed(preset, seed=seed, **length), run), runs / f"{run.name}-{n}.json"
    if not path.exists():
        record = pd.evaluate(pd.load(run), data, n=n, name=str(run)).record
        path.write_text(record.model_dump_json(indent=2) + "\n")
    return Result(summary, ScoreFile.read(path))


def spread(metric: Metric, values: list[float | None]) -> str:
    """Mean ± standard deviation between seeds; empty if a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    form = ".2%" if metric.share else ".3f"
    mean, deviation = statistics.mean(known), statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{mean:{form}} ± {deviation:{form}}"


def main() -> None:
    """Trains and scores what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["quick", "laptop"], help="default: quick laptop")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--images", type=int, help="training images (default: the preset's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs and scores")
    parser.add_argument("--n", type=int, default=10_000, help="images in a score")
    flags = parser.parse_args()
    data = pd.load_data("mnist")
    table = {
        preset: [result(preset, seed, flags.images, data, flags.runs, flags.n) for seed in flags.seeds]
        for preset in flags.presets
    }
    real = next(iter(table.values()))[0].score.real_baseline
    print(f"| | {' | '.join(f'`{preset}`' for preset in table)} | real images |")
    print(f"|---|{'---|' * len(table)}---|")
    for key, metric in pd.METRICS.items():
        cells = [spread(metric, [one.score.metrics.get(key) for one in results]) for results in table.values()]
        if any(cells):
            print(f"| {metric.name} | {' | '.join(cells)} | {spread(metric, [real.get(key)]).partition(' ±')[0]} |")
    times = [", ".join(f"{one.summary.training_seconds:.0f}" for one in results) for results in table.values()]
    print(f"| seconds of training | {' | '.join(times)} | |")


if __name__ == "__main__":
    main()
