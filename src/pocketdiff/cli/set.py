"""``pocketdiff set``: other sampling settings as the defaults of a model file."""

from pathlib import Path
from typing import Annotated

from pocketdiff.checkpoint import keep_sampling, load
from pocketdiff.cli.console import say
from pocketdiff.cli.flags import Positional, UsageError, parse
from pocketdiff.cli.sample import DEFAULTS, sampled
from pocketdiff.config import SamplingConfig
from pocketdiff.frozen import Frozen


class SetOptions(Frozen):
    """Keeps sampling settings in a model file. sample, evaluate and compare use them from then on. A run's config.json
    stays as it is: it records the training.

    Examples:
      pocketdiff set runs/laptop --scale 1.3 --steps 10
      pocketdiff set model.safetensors --sampler heun --w 0.5
    """

    model: Annotated[Path, Positional("RUN_OR_FILE")]
    """The folder of a finished run, or a model file."""


def main(arguments: list[str]) -> int:
    """Changes a model file and returns the exit status."""
    options, given = parse("set", arguments, SetOptions, SamplingConfig(), DEFAULTS)
    if not given:
        raise UsageError("there is nothing to set; give a setting, such as --scale 1.3")
    before = load(options.model)
    (model,) = sampled(before, [given], list(given), options.model)
    if model.sampling is not None:
        keep_sampling(options.model, model.sampling)
        say(f"{options.model} drew by {before.how()}; it now draws by {model.how()}")
    return 0
