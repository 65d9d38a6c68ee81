"""``pocketdiff info``: what a run or a model file contains."""

from pathlib import Path
from typing import Annotated

from pocketdiff import shipped
from pocketdiff.checkpoint import load
from pocketdiff.cli.console import say
from pocketdiff.cli.flags import Positional, parse
from pocketdiff.frozen import Frozen


class InfoOptions(Frozen):
    """Shows what a model was trained on, how it is built, how it draws, and the scores of a model of the package.

    Examples:
      pocketdiff info runs/laptop
      pocketdiff info mnist
    """

    model: Annotated[Path, Positional("RUN_OR_FILE")]
    """The folder of a finished run, a model file, or the name of a model of the package."""


def main(arguments: list[str]) -> int:
    """Prints the facts of a model and returns the exit status."""
    options, _ = parse("info", arguments, InfoOptions)
    path = shipped.find(options.model)
    model = load(path)
    facts = model.facts()
    if known := shipped.about(path):
        from pocketdiff.evaluation import METRICS  # Takes long to import.

        facts |= known.facts(METRICS)
    for name, fact in (facts | {"config": model.config.model_dump_json(indent=2)}).items():
        say(f"{name:11} {fact}")
    return 0
