"""``pocketdiff train-classifiers``: the two classifiers that the scores of a data set need."""

from pathlib import Path
from typing import Annotated

from pocketdiff.cli.console import Bar, cache_folder, say
from pocketdiff.cli.evaluate import DataOptions, load_set
from pocketdiff.cli.flags import Metavar, UsageError, parse
from pocketdiff.evaluation.classifiers import KINDS, save_classifier, train_and_test


class ClassifierOptions(DataOptions):
    """Trains the two classifiers that the scores of a data set need: one gives features, the other reads labels.
    evaluate and compare do so themselves if there are none yet. Those of MNIST come with the package.

    Examples:
      pocketdiff train-classifiers --data photos --size 32     into the cache, where evaluate looks
      pocketdiff train-classifiers --out weights               those of MNIST, as in the package
    """

    out: Annotated[Path | None, Metavar("FOLDER")] = None
    """Where they go (default: the user's cache folder, where evaluate looks)."""


def main(arguments: list[str]) -> int:
    """Trains, writes, and returns the exit status."""
    options, _ = parse("train-classifiers", arguments, ClassifierOptions)
    out = options.out or cache_folder()
    data = load_set(options)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot be a folder ({error.strerror}); take another --out", f"--out {out}") from error
    for kind in KINDS:
        with Bar() as bar:
            classifier = train_and_test(kind, data, bar)
        say(f"wrote {save_classifier(out, classifier, data.info)}")
    return 0
