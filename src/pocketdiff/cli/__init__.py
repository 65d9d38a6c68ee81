"""The command line: ``pocketdiff VERB ...``, one module per verb, imported when it is used."""

import importlib
import os
import sys
import traceback
from pathlib import Path

from pocketdiff.cli.output import protect, visible
from pocketdiff.errors import PluginError, PocketdiffError

VERBS = {
    "train": ("train a model on a data set, or continue an unfinished run", "pocketdiff.cli.train"),
    "distill": ("make a model that draws in one or two evaluations", "pocketdiff.cli.distill"),
    "sample": ("draw images with a trained model", "pocketdiff.cli.sample"),
    "evaluate": ("score a model, or any images: realism, variety, labels, copies", "pocketdiff.cli.evaluate"),
    "compare": ("compare models: scores, costs, pictures", "pocketdiff.cli.compare"),
    "train-classifiers": ("train the two classifiers that the scores of a data set need", "pocketdiff.cli.classifiers"),
    "info": ("show what a run or a model file contains", "pocketdiff.cli.info"),
    "set": ("keep other sampling settings in a model file", "pocketdiff.cli.set"),
    "import-ddpm": ("convert a model of the original DDPM-MNIST script", "pocketdiff.cli.import_ddpm"),
}
"""For each verb its summary, and the module whose ``main(arguments)`` returns the exit status."""

SYNONYMS = {
    "train": "fit learn run resume finetune fine-tune",
    "sample": "generate gen draw create synthesize",
    "evaluate": "test eval score fid metrics validate",
    "distill": "consistency turbo lcm student",
    "compare": "diff versus vs",
    "info": "show inspect describe print cat",
    "set": "configure config update edit",
    "import-ddpm": "import convert",
}
"""Verbs by the names that other programs give them."""

HELP = """pocketdiff: class-conditional diffusion for small images

usage: pocketdiff VERB ... [--plugin MODULE] [--debug]

{verbs}

  pocketdiff sample --labels 3,1,4                draws these digits with the model of the package, into samples.png
  pocketdiff train                                trains on MNIST, about five minutes on two cores
  pocketdiff sample runs/laptop --labels 3,1,4    draws with that model
  pocketdiff evaluate runs/laptop                 scores the model
  pocketdiff train --help                         explains the common flags; --help-all lists every flag

--plugin imports a Python module or a .py file first, such as your own network or sampler. It can be repeated.
--debug shows the traceback of an error. --version prints the version.
Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""


def main() -> None:
    """The program ``pocketdiff``: exits with 0, 1 (failed), 2 (bad input) or 130 (interrupted)."""
    output = protect()
    # OpenMP reads this when torch is loaded. Its threads then wait busily for microseconds instead of milliseconds;
    # otherwise training beside another busy program is up to 50 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    status = run(sys.argv[1:])
    output.flush()
    if output.fault is not None and status == 0:
        status = _fail(f"standard output: {output.fault.strerror}", 1)
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Runs a command line and returns its exit status; every error is one sentence on standard error."""
    debug = "--debug" in arguments
    try:
        return _run([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if debug:
            print(visible(traceback.format_exc()), file=sys.stderr)
        if isinstance(error, PocketdiffError):
            return _fail(str(error), error.status)
        if isinstance(error, OSError):
            place = f"{error.filename}: " if error.filename else ""
            return _fail(f"{place}{error.strerror or error}", 1)
        return _fail(f"unexpected {type(error).__name__} (--debug shows where): {error}", 1)


def _run(arguments: list[str]) -> int:
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, module = word.partition("=")
        if flag == "--plugin":
            import_plugin(module if equals else next(words, ""))
        else:
            rest.append(word)
    if not rest or rest[0] in {"-h", "--help", "help"}:
        print(HELP.format(verbs="\n".join(f"  {verb:19}{summary}" for verb, (summary, _) in VERBS.items())))
        return 0
    if rest[0] == "--version":
        from pocketdiff import __version__

        print(__version__)
        return 0
    if rest[0] not in VERBS:
        from pocketdiff.cli.flags import similar

        near = " or ".join(similar(rest[0], list(VERBS), SYNONYMS))
        hint = f"did you mean {near}?" if near else f"the verbs are {', '.join(VERBS)}"
        return _fail(f"there is no verb {rest[0]!r}; {hint}", 2)
    from pocketdiff.cli.console import show_messages

    show_messages()
    status: int = importlib.import_module(VERBS[rest[0]][1]).main(rest[1:])
    return status


def import_plugin(name: str) -> None:
    """Imports a module by name, or a .py file by path, as ``--plugin`` does.

    During the import, modules in the current folder, or in the file's folder, can be imported too.

    Raises:
        PluginError: If the import fails.
    """
    path = Path(name)
    is_file = path.suffix == ".py"
    folder = str(path.parent.resolve() if is_file else Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(path.stem if is_file else name)
    except Exception as error:
        raise PluginError(f"--plugin {name}: cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(folder)
    if is_file and (module.__file__ is None or Path(module.__file__).resolve() != path.resolve()):
        raise PluginError(f"--plugin {name}: another module is called {path.stem}; rename the file")


def _fail(message: str, status: int) -> int:
    lines = message.strip().splitlines() or [""]
    print(visible(f"pocketdiff: {lines[0]}"), file=sys.stderr)
    return status
