"""Training speed of a preset's network beside the peak of the machine, in one run.

    python benchmarks/throughput.py [PRESET] [--rounds N]

Work and peak are measured in turn, round by round, for machines drift; medians are printed. The peak is the best of a
large fp32 matrix product and a 3 x 3 convolution of 128 channels at 14 x 14, channels last, forward. A training step's
floating-point operations are counted by torch (convolutions and matrix products, forward and backward), the optimizer's
left out.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from pocketdiff.cli.records import commit, hardware
from pocketdiff.config import PRESETS
from pocketdiff.data import load_data
from pocketdiff.train import draw_batch, new_state, train


def seconds(work: Callable[[], object], least: float = 1.0) -> float:
    """Mean time of a call, over at least ``least`` seconds."""
    work()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < least:
        work()
        calls += 1
    return (time.perf_counter() - began) / calls


def peak() -> float:
    """The most floating-point operations a second that this machine gives in fp32."""
    a = torch.randn(2048, 2048)
    x = torch.randn(64, 128, 14, 14).to(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        product = 2 * 2048**3 / seconds(lambda: a @ a)
        return max(product, 2 * 64 * 14 * 14 * 128 * 128 * 9 / seconds(lambda: convolution(x)))


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", nargs="?", default="laptop", choices=PRESETS)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    config, data = PRESETS[flags.preset].model_copy(update={"images": 10**9, "epochs": None}), load_data("mnist")
    state = new_state(config, data.info)

    batch = draw_batch(data.train, config, state.net.null, 0, config.batch)
    with FlopCounterMode(display=False) as counter:
        state.net.loss(*batch).mean().backward()
    per_image = counter.get_total_flops() / config.batch

    steps = train(state, data.train, config)
    speeds, peaks = [], []
    for _ in range(flags.rounds):
        speeds.append(config.batch / seconds(lambda: next(steps), 5.0))
        peaks.append(peak())
    speed, top = statistics.median(speeds), statistics.median(peaks)
    machine = hardware(torch.device("cpu"))
    print(f"machine       {machine['cpu']}, {machine['threads']} threads, torch {torch.__version__}, commit {commit()}")
    print(f"network       {sum(p.numel() for p in state.net.parameters()):,} parameters")
    print(f"work          {per_image / 1e6:.0f} MFLOP an image, forward and backward")
    print(f"training      {speed:.0f} images/s ({min(speeds):.0f} to {max(speeds):.0f}), batch {config.batch}")
    print(f"              {speed * per_image / 1e9:.0f} GFLOP/s")
    print(f"peak in fp32  {top / 1e9:.0f} GFLOP/s ({min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f})")
    print(f"share         {statistics.median(s * per_image / p for s, p in zip(speeds, peaks, strict=True)):.0%}")


if __name__ == "__main__":
    main()
