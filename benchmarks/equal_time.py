"""The plain GAN, a modern GAN and the diffusion model after equal time of training on this machine.

    python benchmarks/equal_time.py [--seconds 300] [--runs runs]

Measures the speed of each preset with a few thousand images, trains it on the number of images that this speed gives in
the time, scores all of them with `pd.compare`, and writes RUNS/equal-time-SECONDS/report. After an interrupt, the same
command continues. Nothing else should run on the machine. on_gpu.py compares them after equal epochs, and with equal
numbers of weights.
"""

import argparse
import json
from pathlib import Path

from training import changed, finished

import pocketdiff as pd

PROBE = {"gan": 60_000, "gan-conditional": 6_400, "laptop": 6_400}
"""Number of images for the measurement of each preset's speed."""


def main() -> None:
    """Trains what is missing, compares, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="training time of each run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs and reports")
    parser.add_argument("--n", type=int, default=10_000, help="images in a score")
    flags = parser.parse_args()
    folder = flags.runs / f"equal-time-{flags.seconds:g}"
    configs = {}
    for preset, images in PROBE.items():
        summary = finished(changed(preset, images=images, epochs=None), folder / "speed" / preset)
        length = round(summary.images_per_second * flags.seconds)
        configs[preset] = changed(preset, images=length, epochs=None, pictures_every=1)
    for preset, config in configs.items():
        finished(config, folder / preset)
    comparison, report = pd.compare([folder / preset for preset in configs], n=flags.n), folder / "report"
    report.mkdir(exist_ok=True)
    (report / "index.html").write_text(comparison.page())
    (report / "table.md").write_text(comparison.table())
    (report / "comparison.json").write_text(json.dumps(comparison.json(), indent=2) + "\n")
    print(f"{comparison.table()}\nwrote {report}")


if __name__ == "__main__":
    main()
