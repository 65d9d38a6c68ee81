"""``pocketdiff compare``: models side by side, scored alike, with what each of them costs."""

import argparse
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pocketdiff.checkpoint import load
from pocketdiff.cli.classifiers import add_data, pick_classifiers
from pocketdiff.cli.console import Work, check_free, make_folder, pick_device, say
from pocketdiff.cli.evaluate import add_scored, check_trained_on, draw_sample, find_data, frame
from pocketdiff.cli.flags import Parser, UsageError
from pocketdiff.cli.gallery import ZOOM, views
from pocketdiff.evaluate.comparison import SAME, Comparison, Entry, check_alike
from pocketdiff.evaluate.distances import Estimate
from pocketdiff.evaluate.reference import Reference
from pocketdiff.evaluate.report import Picture, grid
from pocketdiff.evaluate.score import K, Metrics, Sample, floor, score
from pocketdiff.files import write_file
from pocketdiff.generate import DiffusionModel, GanModel

DESCRIPTION = """Scores models alike and sets them side by side: how near to real images they come, how varied they are,
how well they heed labels, what they cost in training and in drawing; and says which differences are more than chance.
RUN is a finished run, a model file, or what evaluate --json wrote."""

EXAMPLES = """examples:
  pocketdiff compare runs/gan runs/gan-conditional runs/laptop --out report
  pocketdiff compare runs/laptop runs/other --n 2000
  pocketdiff compare here.json there.json            what evaluate --json wrote on two machines
"""

Model = DiffusionModel | GanModel


def main(arguments: list[str]) -> int:
    """Parses the flags, draws and scores, writes, and returns the exit status."""
    flags = _parse(arguments)
    flags.began = time.perf_counter()
    paths = _named(flags.runs)
    read = {name: _read(name, path) for name, path in paths.items() if path.suffix == ".json"}
    models = {name: load(path, pick_device(flags.device)) for name, path in paths.items() if name not in read}
    check_alike({name: entry.frame for name, entry in read.items()})
    outputs = _make_room(flags)
    real = None
    if models:
        made, real = _score(flags, {name: paths[name] for name in models}, models, read)
        read |= made
    comparison = Comparison([read[name] for name in paths], real)
    say(comparison.table())
    contents = {
        "index.html": comparison.page,
        "table.md": comparison.table,
        "comparison.json": lambda: json.dumps(comparison.json(), indent=2, allow_nan=False) + "\n",
    }
    for path in outputs:
        write_file(path, contents[path.name]())
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
    short = [run.resolve().name.removesuffix(".safetensors").removesuffix(".json") for run in runs]
    return {name if short.count(name) == 1 else str(run): run for name, run in zip(short, runs, strict=True)}


def _make_room(flags: argparse.Namespace) -> list[Path]:
    """Sees, before the work, that its outputs can be written after it."""
    if flags.out is None:
        return []
    outputs = [flags.out / name for name in ("index.html", "table.md", "comparison.json")]
    make_folder(flags.out)
    for path in outputs:
        check_free(path, flags.overwrite)
    if not os.access(flags.out, os.W_OK):
        raise UsageError(f"--out {flags.out}: nothing can be written there; take another --out")
    return outputs


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
        counts = {fact: int(found["frame"][fact]) for fact in ("n", "floor_images")}
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such file; give a finished run, a model file or what evaluate --json wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path}: is not what evaluate --json wrote for one model") from error
    return Entry(name, metrics, real, {**found["frame"], **facts, **counts}, {})


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError("a figure is a finite number")
    return number


def _score(
    flags: argparse.Namespace, paths: Mapping[str, Path], models: Mapping[str, Model], read: Mapping[str, Entry]
) -> tuple[dict[str, Entry], Picture]:
    """Every model's entry, and real images to see beside theirs."""
    first = next(iter(models))
    source, data = find_data(flags, models[first])
    for name, model in models.items():
        if model.info.sha256 not in {None, data.info.sha256} and not hasattr(flags, "data"):
            check_alike({first: {"data_sha256": data.info.sha256}, name: {"data_sha256": model.info.sha256}})
        check_trained_on(paths[name], model, data)
    classifiers = pick_classifiers(data)
    to_come = {
        "data_sha256": data.info.sha256,
        "feature_network_sha256": classifiers.features.sha256,
        "label_network_sha256": classifiers.reader.sha256,
        "n": flags.n,
        "k": K,
    }
    check_alike({**{name: entry.frame for name, entry in read.items()}, first: to_come})
    entries = {}
    with Work() as work:
        reference = Reference.of(data, classifiers, track=work)
        lowest = floor(reference, flags.n, flags.seed, work)
        for name, model in models.items():

            def track(what: str, done: int, total: int, name: str = name) -> None:
                work(f"{name}: {what}", done, total)

            sample, drawn = draw_sample(model, reference, flags.n, flags.seed, track)
            scored = score(sample, reference, flags.seed, track)
            entries[name] = Entry(
                name,
                scored.metrics,
                lowest.metrics if lowest else {},
                frame(flags, paths[name], reference, flags.n, {"data": source, **drawn}),
                _summary(paths[name]),
                sum(weight.numel() for weight in model.net.parameters()),
                grid(sample, data.info, zoom=1),
                _pictures(paths[name], model),
            )
    test = data.test
    return entries, grid(Sample(test.pixels, test.labels), data.info, zoom=1)


def _summary(path: Path) -> dict[str, Any]:
    """What a run says of its training; nothing where there is only a model file, or a spoilt summary."""
    try:
        found = json.loads((path / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _pictures(path: Path, model: Model) -> dict[int, Picture]:
    """What training drew, by epoch; of several guidance strengths, at the one next to the model's own scale."""
    shown = views(model)
    if isinstance(model, DiffusionModel):
        shown.sort(key=lambda view: abs((view.w or 0.0) + 1 - model.sampling.scale))
    found = {}
    for file in path.glob(f"pictures/image_ep*{shown[0].suffix}.png") if shown else []:
        epoch = file.name.removeprefix("image_ep").removesuffix(f"{shown[0].suffix}.png")
        if epoch.isdecimal():
            with Image.open(file) as picture:
                width = picture.width // ZOOM
            w = shown[0].w
            found[int(epoch)] = Picture.of(file.read_bytes(), "" if w is None else f"w = {w:g}", width)
    return found
