"""How soon a second evaluation of the same data draws its first images.

    python benchmarks/second_evaluation.py runs/laptop [--n 2000]

First a small evaluation fills the cache of the data set: classifiers, features, nearest images. Then the time of
``pocketdiff evaluate RUN`` is taken from the end of torch's import until the first images are drawn: the package's
import, the data, the model, the classifiers and the first batch.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path


class FirstImages(Exception):  # noqa: N818 (not an error)
    """Ends the evaluation when the first images are drawn."""


def main() -> None:
    """Prints the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run or a model file")
    parser.add_argument("--n", type=int, default=2000, help="images of the second evaluation")
    flags = parser.parse_args()
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pocketdiff.cli", "evaluate", flags.run, "--n", "128"], check=True)
    print(f"first evaluation, 128 images   {time.perf_counter() - began:6.2f} s, with torch's import")

    import torch  # noqa: PLC0415 (the clock starts behind it)

    began = time.perf_counter()
    from pocketdiff.cli import console, evaluate  # noqa: PLC0415
    from pocketdiff.records import hardware  # noqa: PLC0415

    times = {"import of the package": time.perf_counter() - began}

    def note(_bar: console.Bar, what: str, done: int, _total: int) -> None:
        times.setdefault(f"{what}: starts", time.perf_counter() - began)
        if what == "drawing" and done:
            times[f"drawing: first {done} images"] = time.perf_counter() - began
            raise FirstImages

    console.Bar.__call__ = note  # type: ignore[assignment,method-assign]
    try:
        evaluate.main([str(flags.run), "--n", str(flags.n)])
    except FirstImages:
        print(f"second evaluation, {flags.n:,} images, from the end of torch's import:")
    for what, seconds in times.items():
        print(f"  {what:28} {seconds:6.2f} s")
    print(f"machine: {hardware()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
