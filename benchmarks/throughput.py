"""Training speed of a preset's network, and the peak of the machine, in one run.

    python benchmarks/throughput.py [PRESET] [--rounds N]

Speed and peak are measured alternately, round by round, because machines drift; medians are printed. The peak is the
better of a large fp32 matrix product and a 3 x 3 convolution of 128 channels at 14 x 14, channels last, forward. torch
counts the floating-point operations of a training step (convolutions and matrix products, forward and backward); those
of the optimizers are not included.
"""

import argparse
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode
from training import changed

import pocketdiff as pd
from pocketdiff.methods.loop import batches, train
from pocketdiff.records import commit, fp32_peak, hardware


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    method = pd.METHODS.find("diffusion")
    parser.add_argument("preset", nargs="?", default="laptop", choices=method.presets)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of speed and peak")
    flags = parser.parse_args()
    config, data = changed(flags.preset, images=10**9, epochs=None), pd.load_data("mnist")
    state = method.new_state(config, data.info, "cpu", pd.load)

    batch = next(batches(config, data.train, state))
    with FlopCounterMode(display=False) as counter:
        method.backward(state, batch, config)
    per_image = counter.get_total_flops() / config.batch

    steps = train(method, state, data.train, config)
    next(steps)
    speeds, peaks = [], []
    for _ in range(flags.rounds):
        began, before = time.perf_counter(), state.seen
        while time.perf_counter() - began < 5:
            next(steps)
        speeds.append((state.seen - before) / (time.perf_counter() - began))
        peaks.append(fp32_peak(seconds=2))
    speed, top = statistics.median(speeds), statistics.median(peaks)
    print(f"machine       {hardware()}, torch {torch.__version__}, commit {commit()}")
    print(f"network       {sum(weight.numel() for weight in state.net.parameters()):,} parameters")
    print(f"work          {per_image / 1e6:.0f} MFLOP per image, forward and backward")
    print(f"training      {speed:.0f} images/s ({min(speeds):.0f} to {max(speeds):.0f}), batch {config.batch}")
    print(f"              {speed * per_image / 1e9:.0f} GFLOP/s")
    print(f"peak in fp32  {top / 1e9:.0f} GFLOP/s ({min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f})")
    print(f"share         {statistics.median(s * per_image / p for s, p in zip(speeds, peaks, strict=True)):.0%}")


if __name__ == "__main__":
    main()
