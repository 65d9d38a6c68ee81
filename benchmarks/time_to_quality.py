"""Quality against seconds of training: the presets, the GANs and diffusers' loop.

    python benchmarks/time_to_quality.py --budget 300 [--contenders laptop diffusers ...] [--n 2000]

All contenders train in turn in one process, in slices of a few seconds, so that noise and drift of the machine hit all
alike. The seconds count training only, not scores. At given seconds, and at the end of its run if that comes earlier,
each contender draws n images with its averaged weights, and they are scored. The results are written after each
score, so an interrupt loses nothing.

`diffusers` is its ``UNet2DModel`` with class labels and as many weights as the laptop network, in the loop of its own
training example; `diffusers-fast` is the same with ten times the learning rate, 1e-3. Their learning rates fall to zero
at the end of the budget. `DiffusersLoop` in ``training.py`` has the details.

The presets and the GANs draw with their own sampling settings. The chains of `ddpm` (400 steps) and diffusers (1,000)
would take too long. So both draw along Karras' noise levels, from the top of the chain (at most 80) to 0.02, by
default with DPM-Solver++(2M), 20 steps and guidance scale 1.5: the usual few-step sampler for such models (Lu et al.
2022), and the scale of `ddpm`. --chain SAMPLER:STEPS:SCALE names another way; of several ways the one with the smallest
distance counts, at each score anew. `ddpm` is scored only at the end of the budget, because one of its scores takes as
long as all others; --last chooses these contenders.

How many times faster a contender is to a distance of 2 (--distance): the seconds of each diffusers loop divided by its
own, both interpolated between the scores in the logarithms of seconds and distance. If a loop does not come so near in
the budget, the ratio is a lower bound, from the budget.
"""

import math
from typing import Any

from training import (
    MAIN,
    Contender,
    DiffusersLoop,
    Preset,
    arguments,
    cells,
    changed,
    mnist,
    panels,
    reference,
    score,
    score_of_real,
    table,
    tiny,
    write,
)

import pocketdiff as pd
from pocketdiff.model import ImageModel

LOOPS = {"diffusers": 1e-4, "diffusers-fast": 1e-3}
"""The contenders of diffusers, with their learning rates."""
CONTENDERS = ["quick", "laptop", "ddpm", "gan", "gan-conditional", *LOOPS]
SECONDS = [5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600, 900, 1200, 1800, 2400, 3600]


def contender(name: str, data: pd.Dataset, budget: float, small: bool) -> Contender:
    """A contender before its first step."""
    if name in LOOPS:
        return DiffusersLoop(data, budget, LOOPS[name], small)
    return Preset(tiny(changed(name)) if small else changed(name), data)


def way(text: str) -> pd.SamplingConfig:
    """A way of drawing with a chain, from ``SAMPLER:STEPS:SCALE``; raises ValueError."""
    sampler, steps, scale = text.split(":")
    return pd.SamplingConfig(sampler=sampler, steps=int(steps), scale=float(scale))


def drawn(model: ImageModel, ways: list[pd.SamplingConfig]) -> list[ImageModel]:
    """The model as it draws for a score: in each of these ways, if its own schedule is a chain."""
    config: Any = model.config
    if model.sampling is None or config.schedule.levels == math.inf:
        return [model]
    levels = pd.Karras(sigma_min=0.02, sigma_max=min(80.0, config.schedule.sigma_max))
    return [model.with_sampling(way.replace(schedule=levels)) for way in ways]


def best(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The score with the smallest distance."""
    return min(scores, key=lambda point: point["metrics"].get("frechet_train", math.inf))


def seconds_to(points: list[dict[str, Any]], distance: float) -> float | None:
    """The seconds of training at which the distance was reached; None if it was not."""
    last: tuple[float, float] | None = None
    for point in points:
        if (here := point["metrics"].get("frechet_train")) is None:
            continue
        if here <= distance:
            if last is None:
                return point["seconds"]
            done = math.log(last[1] / distance) / math.log(last[1] / here)
            return last[0] * (point["seconds"] / last[0]) ** done
        last = point["seconds"], here
    return None


def times_faster(found: dict[str, dict[str, Any]], budget: float, distance: float) -> None:
    """Adds to each contender the seconds to the distance, and how many times faster than each diffusers loop it is."""
    for one in found.values():
        one["seconds_to_distance"] = seconds_to(one["points"], distance)
    for one in found.values():
        one["times_faster_than"] = {
            loop: {
                "ratio": (found[loop]["seconds_to_distance"] or budget) / one["seconds_to_distance"],
                "lower_bound": found[loop]["seconds_to_distance"] is None,
            }
            for loop in LOOPS
            if loop in found and found[loop] is not one and one["seconds_to_distance"] is not None
        }


def main() -> None:
    """Trains and scores all contenders, prints the table and writes the results."""
    parser = arguments(__doc__)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of training of each contender")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=[*pd.PRESETS, *LOOPS])
    parser.add_argument("--last", nargs="*", default=["ddpm"], help="contenders that are scored only at their end")
    parser.add_argument("--seconds", nargs="+", type=float, default=SECONDS, help="seconds of the scores")
    parser.add_argument("--slice", type=float, default=5.0, help="seconds of a slice of training")
    parser.add_argument("--n", type=int, default=2000, help="images in a score")
    parser.add_argument(
        "--chain", nargs="+", type=way, default=[way("dpmpp_2m:20:1.5")], metavar="SAMPLER:STEPS:SCALE",
        help="how ddpm and diffusers draw (default: dpmpp_2m:20:1.5)",
    )  # fmt: skip
    parser.add_argument("--distance", type=float, default=2.0, help="the distance for the ratios of time")
    flags = parser.parse_args()
    if flags.tiny:
        flags.budget, flags.seconds, flags.slice, flags.n, flags.distance = 0.6, [0.3], 0.15, 128, 1e4
        flags.chain = [way("euler:1:1"), way("dpmpp_2m:2:1.5")]
    data, against = mnist(flags.tiny), reference(pd.load_data("mnist"), flags.tiny)
    for name in flags.contenders:
        contender(name, data, flags.budget, flags.tiny).train(1e-9)  # The first step in a process is slower.
    contenders = {name: contender(name, data, flags.budget, flags.tiny) for name in flags.contenders}
    results: dict[str, Any] = {
        "budget": flags.budget, "n": flags.n, "distance": flags.distance, "slices": [],
        "real_images": score_of_real(against, flags.n),
        "contenders": {name: {"parameters": one.parameters, "batch": one.batch, "points": []}
                       for name, one in contenders.items()},
    }  # fmt: skip
    points = {*(at for at in flags.seconds if at < flags.budget), flags.budget}
    slices = {flags.slice * i for i in range(1, math.ceil(flags.budget / flags.slice))}
    for stop in sorted(points | slices):
        for name, one in contenders.items():
            before, known = (one.seconds, one.seen), results["contenders"][name]["points"]
            one.train(stop)
            if one.seen > before[1]:
                results["slices"].append([name, one.seconds - before[0], one.seen - before[1]])
            due = one.finished or stop == flags.budget or (stop in points and name not in flags.last)
            if not due or (known and known[-1]["seen"] == one.seen):
                continue
            scores = [score(model, against, flags.n) for model in drawn(one.model(), flags.chain)]
            point = {"seconds": one.seconds, "seen": one.seen, **best(scores)}
            known.append(point)
            times_faster(results["contenders"], flags.budget, flags.distance)
            write("time_to_quality", flags.out, results)
            shown = ", ".join(cells(point["metrics"]))
            print(f"{name}: {one.seconds:.0f} s, {one.seen:,} images: {shown}", flush=True)
    curves = {
        name: [(point["seconds"], point["metrics"]) for point in one["points"]]
        for name, one in results["contenders"].items()
    }
    figure = panels(curves, "seconds of training", results["real_images"])
    write("time_to_quality", flags.out, results, {"time_to_quality": figure})

    loops = [name for name in LOOPS if name in contenders]
    head = ["", "weights", "NFE", "images/s", "seconds", *MAIN.values(), f"seconds to {flags.distance:g}"]
    rows = [[*head, *(f"faster than `{loop}`" for loop in loops)]]
    for name, one in results["contenders"].items():
        last, reached = one["points"][-1], one["seconds_to_distance"]
        ratios = [one["times_faster_than"].get(loop) for loop in loops]
        rows.append([
            f"`{name}`", f"{one['parameters']:,}", f"{last['nfe']}", f"{last['seen'] / last['seconds']:.0f}",
            f"{last['seconds']:.0f}", *cells(last["metrics"]), "" if reached is None else f"{reached:.0f}",
            *("" if r is None else f"{'over ' * r['lower_bound']}{r['ratio']:.1f} times" for r in ratios),
        ])  # fmt: skip
    rows.append(["real images", *[""] * 4, *cells(results["real_images"]), *[""] * (1 + len(loops))])
    print(f"\n{table(rows)}\n\nwrote {flags.out}/time_to_quality.json and .svg")


if __name__ == "__main__":
    main()
