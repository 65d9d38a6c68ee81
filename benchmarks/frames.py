"""The comparison of the plain GAN, a GAN of today and the diffusion model, in one of three fair frames.

    python benchmarks/frames.py epochs [--epochs 20] [--ddpm] [--runs runs]   equal epochs, batch and learning rate
    python benchmarks/frames.py clock [--seconds 300] [--runs runs]           equal seconds of training on this machine
    python benchmarks/frames.py parameters [--images 100000] [--runs runs]    equal weights, equal images

Each frame trains what is missing, then scores all of it with `pocketdiff compare` into RUNS/FRAME-LENGTH/report.
Interrupted, it goes on where it was.

`epochs` is the original experiment's frame: batch 256, learning rate 1e-4, pictures every epoch. With --ddpm its
diffusion model is the original's, which asks for a GPU; without, it is the laptop network. Run it with --epochs 10 and
with --epochs 20: a run of 20 has pictures of its tenth epoch as well, but its learning rate has not come down there.

`clock` measures the speed of each preset over a few thousand images first, and trains it on as many as that speed gives
in the time. Nothing else should run beside it.

`parameters` gives generator and discriminator together about as many weights as the laptop network has, 627,684: the
plain GAN 625,905, the other 600,463.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ORIGINAL = ["--batch", "256", "--pictures-every", "1"]
GAN_LR = ["--generator-lr", "1e-4", "--discriminator-lr", "1e-4"]
LAPTOP_LR = ["--muon-lr", "none", "--adam-lr", "1e-4", "--gifs-every", "1000", "--guidance-strengths", "0.5"]
PROBE = {"gan": 60_000, "gan-conditional": 6_400, "laptop": 6_400}
"""Images over which a preset's speed is measured."""


def pocketdiff(*words: str) -> None:
    """Runs the command line, and stops where it fails."""
    subprocess.run([sys.executable, "-m", "pocketdiff.cli", *words], check=True)


def speed(preset: str) -> float:
    """Training speed in images a second, of a short run."""
    with tempfile.TemporaryDirectory() as folder:
        pocketdiff("train", "--preset", preset, "--images", str(PROBE[preset]), "--out", f"{folder}/run")
        return float(json.loads(Path(folder, "run", "summary.json").read_text())["images_per_second"])


def epochs(flags: argparse.Namespace) -> dict[str, list[str]]:
    """Equal epochs, batch and learning rate."""
    length = ["--epochs", str(flags.epochs)]
    diffusion = {"ddpm": ["--preset", "ddpm"]} if flags.ddpm else {"laptop": ["--preset", "laptop", *LAPTOP_LR]}
    return {
        "gan": ["--preset", "gan", *length, *ORIGINAL, *GAN_LR],
        "gan-conditional": ["--preset", "gan-conditional", *length, *ORIGINAL, *GAN_LR],
        **{name: [*words, *length, *ORIGINAL] for name, words in diffusion.items()},
    }


def clock(flags: argparse.Namespace) -> dict[str, list[str]]:
    """Equal seconds of training on this machine."""
    kept = flags.runs / f"clock-{flags.seconds:g}" / "images_per_second.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({preset: speed(preset) for preset in PROBE}))
    return {
        preset: ["--preset", preset, "--images", str(round(pace * flags.seconds)), "--pictures-every", "1"]
        for preset, pace in json.loads(kept.read_text()).items()
    }


def parameters(flags: argparse.Namespace) -> dict[str, list[str]]:
    """Equal weights, equal images."""
    words = ["--images", str(flags.images), "--pictures-every", "1"]
    return {
        "gan": ["--preset", "gan", *words, *NARROW],
        "gan-conditional": ["--preset", "gan-conditional", *words],
        "laptop": ["--preset", "laptop", *words],
    }


NARROW = ["--generator", "128", "256", "320", "--discriminator", "288", "64"]
"""A plain GAN of about 627,684 weights: 625,905."""
FRAMES = {"epochs": epochs, "clock": clock, "parameters": parameters}


def main() -> None:
    """Makes what is missing, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frame", choices=FRAMES)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--ddpm", action="store_true")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--n", type=int, default=10_000)
    flags = parser.parse_args()
    lengths = {"epochs": flags.epochs, "clock": f"{flags.seconds:g}", "parameters": flags.images}
    folder = flags.runs / f"{flags.frame}-{lengths[flags.frame]}"
    runs = []
    for name, words in FRAMES[flags.frame](flags).items():
        runs.append(str(folder / name))
        pocketdiff("train", *words, "--out", runs[-1])
    pocketdiff("compare", *runs, "--n", str(flags.n), "--out", str(folder / "report"), "--overwrite")


if __name__ == "__main__":
    main()
