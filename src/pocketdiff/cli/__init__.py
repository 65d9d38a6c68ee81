"""The command line: ``pocketdiff VERB ...``, one module a verb. Nothing below this layer prints or chooses paths."""

import os
import sys
import traceback
from collections.abc import Callable

from pocketdiff.errors import PocketdiffError


def _train(arguments: list[str]) -> int:
    from pocketdiff.cli.train import main

    return main(arguments)


def _sample(arguments: list[str]) -> int:
    from pocketdiff.cli.sample import main

    return main(arguments)


def _evaluate(arguments: list[str]) -> int:
    from pocketdiff.cli.evaluate import main

    return main(arguments)


def _compare(arguments: list[str]) -> int:
    from pocketdiff.cli.compare import main

    return main(arguments)


def _train_classifiers(arguments: list[str]) -> int:
    from pocketdiff.cli.classifiers import main

    return main(arguments)


def _info(arguments: list[str]) -> int:
    from pocketdiff.cli.info import main

    return main(arguments)


def _import_ddpm(arguments: list[str]) -> int:
    from pocketdiff.cli.import_ddpm import main

    return main(arguments)


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "train": ("train a model on a data set, or go on with an unfinished run", _train),
    "sample": ("draw images with a trained model", _sample),
    "evaluate": ("score a model, or any images: how real, how varied, how new", _evaluate),
    "compare": ("set models side by side: figures, pictures, costs", _compare),
    "train-classifiers": ("make the two classifiers that scores of a data set need", _train_classifiers),
    "info": ("say what a run or a model file holds", _info),
    "import-ddpm": ("make a model file of what the original script saved", _import_ddpm),
}

HELP = """pocketdiff: class-conditional diffusion for small images

usage: pocketdiff VERB ... [--debug]

{verbs}

  pocketdiff train                                five minutes of training on MNIST, into runs/laptop
  pocketdiff sample runs/laptop --labels 3,1,4    draws these digits, into samples.png
  pocketdiff evaluate runs/laptop                 says how good they are
  pocketdiff train --help                         every flag

--debug shows the traceback of an error. Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""


def main() -> None:
    """The program ``pocketdiff``: exits with 0, 1 (failed), 2 (bad input) or 130 (interrupted)."""
    # Read when torch is loaded: its OpenMP threads may wait busily only for microseconds. By default they do so for
    # milliseconds, and beside any other busy program training is then up to 50 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command line and returns its exit status; every error is one sentence on standard error."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(HELP.format(verbs="\n".join(f"  {verb:19}{summary}" for verb, (summary, _) in VERBS.items())))
        return 0
    if arguments[0] == "--version":
        from pocketdiff import __version__

        print(__version__)
        return 0
    if arguments[0] not in VERBS:
        return _fail(f"there is no verb {arguments[0]!r}; the verbs are {', '.join(VERBS)}", 2)
    try:
        return VERBS[arguments[0]][1](arguments[1:])
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, PocketdiffError):
            return _fail(str(error), error.status)
        if isinstance(error, OSError):
            place = f"{error.filename}: " if error.filename else ""
            return _fail(f"{place}{error.strerror or error}", 1)
        return _fail(f"--debug shows where: an unforeseen {type(error).__name__}: {error}", 1)


def _fail(message: str, status: int) -> int:
    lines = message.strip().splitlines() or [""]
    print(f"pocketdiff: {lines[0]}", file=sys.stderr)
    return status
