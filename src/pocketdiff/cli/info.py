"""``pocketdiff info``: what a run or a model file contains."""

from pathlib import Path
from typing import Annotated

from pocketdiff.checkpoint import load
from pocketdiff.cli.console import say
from pocketdiff.cli.flags import Positional, parse
from pocketdiff.frozen import Frozen


class InfoOptions(Frozen):
    """Shows what a model was trained on, how it is built and how it draws.

    Examples:
      pocketdiff info runs/laptop
    """

    model: Annotated[Path, Positional("RUN_OR_FILE")]
    """The folder of a finished run, or a model file."""


def main(arguments: list[str]) -> int:
    """Prints the facts of a model and returns the exit status."""
    options, _ = parse("info", arguments, InfoOptions)
    model = load(options.model)
    for name, fact in (model.facts() | {"config": model.config.model_dump_json(indent=2)}).items():
        say(f"{name:11} {fact}")
    return 0
