"""The plain GAN, a modern GAN and the diffusion model, in one of three fair comparisons.

    python benchmarks/frames.py epochs [--epochs 20] [--ddpm] [--runs runs]   equal epochs, batch and learning rate
    python benchmarks/frames.py clock [--seconds 300] [--runs runs]           equal time of training on this machine
    python benchmarks/frames.py parameters [--images 100000] [--runs runs]    equal numbers of weights and images

Trains the models that are missing, scores all of them with `pd.compare`, and writes RUNS/FRAME-LENGTH/report. After an
interrupt, the same command continues.

`epochs` is the comparison of the original experiment: batch 256, learning rate 1e-4, pictures after every epoch. With
--ddpm the diffusion model is the original's, which needs a GPU; otherwise it is the laptop network. Run it with
--epochs 10 and with --epochs 20: a run of 20 epochs has pictures of its tenth epoch too, but there its learning rate is
still high.

`clock` first measures the speed of each preset with a few thousand images, and then trains it on the number of images
that this speed gives in the time. Nothing else should run on the machine.

`parameters` gives generator and discriminator together about as many weights as the laptop network, 627,684: the plain
GAN has 625,905, the other 600,463.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from training import changed, finished

import pocketdiff as pd
from pocketdiff.config import MethodConfig

PROBE = {"gan": 60_000, "gan-conditional": 6_400, "laptop": 6_400}
"""Number of images for the measurement of each preset's speed."""
NARROW = {"kind": "mlp", "generator": (128, 256, 320), "discriminator": (288, 64)}
"""A plain GAN of 625,905 weights."""


def epochs(flags: argparse.Namespace, folder: Path) -> dict[str, MethodConfig]:  # noqa: ARG001
    """Equal epochs, batch and learning rate."""
    common = {"images": None, "epochs": flags.epochs, "batch": 256, "pictures_every": 1}
    rates = {"generator_lr": 1e-4, "discriminator_lr": 1e-4}
    configs = {name: changed(name, **common, **rates) for name in ("gan", "gan-conditional")}
    if flags.ddpm:
        return {**configs, "ddpm": changed("ddpm", **common)}
    laptop = {"muon_lr": None, "adam_lr": 1e-4, "gifs_every": 1000, "guidance_strengths": (0.5,)}
    return {**configs, "laptop": changed("laptop", **common, **laptop)}


def clock(flags: argparse.Namespace, folder: Path) -> dict[str, MethodConfig]:
    """Equal time of training on this machine."""
    configs = {}
    for preset, images in PROBE.items():
        summary = finished(changed(preset, images=images, epochs=None), folder / "speed" / preset)
        length = round(summary.images_per_second * flags.seconds)
        configs[preset] = changed(preset, images=length, epochs=None, pictures_every=1)
    return configs


def parameters(flags: argparse.Namespace, folder: Path) -> dict[str, MethodConfig]:  # noqa: ARG001
    """Equal numbers of weights and images."""
    common = {"images": flags.images, "epochs": None, "pictures_every": 1}
    return {
        "gan": changed("gan", **common, net=NARROW),
        "gan-conditional": changed("gan-conditional", **common),
        "laptop": changed("laptop", **common),
    }


FRAMES: dict[str, Callable[[argparse.Namespace, Path], dict[str, MethodConfig]]] = {
    "epochs": epochs, "clock": clock, "parameters": parameters,
}  # fmt: skip


def main() -> None:
    """Trains what is missing, compares, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frame", choices=FRAMES)
    parser.add_argument("--epochs", type=int, default=20, help="length of each run of the frame epochs")
    parser.add_argument("--ddpm", action="store_true", help="with the original's diffusion model")
    parser.add_argument("--seconds", type=float, default=300, help="training time of each run of the frame clock")
    parser.add_argument("--images", type=int, default=100_000, help="length of each run of the frame parameters")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs and reports")
    parser.add_argument("--n", type=int, default=10_000, help="images in a score")
    flags = parser.parse_args()
    lengths = {"epochs": flags.epochs, "clock": f"{flags.seconds:g}", "parameters": flags.images}
    folder = flags.runs / f"{flags.frame}-{lengths[flags.frame]}"
    configs = FRAMES[flags.frame](flags, folder)
    for name, config in configs.items():
        finished(config, folder / name)
    comparison, report = pd.compare([folder / name for name in configs], n=flags.n), folder / "report"
    report.mkdir(exist_ok=True)
    (report / "index.html").write_text(comparison.page())
    (report / "table.md").write_text(comparison.table())
    (report / "comparison.json").write_text(json.dumps(comparison.json(), indent=2) + "\n")
    print(f"{comparison.table()}\nwrote {report}")


if __name__ == "__main__":
    main()
