"""How training grows with the size and the number of the images: speed, memory, time to the first step.

    python benchmarks/growth.py [--preset laptop] [--sides 28 32 48 64] [--images 10000 30000 ... 1000000] [--rounds 3]

The images are MNIST's, scaled to the side and repeated to the number. One axis has 60,000 images of several sides, the
other several numbers of images with 28 pixels a side. Each measurement has a process of its own, for its peak memory;
the rounds repeat all of them in turn, so that noise and drift of the machine hit all alike.

The time to the first step begins with the arrays in memory: it counts `Dataset.from_arrays` (checks, copies, the hash
of all pixels), the new networks and the first step. The peak memory counts the arrays, too. The speed is that
of whole training steps after the first.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from training import Preset, arguments, changed, legible, logarithmic, spread, table, tiny, write

import pocketdiff as pd
from pocketdiff import plots
from pocketdiff.records import peak_memory

SIDE, IMAGES = 28, 60_000
"""The side on the axis of numbers, and the number on the axis of sides."""
FIGURES = {"images_per_second": "training images per second", "peak_memory_bytes": "peak memory, MB",
           "first_step_seconds": "seconds to the first step"}  # fmt: skip
UNITS = {"peak_memory_bytes": 1e6}


def measure(preset: str, side: int, images: int, seconds: float, small: bool) -> dict[str, float | None]:
    """One measurement in this process."""
    source = pd.load_data("mnist", (side, side))
    chosen = torch.arange(images) % len(source.train)
    pixels, labels, test = source.train.pixels[chosen], source.train.labels[chosen], source.test
    del source
    began = time.perf_counter()
    data = pd.Dataset.from_arrays(pixels, labels, test.pixels, test.labels)
    config = (tiny(changed(preset)) if small else changed(preset)).replace(images=10**9, epochs=None)
    contender = Preset(config, data)
    contender.train(1e-9)
    first, seen, trained = time.perf_counter() - began, contender.seen, contender.seconds
    contender.train(trained + seconds)
    speed = (contender.seen - seen) / (contender.seconds - trained)
    return {"images_per_second": speed, "peak_memory_bytes": peak_memory(), "first_step_seconds": first}


def main() -> None:
    """Measures all, prints the table and writes the results."""
    parser = arguments(__doc__)
    parser.add_argument("--preset", default="laptop", choices=pd.PRESETS)
    parser.add_argument("--sides", nargs="+", type=int, default=[28, 32, 48, 64])
    parser.add_argument("--images", nargs="+", type=int, default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--seconds", type=float, default=10.0, help="training in a measurement")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)  # Side and images of a single measurement.
    flags = parser.parse_args()
    if flags.tiny:
        flags.rounds, flags.seconds, flags.sides, flags.images = 1, 0.1, [28, 32], [1000, 2000]
    if flags.one:
        print(json.dumps(measure(flags.preset, flags.one[0], flags.one[1], flags.seconds, flags.tiny)))
        return

    fixed = min(flags.images) if flags.tiny else IMAGES
    axes = {"side": [(side, fixed) for side in flags.sides], "images": [(SIDE, n) for n in flags.images]}
    wanted = list(dict.fromkeys([*axes["side"], *axes["images"]]))
    rounds: dict[tuple[int, int], list[dict[str, Any]]] = {key: [] for key in wanted}
    order = []
    for _ in range(flags.rounds):
        for side, images in wanted:
            more = ["--one", f"{side}", f"{images}", "--preset", flags.preset, "--seconds", f"{flags.seconds}"]
            command = [sys.executable, __file__, *more, *["--tiny"] * flags.tiny]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rounds[side, images].append(json.loads(done.stdout))
            order.append([side, images])
            print(f"side {side}, {images:,} images: {done.stdout.strip()}", flush=True)

    known = {key: {figure: spread([one[figure] for one in some]) for figure in FIGURES} for key, some in rounds.items()}
    plots_by_axis = {}
    for number, (axis, keys) in enumerate(axes.items()):
        lines = {title: [(key[number], known[key][figure]["median"] / UNITS.get(figure, 1)) for key in keys]
                 for figure, title in FIGURES.items()}  # fmt: skip
        across = {"side": "pixels a side", "images": "training images"}[axis]
        figure = plots.lines([(title, {flags.preset: points}) for title, points in lines.items()], across)
        if axis == "images":
            logarithmic(figure)
        plots_by_axis[f"growth_{axis}"] = legible(figure)
    found = [{"side": side, "images": images, **known[side, images]} for side, images in wanted]
    write("growth", flags.out, {"preset": flags.preset, "order": order, "measurements": found}, plots_by_axis)

    rows = [["side", "images", *FIGURES.values()]]
    for one in found:
        spreads = [{k: v / UNITS.get(f, 1) for k, v in one[f].items() if k != "rounds"} for f in FIGURES]
        shown = [f"{s['median']:.3g} ({s['low']:.3g} to {s['high']:.3g})" for s in spreads]
        rows.append([f"{one['side']}", f"{one['images']:,}", *shown])
    print(f"\n{table(rows)}\n\nwrote {flags.out}/growth.json, growth_side.svg and growth_images.svg")


if __name__ == "__main__":
    main()
