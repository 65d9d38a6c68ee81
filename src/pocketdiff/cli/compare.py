"""``pocketdiff compare``: models side by side, scored alike, with what each of them costs."""

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pocketdiff.checkpoint import MODEL_FILE, load
from pocketdiff.cli.classifiers import add_data, pick_classifiers
from pocketdiff.cli.console import Work, make_room, pick_device, say, warn
from pocketdiff.cli.evaluate import add_scored, check_trained_on, draw_sample, find_data, frame
from pocketdiff.cli.flags import Parser, UsageError
from pocketdiff.cli.gallery import ZOOM, views
from pocketdiff.data import Dataset
from pocketdiff.evaluate.classifiers import Classifiers
from pocketdiff.evaluate.comparison import SAME, Comparison, Entry, check_alike
from pocketdiff.evaluate.distances import Estimate
from pocketdiff.evaluate.reference import Reference
from pocketdiff.evaluate.report import Picture, grid
from pocketdiff.evaluate.score import K, Metrics, Sample, floor, score
from pocketdiff.files import write_file
from pocketdiff.generate import DiffusionModel, GanModel

DESCRIPTION = """Scores models alike and sets them side by side: how near to real images they come, how varied they are,
how well they heed labels, what they cost in training and in drawing; and says which differences exceed their intervals.
RUN is a finished run, a model file, or what evaluate --json wrote."""

EXAMPLES = """examples:
  pocketdiff compare runs/gan runs/gan-conditional runs/laptop --out report
  pocketdiff compare runs/laptop runs/other --n 2000
  pocketdiff compare here.json there.json            what evaluate --json wrote on two machines
"""

Model = DiffusionModel | GanModel
WRITTEN: dict[str, Callable[[Comparison], str]] = {
    "index.html": Comparison.page,
    "table.md": Comparison.table,
    "comparison.json": lambda comparison: json.dumps(comparison.json(), indent=2, allow_nan=False) + "\n",
}
"""What --out writes."""
NUMBERS = (
    "parameters", "training_seconds", "images_seen", "images_per_second", "peak_memory_bytes", "peak_gpu_memory_bytes",
)  # fmt: skip
"""The numbers that a summary must have, or none in their place."""


def main(arguments: list[str]) -> int:
    """Parses the flags, draws and scores, writes, and returns the exit status."""
    flags = _parse(arguments)
    paths = _named(flags.runs)
    entries = {name: _read(name, path) for name, path in paths.items() if path.suffix == ".json"}
    models = {name: load(path, pick_device(flags.device)) for name, path in paths.items() if name not in entries}
    frames = {name: dict(entry.frame) for name, entry in entries.items()}
    source, data = _data(flags, models, paths) if models else ("", None)
    if data is not None:
        frames[next(iter(models))] = {"data_sha256": data.info.sha256, "n": flags.n, "k": K}
    check_alike(frames)
    outputs = {} if flags.out is None else {flags.out / name: "--out" for name in WRITTEN}
    make_room(outputs, flags.overwrite)
    real = None
    if data is not None:
        classifiers = pick_classifiers(data)
        networks = {"feature_network": classifiers.features, "label_network": classifiers.reader}
        frames[next(iter(models))] |= {f"{name}_sha256": network.sha256 for name, network in networks.items()}
        check_alike(frames)
        entries |= _scored(flags, models, paths, source, data, classifiers)
        real = grid(Sample(data.test.pixels, data.test.labels), data.info, zoom=1)
    comparison = Comparison([entries[name] for name in paths], real)
    say(comparison.table())
    for path in outputs:
        write_file(path, WRITTEN[path.name](comparison))
        say(f"wrote {path}")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("pocketdiff compare", "RUN [RUN ...] [flags]", DESCRIPTION, EXAMPLES)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a finished run, a model file, or a score")
    add_data(parser, "the models' own")
    add_scored(parser)
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="write a page, a table and JSON into it")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--device", metavar="NAME", default="auto", help="where models draw: cpu, cuda, or auto (default: auto)"
    )
    return parser.parse(arguments)


def _named(runs: list[Path]) -> dict[str, Path]:
    """Each run under the shortest name that tells it from the others."""
    if twice := [run for run in runs if [other.resolve() for other in runs].count(run.resolve()) > 1]:
        raise UsageError(f"{twice[0]}: is named twice; name each run once")
    short = [(run.parent if run.name == MODEL_FILE else run).resolve().name.removesuffix(".json") for run in runs]
    names = short if len(set(short)) == len(short) else [str(run) for run in runs]
    return dict(zip(names, runs, strict=True))


def _read(name: str, path: Path) -> Entry:
    """What ``evaluate --json`` wrote.

    Raises:
        UsageError: If the file is something else.
    """
    try:
        found = json.loads(path.read_bytes())
        metrics = {
            figure: None if value is None else Estimate(_finite(value), *map(_finite, found["intervals"][figure]))
            for figure, value in found["metrics"].items()
        }
        real: Metrics = {
            figure: None if value is None else Estimate(*[_finite(value)] * 3)
            for figure, value in found["floor"].items()
        }
        facts = {fact: found["frame"][fact] for fact in ("feature_network", "label_network", *SAME)}
        facts |= {fact: int(found["frame"][fact]) for fact in ("n", "floor_images")}
        for fact in ("drawing_seconds", "network_evaluations"):
            facts[fact] = _finite(found["frame"][fact]) if fact in found["frame"] else None
        facts["drawn_on"] = _hardware(found["frame"].get("drawn_on"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such file; give a finished run, a model file or what evaluate --json wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path}: is not what evaluate --json wrote for one model") from error
    return Entry(name, metrics, real, {**found["frame"], **facts}, {})


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError("a figure is a finite number")
    return number


def _hardware(facts: Any) -> dict[str, Any] | None:
    """A machine as `records.hardware` writes it; none where it is not told, or not so."""
    told = isinstance(facts, dict) and isinstance(facts.get("threads"), int)
    return facts if told and all(isinstance(facts.get(word), str) for word in ("cpu", "device")) else None


def _data(flags: argparse.Namespace, models: Mapping[str, Model], paths: Mapping[str, Path]) -> tuple[str, Dataset]:
    """The name and the data set that all models were trained on.

    Raises:
        EvaluationError: If they were not all trained on the same.
        UsageError: If one was not trained on the data of the flags.
    """
    first = next(iter(models))
    source, data = find_data(flags, models[first])
    for name, model in models.items():
        if model.info.sha256 is not None and not hasattr(flags, "data"):
            check_alike({first: {"data_sha256": data.info.sha256}, name: {"data_sha256": model.info.sha256}})
        check_trained_on(paths[name], model, data)
    return source, data


def _scored(
    flags: argparse.Namespace,
    models: Mapping[str, Model],
    paths: Mapping[str, Path],
    source: str,
    data: Dataset,
    classifiers: Classifiers,
) -> dict[str, Entry]:
    """What each model draws, its figures, and what its run says of itself."""
    known = {name: (_summary(paths[name]), _pictures(paths[name], model)) for name, model in models.items()}
    entries = {}
    with Work() as work:
        reference = Reference.of(data, classifiers, track=work)
        real = floor(reference, flags.n, flags.seed, work)
        for name, model in models.items():

            def track(what: str, done: int, total: int, name: str = name) -> None:
                work(f"{name}: {what}", done, total)

            began = time.perf_counter()
            sample, drawn = draw_sample(model, reference, flags.n, flags.seed, track)
            scored = score(sample, reference, flags.seed, track)
            summary, shown = known[name]
            entries[name] = Entry(
                name,
                scored.metrics,
                real.metrics if real else {},
                frame(flags, paths[name], reference, flags.n, {"data": source, **drawn}, began),
                summary,
                sum(weight.numel() for weight in model.net.parameters()),
                grid(sample, data.info, zoom=1),
                shown,
            )
    return entries


def _summary(path: Path) -> dict[str, Any]:
    """What a run says of its training; nothing where there is only a model file, or a spoilt summary."""
    file = path / "summary.json"
    if not file.exists():
        return {}
    try:
        found = dict(json.loads(file.read_bytes()))
        numbers = {fact: None if found.get(fact) is None else _finite(found[fact]) for fact in NUMBERS}
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        warn(f"{file}: is spoilt, and says nothing of what training cost")
        return {}
    whole = {
        fact: int(value) if value is not None and value == int(value) else value for fact, value in numbers.items()
    }
    told = {fact: str(found[fact]) for fact in ("commit",) if found.get(fact)}
    return {**whole, "hardware": _hardware(found.get("hardware")), **told}


def _pictures(path: Path, model: Model) -> dict[int, Picture]:
    """What training drew, by epoch; of several guidance strengths, at the one next to the model's own scale."""
    shown = views(model)
    if isinstance(model, DiffusionModel):
        shown.sort(key=lambda view: abs((view.w or 0.0) + 1 - model.sampling.scale))
    found = {}
    for file in path.glob(f"pictures/image_ep*{shown[0].suffix}.png") if shown else []:
        epoch = file.name.removeprefix("image_ep").removesuffix(f"{shown[0].suffix}.png")
        with contextlib.suppress(OSError):  # A spoilt picture is not shown.
            if epoch.isdecimal():
                with Image.open(file) as picture:
                    width = picture.width // ZOOM
                w = shown[0].w
                found[int(epoch)] = Picture.of(file.read_bytes(), "" if w is None else f"w = {w:g}", width)
    return found
