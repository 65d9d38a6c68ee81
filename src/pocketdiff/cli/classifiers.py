"""``pocketdiff train-classifiers``, and where evaluation finds the classifiers of a data set, or trains them."""

import argparse
from pathlib import Path

import platformdirs

from pocketdiff.cli.console import Bar, make_folder, say, warn
from pocketdiff.cli.flags import Parser, UsageError, apply
from pocketdiff.config import CommonConfig, TrainConfig
from pocketdiff.data import Dataset, load_data
from pocketdiff.evaluate.classifiers import (
    KINDS,
    SHIPPED,
    Classifier,
    Classifiers,
    build,
    find_classifier,
    finished,
    save_classifier,
    train_classifier,
    training_length,
)
from pocketdiff.evaluate.distances import EvaluationError
from pocketdiff.evaluate.reference import LEAST

DESCRIPTION = """Trains the two classifiers that evaluation needs for a data set: one gives features, the other reads
labels. Evaluation does so by itself where they are missing; those of MNIST come with the package."""

EXAMPLES = """examples:
  pocketdiff train-classifiers --data photos --size 32     into the cache, where evaluation looks
  pocketdiff train-classifiers --out weights               those of MNIST, as they come with the package
"""


def main(arguments: list[str]) -> int:
    """Parses the flags, trains, and returns the exit status."""
    parser = Parser("pocketdiff train-classifiers", "[flags]", DESCRIPTION, EXAMPLES)
    add_data(parser, "mnist")
    option = parser.add_argument
    option("--out", metavar="FOLDER", type=Path, default=cache(), help=f"where they go (default: {cache()})")
    flags = parser.parse(arguments)
    _, data = pick_data(flags, TrainConfig())
    make_folder(flags.out)
    for kind in KINDS:
        classifier = _train(kind, data)
        say(f"wrote {save_classifier(flags.out, classifier, data.info)}")
    return 0


def add_data(parser: Parser, default: str) -> None:
    """Adds the flags that say which data set it is."""
    option = parser.add_argument
    option(
        "--data", metavar="SOURCE", default=argparse.SUPPRESS,
        help=f"mnist, or the path of a data set (default: {default})",
    )  # fmt: skip
    option(
        "--size", metavar="INT", nargs="+", default=argparse.SUPPRESS,
        help="height and width to bring every image of the data set to, or one number for both",
    )  # fmt: skip
    option(
        "--split-seed", metavar="INT", default=argparse.SUPPRESS,
        help="the seed of the training run, which decides what is held out where the data set has no test split",
    )  # fmt: skip


def pick_data(flags: argparse.Namespace, config: CommonConfig) -> tuple[str, Dataset]:
    """The name and the data set of the flags; where they say nothing, of a config."""
    names = {"data": "data", "size": "size", "split_seed": "seed"}
    given = {field: getattr(flags, name) for name, field in names.items() if hasattr(flags, name)}
    try:
        config = apply(config, argparse.Namespace(**given))
    except UsageError as error:
        raise UsageError(str(error).replace("--seed", "--split-seed")) from error
    return config.data, load_data(config.data, config.size, config.seed)


def check_data(data: Dataset) -> None:
    """Sees that there are training images enough to score by.

    Raises:
        EvaluationError: If there are fewer than `LEAST`.
    """
    if (n := len(data.train)) < LEAST:
        raise EvaluationError(f"the data have {n:,} training images, and a sound score needs {LEAST} or more; add some")


def cache() -> Path:
    """Where classifiers that do not come with the package are kept."""
    return platformdirs.user_cache_path("pocketdiff") / "classifiers"


def pick_classifiers(data: Dataset) -> Classifiers:
    """A data set's classifiers: those that come with the package, or lie in the cache, or else new ones."""
    check_data(data)
    found = {kind: find_classifier(kind, data.info, [SHIPPED, cache()]) for kind in KINDS}
    if missing := [kind for kind, classifier in found.items() if classifier is None]:
        say(
            f"these data have no {' and no '.join(missing)} classifier yet: training, once, for all evaluations to come"
        )
    return Classifiers(*(classifier or _keep(_train(kind, data), data) for kind, classifier in found.items()))


def _train(kind: str, data: Dataset) -> Classifier:
    """A new classifier, with a word on how good it is."""
    net = build(kind, data.info)
    with Bar(f"training the {kind} classifier", training_length(len(data.train))) as bar:
        for seen in train_classifier(net, data.train, list(KINDS).index(kind)):
            bar.update(seen)
    classifier = finished(kind, net, data)
    say(f"{classifier.name} reads {classifier.accuracy:.2%} of the {len(data.test):,} test images right")
    return classifier


def _keep(classifier: Classifier, data: Dataset) -> Classifier:
    """Puts a classifier into the cache, if that can be."""
    try:
        save_classifier(cache(), classifier, data.info)
    except OSError as error:
        warn(f"{cache()}: the classifier cannot be kept there ({error.strerror}), and is trained again next time")
    return classifier
