"""Quality against network evaluations per image, for every sampler and for distilled models; time of drawing.

    python benchmarks/few_evaluations.py runs/laptop [runs/laptop-1step runs/gan-conditional ...] [--steps 1 2 4 8 16]

The first model is drawn with every sampler at several numbers of steps and with its own scale and noise levels;
guidance doubles the evaluations of a step. Each further model is drawn with its own settings and, if it takes steps, in
1 and in 2. All draw images of the same labels and seeds, which are scored as `pocketdiff evaluate` does.

Then the first model, with its own settings, and all further ones draw 1,000 images in turn, several times, without
start-up: the medians are the time of drawing.
"""

import time
from pathlib import Path
from typing import Any

from training import MAIN, arguments, cells, panels, reference, score, score_of_real, spread, table, write

import pocketdiff as pd
from pocketdiff.evaluation.sample import labels_like, own_data
from pocketdiff.model import ImageModel


def name_of(path: Path) -> str:
    """What the results call a run or a model file."""
    return path.stem if path.suffix == ".safetensors" else path.resolve().name


def with_steps(model: ImageModel, steps: int, **changes: Any) -> ImageModel:
    """The model with another number of steps, and perhaps another sampler."""
    if model.sampling is None:
        raise SystemExit("the first model draws in one step; give a diffusion model first")
    return model.with_sampling(model.sampling.replace(steps=steps, **changes))


def drawing_times(models: dict[str, ImageModel], labels: list[int], rounds: int) -> dict[str, list[float]]:
    """The seconds that each model takes for these images, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model(labels[:1])  # The first call is slower.
    for _ in range(rounds):
        for name, model in models.items():
            began = time.perf_counter()
            model(labels)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Scores and measures, prints the table and writes the results."""
    parser = arguments(__doc__)
    parser.add_argument("run", type=Path, help="a finished run of a diffusion model, or its model file")
    parser.add_argument("models", type=Path, nargs="*", help="further runs or model files: distilled models, GANs")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="numbers of steps")
    parser.add_argument("--n", type=int, default=2000, help="images in a score")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of the time of drawing")
    flags = parser.parse_args()
    if flags.tiny:
        flags.steps, flags.n, flags.rounds = [1, 2], 128, 2
    model = pd.load(flags.run)
    data = own_data(model)
    against, count = reference(data, flags.tiny), 32 if flags.tiny else 1000

    trials = [(name, with_steps(model, n, sampler=name, options={})) for n in flags.steps for name in pd.SAMPLERS]
    ways = {name_of(flags.run): model}
    for path in flags.models:
        other, name = pd.load(path), name_of(path)
        found = {one.how(): one for one in [other, *(with_steps(other, n) for n in (1, 2) if other.sampling)]}
        trials += [(name, one) for one in found.values()]
        ways |= {f"{name}, NFE {one.nfe():g}": one for one in found.values()}

    results: dict[str, Any] = {"run": str(flags.run), "n": flags.n, "real_images": score_of_real(against, flags.n)}
    points = results["points"] = []
    for name, trial in trials:
        points.append({"name": name, **score(trial, against, flags.n)})
        print(f"{name}, {points[-1]['how']}: {', '.join(cells(points[-1]['metrics']))}", flush=True)
    seconds = drawing_times(ways, labels_like(data.train.labels, count), flags.rounds)
    results["drawing"] = {
        name: {"how": ways[name].how(), "nfe": ways[name].nfe(), "images": count, "seconds": spread(some)}
        for name, some in seconds.items()
    }
    curves: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for point in points:
        curves.setdefault(point["name"], []).append((point["nfe"], point["metrics"]))
    figure = panels(curves, "network evaluations per image", results["real_images"])
    write("few_evaluations", flags.out, results, {"few_evaluations": figure})

    rows = [["", "NFE", *MAIN.values()]]
    rows += [[point["name"], f"{point['nfe']}", *cells(point["metrics"])] for point in points]
    rows.append(["real images", "", *cells(results["real_images"])])
    times = [["", "NFE", f"seconds for {count:,} images"]]
    for name, one in results["drawing"].items():
        took = one["seconds"]
        times.append([name, f"{one['nfe']}", f"{took['median']:.3g} ({took['low']:.3g} to {took['high']:.3g})"])
    print(f"{table(rows)}\n\n{table(times)}\n\nwrote {flags.out}/few_evaluations.json and .svg")


if __name__ == "__main__":
    main()
