"""``pocketdiff distill``: a trained diffusion model becomes one that draws in one or two network evaluations."""

from pathlib import Path
from typing import Annotated, Literal

from pocketdiff.checkpoint import load
from pocketdiff.cli.console import pick_device
from pocketdiff.cli.flags import Metavar, Positional, apply, parse
from pocketdiff.cli.train import train
from pocketdiff.data import load_data
from pocketdiff.frozen import Frozen
from pocketdiff.methods import PRESETS


class DistillOptions(Frozen):
    """Makes a fast model of a finished run: it draws an image in one or two network evaluations. It trains on the
    run's data, in about the time of the run, into a folder of its own. The same command again continues it.

    Examples:
      pocketdiff distill runs/laptop                     two evaluations, into runs/laptop-2steps
      pocketdiff distill runs/laptop --steps 1           one evaluation, into runs/laptop-1step
      pocketdiff sample runs/laptop-2steps --steps 1     the same network with one evaluation
    """

    teacher: Annotated[Path, Positional("RUN_OR_FILE")]
    """The folder of a finished run, or a model file: the teacher."""
    steps: Literal[1, 2] = 2
    """Network evaluations per image of the new model."""
    out: Annotated[Path | None, Metavar("FOLDER")] = None
    """The run's folder (default: that of the teacher with -1step or -2steps)."""
    resume: Annotated[str, Metavar("{auto,never,CHECKPOINT}")] = "auto"
    """auto: continue an unfinished run; never: refuse a folder with a run; or the checkpoint to continue from."""
    device: Annotated[str, Metavar("NAME")] = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""


def main(arguments: list[str]) -> int:
    """Distills and returns the exit status."""
    preset = PRESETS["distill"]
    options, given = parse("distill", arguments, DistillOptions, preset, "config: the defaults are the preset's")
    theirs = load(options.teacher).config
    config = preset.model_validate(
        {**preset.model_dump(), "teacher": str(options.teacher), "data": theirs.data, "size": theirs.size}
    )
    config = apply(config, {"sampling.steps": str(options.steps), **given})
    name = f"{options.teacher.stem}-{options.steps}step{'s' * (options.steps > 1)}"
    out = options.out or (options.teacher.parent if options.teacher.is_dir() else Path("runs")) / name
    data = load_data(config.data, config.size, config.seed)
    return train(config.shortened(len(data.train)), data, out, pick_device(options.device), options.resume)
