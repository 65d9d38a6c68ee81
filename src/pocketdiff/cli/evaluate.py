"""``pocketdiff evaluate``: the scores of a model's images, or of any others, beside those of real images."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pocketdiff.checkpoint import check_changeable, keep_sampling, load
from pocketdiff.cli.console import Bar, cache_folder, check_free, finish, pick_device, say
from pocketdiff.cli.flags import Given, Metavar, Positional, UsageError, apply, parse
from pocketdiff.cli.sample import DEFAULTS, sampled
from pocketdiff.config import MethodConfig, SamplingConfig
from pocketdiff.data import Dataset, Side, load_data, load_images
from pocketdiff.evaluation import Evaluation, Sample, Sweep, evaluate, sweep
from pocketdiff.evaluation.classifiers import MIN_IMAGES
from pocketdiff.evaluation.records import TrialRecord
from pocketdiff.evaluation.sample import MAX_IMAGES, own_data
from pocketdiff.folder import RunFolder
from pocketdiff.frozen import Frozen
from pocketdiff.model import ImageModel

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

    n: Annotated[int, Field(ge=MIN_IMAGES, le=MAX_IMAGES)] = 10_000
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
    keep_best: bool = False
    """Keep the best settings in the model file, as the verb set does."""


class EvaluateOptions(ScoreOptions, SweepOptions):
    """Scores images against a data set: how realistic they are, how varied, whether they show the right class, and
    whether they are copies. Every score is shown with the score of as many real images. TARGET is a finished run, a
    model file, a model of the package (mnist), an .npz file or a folder of images.

    Examples:
      pocketdiff evaluate runs/laptop                              a table, in a few minutes
      pocketdiff evaluate runs/laptop --out report                 and report/index.html, with pictures
      pocketdiff evaluate samples.npz --json score.json            images of any origin, against MNIST
      pocketdiff evaluate runs/laptop --augment                    do the images help to train a classifier?
      pocketdiff evaluate pets --data photos --size 32             against your own data set
      pocketdiff evaluate runs/laptop --n 2000 --scales 1,1.25,1.5,2 --steps 4,6,10,20 --out sweep
      pocketdiff evaluate runs/laptop --n 2000 --scales 1.2,1.4,1.6 --keep-best
      pocketdiff evaluate runs/laptop --intervals none,0.3:3 --guides none,runs/quick
    """

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
    augment: bool = False
    """Train classifiers on real images, with and without these added: do they help? Takes many minutes."""
    device: Annotated[str, Metavar("NAME")] = "auto"
    """Where a model draws: cpu, cuda, or auto: a GPU if there is one."""


def main(arguments: list[str]) -> int:
    """Scores, writes, and returns the exit status."""
    options, given = parse("evaluate", arguments, EvaluateOptions, SamplingConfig(), DEFAULTS)
    page = options.out and options.out / "index.html"
    outputs = {flag: path for flag, path in {"--json": options.json_, "--out": page}.items() if path is not None}
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UsageError("is where --out writes its page; take another --json", f"--json {options.json_}")
    for flag, path in outputs.items():
        check_free(path, options.overwrite, flag)
    result = _scored(options, given)
    text = json.dumps(result.json(), indent=2, allow_nan=False) + "\n"
    files = {path: text if flag == "--json" else result.page() for flag, path in outputs.items()}
    status = finish(files, result.table())
    if options.keep_best and isinstance(result, Sweep):
        _keep(result.best(), options.target)
    return status


def _keep(best: TrialRecord | None, target: Path) -> None:
    """Keeps the sampling settings of the best trial of a sweep in the model file."""
    if best is None:
        say(f"no trial is accurate enough to be the best, so {target} was not changed")
    else:
        keep_sampling(target, SamplingConfig(**best.drawing.sampling.model_dump(exclude={"nfe"})))
        say(f"{target} now draws by {best.drawing.how}")


def _scored(options: EvaluateOptions, given: Given) -> Evaluation | Sweep:
    lists = {name: text.split(",") for name in LISTS if (text := getattr(options, name)) is not None}
    path, name, settings = options.target, str(options.target), [*lists, *given]
    target: ImageModel | Sample
    models: Sequence[ImageModel] = []
    settings += ["keep-best"] * options.keep_best
    if path.suffix == ".npz" or (path.is_dir() and not RunFolder(path).is_run()):
        if settings:
            raise UsageError(f"needs a model, and {path} holds images", f"--{settings[0]}")
        data = load_set(options)
        target = Sample(*load_images(name, data.info))
    else:
        if options.keep_best:
            check_changeable(path)
        model = load(path, pick_device(options.device))
        models = sampled(model, _combinations(options, lists, given), settings, path)
        if options.keep_best and len(models) < 2:
            raise UsageError("needs a sweep: give several settings, such as --scales 1.2,1.4,1.6", "--keep-best")
        if options.keep_best and any(each.sampling and each.sampling.guide for each in models):
            raise UsageError("cannot keep a guide, because a model file must be complete on its own", "--keep-best")
        data, target = load_set(options, model), models[0]
    n, seed, cache = options.n, options.seed, cache_folder()
    with Bar() as bar:
        if len(models) < 2:
            return evaluate(
                target, data, n=n, seed=seed, controls=options.controls, cas=options.cas, augment=options.augment,
                name=name, cache=cache, progress=bar,
            )  # fmt: skip
        if options.controls or options.cas or options.augment:
            raise UsageError("--controls, --cas and --augment need a single sampling; leave them out of a sweep")
        return sweep(models, data, n=n, seed=seed, name=name, cache=cache, progress=bar)


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
    if model is not None and (options.data, options.size, options.split_seed) == (None, None, None):
        return own_data(model)
    config = MethodConfig(kind="none") if model is None else model.config
    size = None if model is None else (model.info.height, model.info.width)
    if options.size is not None:
        size = options.size[0], options.size[-1]
    seed = config.seed if options.split_seed is None else options.split_seed
    return load_data(options.data or config.data, size, seed)
