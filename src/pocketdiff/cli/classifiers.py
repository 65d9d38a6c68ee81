"""``pocketdiff train-classifiers``: the two classifiers that the scores of a data set need."""

from pathlib import Path
from typing import Annotated

from pocketdiff.cli.console import Bar, cache_folder, say
from pocketdiff.cli.evaluate import DataOptions, load_set
from pocketdiff.cli.flags import Metavar, UsageError, parse
from pocketdiff.evaluation.classifiers import save_classifier, train_and_test


class ClassifierOptions(DataOptions):
    """Trains the two classifiers that the scores of a data set need: one gives features, the other reads labels.
    evaluate and compare do so themselves if there are none yet. Training ends when the accuracy stops improving. Those
    of MNIST come with the package.

    Examples:
      pocketdiff train-classifiers --data photos               into the cache, where evaluate looks
      pocketdiff train-classifiers --out weights               new ones of MNIST; the package's own are not changed
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
    with Bar() as bar:
        written = [save_classifier(out, classifier, data.info) for classifier in train_and_test(data, progress=bar)]
    for path in written:
        say(f"wrote {path}")
    return 0
