"""What the presets reach: three seeds each, trained and scored, as a table of means and spreads.

    python benchmarks/presets.py [--presets quick laptop] [--seeds 0 1 2] [--runs runs] [--n 10000]

Runs and scores that are there are not made again. On two cores six runs take half an hour, and their scores as long.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

SHOWN = {
    "frechet_train": "Fréchet distance to train", "frechet_test": "to test", "frechet_classes": "within classes",
    "kernel_train": "kernel distance", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage", "accuracy": "label accuracy", "memorized_share": "near a training image",
}  # fmt: skip
SHARES = {"precision", "recall", "coverage", "accuracy", "memorized_share"}


def pocketdiff(*words: str) -> None:
    """Runs the command line, and stops where it fails."""
    subprocess.run([sys.executable, "-m", "pocketdiff.cli", *words], check=True)


def figures(preset: str, seed: int, runs: Path, n: int) -> dict[str, dict[str, float]]:
    """One run's score and summary, made where they are missing."""
    run = runs / f"{preset}-{seed}"
    score = runs / f"{run.name}-{n}.json"
    pocketdiff("train", "--preset", preset, "--seed", str(seed), "--out", str(run))
    if not score.exists():
        pocketdiff("evaluate", str(run), "--n", str(n), "--json", str(score))
    found: dict[str, dict[str, float]] = json.loads(score.read_text())
    found["summary"] = json.loads((run / "summary.json").read_text())
    return found


def written(name: str, values: list[float]) -> str:
    """Mean and spread: the standard deviation between seeds; nothing where a model has no such figure."""
    if None in values:
        return ""
    mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.2%} ± {spread:.2%}" if name in SHARES else f"{mean:.3f} ± {spread:.3f}"


def main() -> None:
    """Makes what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["quick", "laptop"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--n", type=int, default=10_000)
    flags = parser.parse_args()
    table = {preset: [figures(preset, seed, flags.runs, flags.n) for seed in flags.seeds] for preset in flags.presets}
    floor = next(iter(table.values()))[0]["floor"]
    print(f"| | {' | '.join(f'`{preset}`' for preset in table)} | real images |")
    print(f"|---|{'---|' * len(table)}---|")
    for name, said in SHOWN.items():
        cells = [written(name, [run["metrics"][name] for run in runs]) for runs in table.values()]
        print(f"| {said} | {' | '.join(cells)} | {written(name, [floor[name]]).partition(' ±')[0]} |")
    times = [", ".join(f"{run['summary']['training_seconds']:.0f}" for run in runs) for runs in table.values()]
    print(f"| seconds of training | {' | '.join(times)} | |")


if __name__ == "__main__":
    main()
