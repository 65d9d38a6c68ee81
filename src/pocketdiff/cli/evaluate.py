"""``pocketdiff evaluate``: the scores of a model's images, or of any others, beside those of real images."""

import json
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pocketdiff.checkpoint import load
from pocketdiff.cli.console import Bar, cache_folder, check_free, pick_device, say, write_files
from pocketdiff.cli.flags import Given, Metavar, Positional, UsageError, Words, apply, parse
from pocketdiff.cli.sample import DEFAULTS, check_settings, sampled
from pocketdiff.config import SamplingConfig, Side
from pocketdiff.data import Dataset, load_data, load_images
from pocketdiff.errors import DataError
from pocketdiff.evaluation import Evaluation, Sample, Sweep, evaluate, sweep
from pocketdiff.evaluation.classifiers import MIN_IMAGES
from pocketdiff.folder import RunFolder
from pocketdiff.frozen import Frozen
from pocketdiff.model import ImageModel

WORDS = Words(
    "evaluate",
    "TARGET [flags]",
    """Scores images against a data set: how close they are to real ones, how varied, whether they show the right class,
and whether they are copies. TARGET is a finished run, a model file, an .npz file or a folder of images. Every score is
shown with the score of as many real images.""",
    """examples:
  pocketdiff evaluate runs/laptop                              a table, in a few minutes
  pocketdiff evaluate runs/laptop --out report                 and report/index.html, with pictures
  pocketdiff evaluate samples.npz --json score.json            images of any origin, against MNIST
  pocketdiff evaluate pets --data photos --size 32             against your own data set
  pocketdiff evaluate runs/laptop --n 2000 --scales 1,1.25,1.5,2 --steps 4,6,10,20 --out sweep
  pocketdiff evaluate runs/laptop --intervals none,0.3:3 --guides none,runs/quick
""",
)
LISTS = {"samplers": "sampler", "steps": "steps", "scales": "scale", "intervals": "interval", "guides": "guide"}
"""The flags that take a list, and the sampling setting of its values."""


class DataOptions(Frozen):
    """Data: the data set to compare with."""

    data: Annotated[str | None, Metavar("SOURCE")] = None
    """A data set: mnist, or a path (default: the model's own, or mnist)."""
    size: Annotated[tuple[Side, ...] | None, Field(max_length=2)] = None
    """Height and width for every image of the data set, or one number for both."""
    split_seed: int | None = None
    """The training run's seed, which chooses the test images of a data set without a test split."""


class ScoreOptions(DataOptions):
    """Scores: how many images are scored, and which."""

    n: Annotated[int, Field(ge=MIN_IMAGES)] = 10_000
    """Images to score, at most."""
    seed: Annotated[int, Field(ge=0, lt=2**30)] = 0
    """Seed of the images and of the bootstrap."""


class SweepOptions(Frozen):
    """Sweep: every combination is scored, all with the same labels and seeds."""

    samplers: Annotated[str | None, Metavar("LIST")] = None
    """Such as dpmpp_2m,euler."""
    steps: Annotated[str | None, Metavar("LIST")] = None
    """Such as 10 or 4,6,10."""
    scales: Annotated[str | None, Metavar("LIST")] = None
    """Such as 1,1.5,2."""
    intervals: Annotated[str | None, Metavar("LIST")] = None
    """Guidance intervals, such as none,0.3:3."""
    guides: Annotated[str | None, Metavar("LIST")] = None
    """Weaker models for autoguidance, such as none,runs/early."""


class EvaluateOptions(ScoreOptions, SweepOptions):
    """What ``pocketdiff evaluate`` takes beside the sampling settings."""

    target: Annotated[Path, Positional("TARGET")]
    """A finished run, a model file, or images."""
    out: Annotated[Path | None, Metavar("FOLDER")] = None
    """Write a page with pictures, FOLDER/index.html."""
    json_: Annotated[Path | None, Metavar("FILE")] = None
    """Write every score as JSON."""
    overwrite: bool = False
    """Replace existing files."""
    controls: bool = False
    """Score noise, blurred images and shuffled labels as well."""
    cas: bool = False
    """Train a classifier on the images, and test it on real ones."""
    device: Annotated[str, Metavar("NAME")] = "auto"
    """Where a model draws: cpu, cuda, or auto: a GPU if there is one."""


def main(arguments: list[str]) -> int:
    """Scores, writes, and returns the exit status."""
    options, given = parse(WORDS, arguments, EvaluateOptions, SamplingConfig(), DEFAULTS)
    page = options.out and options.out / "index.html"
    outputs = {flag: path for flag, path in {"--json": options.json_, "--out": page}.items() if path is not None}
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UsageError("is where --out writes its page; take another --json", f"--json {options.json_}")
    for flag, path in outputs.items():
        check_free(path, options.overwrite, flag)
    is_run = RunFolder(options.target).is_run()
    holds_images = not is_run if options.target.is_dir() else options.target.suffix == ".npz"
    result = _of_images(options, given) if holds_images else _of_model(options, given)
    text = json.dumps(result.json(), indent=2, allow_nan=False) + "\n"
    write_files({path: text if flag == "--json" else result.page() for flag, path in outputs.items()})
    say(result.table())
    for path in outputs.values():
        say(f"wrote {path}")
    return 0


def _of_images(options: EvaluateOptions, given: Given) -> Evaluation:
    if settings := [*_lists(options), *given]:
        raise UsageError(f"needs a model, and {options.target} holds images", f"--{settings[0]}")
    data = load_set(options)
    return _evaluate(options, Sample(*load_images(str(options.target), data.info)), data)


def _of_model(options: EvaluateOptions, given: Given) -> Evaluation | Sweep:
    model, lists = load(options.target, pick_device(options.device)), _lists(options)
    check_settings(model, [*lists, *given], options.target)
    models = sampled(model, _combinations(options, lists, given))
    data = load_set(options, model)
    if len(models) == 1:
        return _evaluate(options, models[0], data)
    if options.controls or options.cas:
        raise UsageError("--controls and --cas need a single sampling; leave them out of a sweep")
    with Bar() as bar:
        return sweep(
            models, data, n=options.n, seed=options.seed, name=str(options.target), cache=cache_folder(), progress=bar
        )


def _evaluate(options: EvaluateOptions, target: ImageModel | Sample, data: Dataset) -> Evaluation:
    with Bar() as bar:
        return evaluate(
            target, data, n=options.n, seed=options.seed, controls=options.controls, cas=options.cas,
            name=str(options.target), cache=cache_folder(), progress=bar,
        )  # fmt: skip


def _lists(options: EvaluateOptions) -> dict[str, list[str]]:
    """The lists that are given."""
    return {name: text.split(",") for name in LISTS if (text := getattr(options, name)) is not None}


def _combinations(options: EvaluateOptions, lists: dict[str, list[str]], given: Given) -> list[Given]:
    """The sampling settings of every combination.

    Raises:
        UsageError: If a value does not fit, naming its list.
    """
    for name, values in lists.items():
        if LISTS[name] in given:
            raise UsageError(f"--{LISTS[name]} and --{name} exclude each other; give one of them")
        for value in values:
            try:
                apply(SamplingConfig(), {LISTS[name]: value})
            except UsageError as error:
                raise UsageError(f"{value!r}: {error.reason}", f"--{name} {getattr(options, name)}") from error
    fields = [LISTS[name] for name in lists]
    return [given | dict(zip(fields, values, strict=True)) for values in product(*lists.values())]


def load_set(options: DataOptions, model: ImageModel | None = None) -> Dataset:
    """The data set of the options, or else the model's own.

    Raises:
        DataError: If it cannot be read.
    """
    source, size, seed = (
        ("mnist", None, 0) if model is None else (model.config.data, model.config.size, model.config.seed)
    )
    if options.size is not None:
        size = options.size[0], options.size[-1]
    try:
        return load_data(options.data or source, size, seed if options.split_seed is None else options.split_seed)
    except DataError as error:
        if model is None or options.data is not None:
            raise
        raise DataError(f"{error}; the model was trained on these data: give their path now with --data") from error
