"""Training speed against diffusers, a GAN and the original experiment, and the share of the machine's peak.

    python benchmarks/throughput.py [--contenders laptop ddpm gan-conditional diffusers] [--rounds 5] [--seconds 5]

All contenders train in turn in one process, a few seconds each (at least one step), and after them the fp32 peak is
measured; then the next round begins. So noise and drift of the machine hit all alike. The speed counts whole steps with
data, noise, optimizers and moving average. `diffusers` is its ``UNet2DModel`` with class labels and as many weights as
the laptop network, in the loop of its own training example (`DiffusersLoop` in ``training.py``).

The table shows medians over the rounds. The ratio is the first contender's speed divided by another's, in each round.
The peak is the better of a large fp32 matrix product and a 3 x 3 convolution of 128 channels at 14 x 14, channels last,
forward. The work counts convolutions and matrix products, forward and backward, without those of the optimizers.
"""

from typing import Any

from training import Contender, DiffusersLoop, Preset, arguments, changed, legible, mnist, spread, table, tiny, write

import pocketdiff as pd
from pocketdiff import plots
from pocketdiff.records import fp32_peak

CONTENDERS = ["laptop", "ddpm", "gan-conditional", "diffusers"]


def contender(name: str, data: pd.Dataset, seconds: float, small: bool) -> Contender:
    """A contender that trains for so many seconds in all."""
    if name == "diffusers":
        return DiffusersLoop(data, seconds, small=small)
    config = tiny(changed(name)) if small else changed(name)
    return Preset(config.replace(images=10**9, epochs=None), data)


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = arguments(__doc__)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=[*pd.PRESETS, "diffusers"])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each speed and of the peak")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a measurement")
    flags = parser.parse_args()
    if flags.tiny:
        flags.rounds, flags.seconds = 2, 0.1
    data, budget = mnist(flags.tiny), flags.rounds * flags.seconds
    contenders = {name: contender(name, data, budget, flags.tiny) for name in flags.contenders}
    work = {name: one.flops() for name, one in contenders.items()}

    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks, order = [], []
    for one in contenders.values():
        one.train(1e-9)  # The first step is slower.
    for _ in range(flags.rounds):
        for name, one in contenders.items():
            seconds, seen = one.seconds, one.seen
            one.train(seconds + flags.seconds)
            speeds[name].append((one.seen - seen) / (one.seconds - seconds))
            order.append(name)
        peaks.append(fp32_peak(seconds=min(2.0, flags.seconds)))
        order.append("peak")

    found: dict[str, dict[str, Any]] = {}
    shares, first = {}, flags.contenders[0]
    for name, one in contenders.items():
        shares[name] = [speed * work[name] / peak for speed, peak in zip(speeds[name], peaks, strict=True)]
        found[name] = {
            "parameters": one.parameters,
            "batch": one.batch,
            "flops_per_image": work[name],
            "images_per_second": spread(speeds[name]),
            "share_of_peak": spread(shares[name]),
            "ratio": spread([ours / theirs for ours, theirs in zip(speeds[first], speeds[name], strict=True)]),
        }
    curves = [("training images per second", speeds), ("share of the fp32 peak", shares)]
    figure = plots.lines(
        [(title, {name: list(enumerate(some, 1)) for name, some in lines.items()}) for title, lines in curves], "round"
    )
    figure.axes[1].set_yscale("linear")
    legible(figure)
    results: dict[str, Any] = {"fp32_peak_flops": spread(peaks), "order": order, "contenders": found}
    write("throughput", flags.out, results, {"throughput": figure})

    rows = [["", "weights", "batch", "MFLOP per image", "images/s", "share of peak", f"`{first}` is faster by"]]
    for name, row in found.items():
        speed, share, ratio = row["images_per_second"], row["share_of_peak"], row["ratio"]
        rows.append([
            f"`{name}`", f"{row['parameters']:,}", f"{row['batch']}", f"{row['flops_per_image'] / 1e6:.0f}",
            f"{speed['median']:.0f} ({speed['low']:.0f} to {speed['high']:.0f})",
            f"{share['median']:.0%} ({share['low']:.0%} to {share['high']:.0%})",
            "" if name == first else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        ])  # fmt: skip
    peak = results["fp32_peak_flops"]
    print(table(rows))
    print(f"\nfp32 peak: {peak['median'] / 1e9:.0f} GFLOP/s ({peak['low'] / 1e9:.0f} to {peak['high'] / 1e9:.0f})")
    print(f"wrote {flags.out}/throughput.json and .svg")


if __name__ == "__main__":
    main()
