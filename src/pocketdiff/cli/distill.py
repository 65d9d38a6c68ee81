"""``pocketdiff distill``: a trained diffusion model becomes one that draws in one or two network evaluations."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pocketdiff.checkpoint import load
from pocketdiff.cli.console import pick_device
from pocketdiff.cli.flags import Positional, apply, parse
from pocketdiff.cli.train import RunOptions, train
from pocketdiff.data import load_data
from pocketdiff.methods import PRESETS
from pocketdiff.methods.adversarial import distillation


class DistillOptions(RunOptions):
    """Makes a fast model of a finished run: it draws an image in one or two network evaluations. It trains on the
    run's data, into a folder of its own. The same command again continues it.

    Examples:
      pocketdiff distill runs/laptop              two evaluations, into runs/laptop-2steps
      pocketdiff distill runs/laptop --steps 1    one evaluation, into runs/laptop-1step
    """

    teacher: Annotated[Path, Positional("RUN_OR_FILE")]
    """The folder of a finished run, or a model file: the teacher."""
    steps: Annotated[int, Field(ge=1, le=2)] = 2
    """Network evaluations per image of the new model."""


def main(arguments: list[str]) -> int:
    """Distills and returns the exit status."""
    options, given = parse("distill", arguments, DistillOptions, PRESETS["distill"], "config: the defaults are these")
    config = apply(distillation(options.teacher, load(options.teacher), options.steps), given)
    name = f"{options.teacher.stem}-{config.sampling.steps}step{'s' * (config.sampling.steps != 1)}"
    out = options.out or (options.teacher.parent if options.teacher.is_dir() else Path("runs")) / name
    data = load_data(config.data, config.size, config.seed)
    return train(config.shortened(len(data.train)), data, out, pick_device(options.device), options.resume)
