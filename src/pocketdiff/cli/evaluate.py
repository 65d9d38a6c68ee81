"""``pocketdiff evaluate``: how good a model's images, or any others, are, beside what real images score."""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pocketdiff import pictures
from pocketdiff.checkpoint import MODEL_FILE, load
from pocketdiff.cli.classifiers import add_data, pick_classifiers, pick_data
from pocketdiff.cli.console import Work, make_room, pick_device, say, warn
from pocketdiff.cli.flags import Parser, UsageError, add_config, apply, given
from pocketdiff.cli.records import hardware, versions
from pocketdiff.config import SamplingConfig, TrainConfig
from pocketdiff.data import DataError, Dataset, load_images
from pocketdiff.evaluate.reference import LEAST, Reference, Track
from pocketdiff.evaluate.report import Evaluation, Sweep, Trial
from pocketdiff.evaluate.score import (
    K,
    Sample,
    check,
    controls,
    draw,
    floor,
    labels_like,
    score,
    some_of,
    train_on_synthetic,
)
from pocketdiff.files import write_file
from pocketdiff.generate import DiffusionModel, GanModel, ImageModel

DESCRIPTION = """Scores images against a data set: how near to real ones they are, how varied, whether they show what
they should, and whether they are copies. TARGET is a finished run, a model file, an .npz file or a folder of images.
Every figure stands beside that of as many real images."""

EXAMPLES = """examples:
  pocketdiff evaluate runs/laptop                              a table, in a few minutes
  pocketdiff evaluate runs/laptop --out report                 and report/index.html, with pictures
  pocketdiff evaluate samples.npz --json score.json            images of any origin, against MNIST
  pocketdiff evaluate pets --data photos --size 32             against your own
  pocketdiff evaluate runs/laptop --n 2000 --scales 1,1.25,1.5,2 --steps 4,6,10,20 --out sweep
"""

LISTS = {"samplers": "sampler", "steps": "steps", "scales": "scale"}
"""The flags that take a list, and what each entry of it is."""
SHOWN = 20
"""The most images of each trial that a sweep's page shows, one a class."""


def main(arguments: list[str]) -> int:
    """Parses the flags, scores, writes, and returns the exit status."""
    flags = _parse(arguments)
    flags.began = time.perf_counter()
    result = _of_images(flags) if _holds_images(flags.target) else _of_model(flags)
    say(result.table())
    if isinstance(result, Evaluation) and (fault := result.verdict()):
        warn(fault)
    for flag, path in _outputs(flags).items():
        content = json.dumps(result.json(), indent=2, allow_nan=False) + "\n" if flag == "--json" else result.page()
        write_file(path, content)
        say(f"wrote {path}")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("pocketdiff evaluate", "TARGET [flags]", DESCRIPTION, EXAMPLES)
    parser.add_argument("target", metavar="TARGET", type=Path, help="a finished run, a model file, or images")
    option = parser.add_argument
    add_data(parser, "the model's own, or mnist")
    add_scored(parser)
    option("--controls", action="store_true", help="score noise, blurred images and shuffled labels as well")
    option("--cas", action="store_true", help="train a classifier on the images, and let it read real ones")
    option("--json", metavar="FILE", type=Path, help="write every figure as JSON")
    option("--out", metavar="FOLDER", type=Path, help="write a page with pictures, FOLDER/index.html")
    option("--overwrite", action="store_true", help="replace files that are there")
    option("--device", metavar="NAME", default="auto", help="where a model draws: cpu, cuda, or auto (default: auto)")
    sweep = parser.add_argument_group("sweep", "every combination is scored, each with the same labels and seeds")
    for name, example in (("samplers", "dpmpp_2m,euler"), ("steps", "10 or 4,6,10"), ("scales", "1,1.5,2")):
        sweep.add_argument(f"--{name}", metavar="LIST", default=argparse.SUPPRESS, help=f"as in {example}")
    add_config(parser, SamplingConfig(), "the model file's; here, the package's own", without=("steps",))
    return parser.parse(arguments)


def add_scored(parser: Parser) -> None:
    """Adds the flags that say how many images are scored, and which."""

    def number(text: str) -> int:
        if int(text) < LEAST:
            raise UsageError(f"--n {text}: a sound score needs {LEAST} images or more")
        return int(text)

    def seed(text: str) -> int:
        if not 0 <= int(text) < 2**30:
            raise UsageError(f"--seed {text}: must be from 0 to 2^30 - 1")
        return int(text)

    option = parser.add_argument
    option("--n", metavar="INT", type=number, default=10_000, help="images that are scored, at most (default: 10000)")
    option("--seed", metavar="INT", type=seed, default=0, help="of the images and of the bootstrap (default: 0)")


def _outputs(flags: argparse.Namespace) -> dict[str, Path]:
    """The files that are written, by the flag that asks for them."""
    outputs = {"--json": flags.json, "--out": None if flags.out is None else flags.out / "index.html"}
    return {flag: path for flag, path in outputs.items() if path is not None}


def _make_room(flags: argparse.Namespace) -> None:
    """Sees, before the work, that its outputs can be written after it."""
    outputs = _outputs(flags)
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UsageError(f"--json {flags.json}: is where --out writes its page; take another --json")
    make_room({path: flag for flag, path in outputs.items()}, flags.overwrite)


def _holds_images(target: Path) -> bool:
    """Whether a target is images, and not a model."""
    if target.is_dir():
        return not any((target / name).exists() for name in (MODEL_FILE, "config.json", "manifest.json"))
    return target.suffix == ".npz"


def _of_images(flags: argparse.Namespace) -> Evaluation:
    """The evaluation of images of any origin."""
    if sampling := [*_lists(flags), *_sampling(flags)]:
        raise UsageError(f"--{sampling[0]}: goes with a model, and {flags.target} holds images")
    source, data = pick_data(flags, TrainConfig())
    sample = Sample(*load_images(str(flags.target), data.info))
    check(sample, data.info)
    if flags.cas and sample.labels is None:
        raise UsageError(f"--cas: {flags.target} holds no labels to learn from; give images with labels")
    _make_room(flags)
    classifiers = pick_classifiers(data)
    with Work() as work:
        reference = Reference.of(data, classifiers, track=work)
        sample = some_of(sample, flags.n, flags.seed)
        return _evaluate(flags, sample, reference, {"data": source}, work)


def _of_model(flags: argparse.Namespace) -> Evaluation | Sweep:
    """The evaluation of images that a model draws, in one way or in many."""
    model = load(flags.target, pick_device(flags.device))
    models = _ways(flags, model)
    source, data = find_data(flags, model)
    check_trained_on(flags.target, model, data)
    if flags.cas and not model.conditional:
        raise UsageError(f"--cas: {flags.target} learned no labels, which a classifier must learn from its images")
    if len(models) > 1 and (flags.controls or flags.cas):
        raise UsageError("--controls and --cas: go with one way of sampling; leave them out of a sweep")
    _make_room(flags)
    classifiers = pick_classifiers(data)
    with Work() as work:
        reference = Reference.of(data, classifiers, memorization=len(models) == 1, track=work)
        if len(models) > 1:
            return _sweep(flags, models, reference, source, work)
        sample, drawn = draw_sample(models[0], reference, flags.n, flags.seed, work)
        return _evaluate(flags, sample, reference, {"data": source, **drawn}, work)


def find_data(flags: argparse.Namespace, model: ImageModel) -> tuple[str, Dataset]:
    """The name and the data set that a model is to be scored against: of the flags, or else its own.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return pick_data(flags, model.config)
    except DataError as error:
        if hasattr(flags, "data"):
            raise
        raise DataError(f"{error}; the model was trained on it: say with --data where it is now") from error


def check_trained_on(target: Path, model: ImageModel, data: Dataset) -> None:
    """Sees that a model was trained on a data set.

    Raises:
        UsageError: If it was not.
    """
    facts = ("channels", "height", "width", "classes")
    alike = all(getattr(model.info, fact) == getattr(data.info, fact) for fact in facts)
    if not alike or model.info.sha256 not in {None, data.info.sha256}:
        raise UsageError(
            f"{target}: was not trained on these data; name the right ones with --data, --size and --split-seed"
        )


def _sampling(flags: argparse.Namespace) -> dict[str, Any]:
    """The flags that say how to sample, but for the lists."""
    return {path: value for path, value in given(flags, SamplingConfig).items() if path not in LISTS}


def _lists(flags: argparse.Namespace) -> dict[str, list[str]]:
    """The lists that are given, of which every combination is wanted."""
    return {name: getattr(flags, name).split(",") for name in LISTS if hasattr(flags, name)}


def _ways(flags: argparse.Namespace, model: DiffusionModel | GanModel) -> Sequence[DiffusionModel | GanModel]:
    """The model in every way of sampling that is asked for, each once."""
    named, lists = _sampling(flags), _lists(flags)
    if isinstance(model, GanModel):
        if asked := [*lists, *named]:
            raise UsageError(f"--{asked[0]}: goes with a diffusion model, and {flags.target} is a GAN")
        return [model]
    if twice := [name for name in lists if LISTS[name] in named]:
        raise UsageError(f"--{LISTS[twice[0]]} and --{twice[0]}: say the same; give one of them")
    for name, values in lists.items():  # One by one, so that an error names its list.
        for value in values:
            try:
                apply(SamplingConfig(), argparse.Namespace(**{LISTS[name]: value}))
            except UsageError as error:
                fault = str(error).partition(": ")[2]
                raise UsageError(f"--{name} {getattr(flags, name)}: {value!r}: {fault}") from error
    fields = [LISTS[name] for name in lists]
    ways = [
        apply(model.sampling, argparse.Namespace(**named, **dict(zip(fields, values, strict=True))))
        for values in product(*lists.values())
    ]
    models = [model.with_sampling(way) for way in dict.fromkeys(ways)]
    for way in models:
        way.grid()  # There must be so many levels.
    return models


def _sweep(
    flags: argparse.Namespace,
    models: Sequence[DiffusionModel | GanModel],
    reference: Reference,
    source: str,
    work: Work,
) -> Sweep:
    """Every way's score, told as it comes."""
    labels = torch.tensor(labels_like(reference.data.train.labels, flags.n))
    firsts = [int((labels == label).nonzero()[0]) for label in labels.unique()[:SHOWN]]
    trials = []
    for number, model in enumerate(models, 1):
        which = f"{number} of {len(models)}, "
        sample, drawn = draw_sample(
            model, reference, flags.n, flags.seed, lambda what, *rest, which=which: work(which + what, *rest)
        )
        trial = Trial(drawn, score(sample, reference, flags.seed, work).metrics, sample.pixels[firsts])
        trials.append(trial)
        say(trial.line())
    real = floor(reference, flags.n, flags.seed, work)
    return Sweep(reference, trials, real, frame(flags, flags.target, reference, flags.n, {"data": source}, flags.began))


def draw_sample(
    model: DiffusionModel | GanModel, reference: Reference, n: int, seed: int, track: Track
) -> tuple[Sample, dict[str, Any]]:
    """Images of a model, with each class as frequent as in the training split; and what is to be said of them."""
    began = time.perf_counter()
    sample = draw(model, reference, n, seed, track)
    seconds = time.perf_counter() - began
    if fault := pictures.health(sample.pixels):
        warn(fault)
    way = {}
    if isinstance(model, DiffusionModel):
        sampling = model.sampling
        way = {
            "sampler": sampling.sampler,
            "steps": len(model.grid()) - 1,
            "scale": sampling.scale,
            "schedule": (sampling.schedule or model.config.schedule).model_dump(mode="json"),
        }
    drawn = {
        **way,
        "network_evaluations": model.evaluations(),
        "drawing_seconds": seconds,
        "drawn_on": hardware(model.device),
    }
    return sample, drawn


def _evaluate(
    flags: argparse.Namespace, sample: Sample, reference: Reference, about: Mapping[str, Any], work: Work
) -> Evaluation:
    """The images' score, and all that it is read beside."""
    n = len(sample)
    scored = score(sample, reference, flags.seed, work)
    real = floor(reference, n, flags.seed, work)
    made = controls(reference, n, flags.seed) if flags.controls and real else {}
    others = {name: score(control, reference, flags.seed, work) for name, control in made.items()}
    if flags.cas:
        scored.metrics.update(train_on_synthetic(sample, reference.data, flags.seed, work))
    return Evaluation(
        sample, reference, scored, real, others, frame(flags, flags.target, reference, n, about, flags.began)
    )


def frame(
    flags: argparse.Namespace, target: Path, reference: Reference, n: int, about: Mapping[str, Any], began: float
) -> dict[str, Any]:
    """What every figure must name: with the same frame it can be made again."""
    info, nets = reference.data.info, reference.classifiers
    return {
        "target": os.fsencode(target).decode(errors="replace"),
        "n": n,
        "seed": flags.seed,
        **about,
        "feature_network": nets.features.name,
        "feature_network_sha256": nets.features.sha256,
        "feature_network_accuracy": nets.features.accuracy,
        "label_network": nets.reader.name,
        "label_network_sha256": nets.reader.sha256,
        "label_network_accuracy": nets.reader.accuracy,
        "data_sha256": info.sha256,
        "train_images": info.train_images,
        "test_images": info.test_images,
        "compared_with": len(reference.train_part(n)),
        "floor_images": len(reference.test_part(n)),
        "k": K,
        "seconds": time.perf_counter() - began,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
