"""``pocketdiff info``: what a run or a model file holds."""

from pathlib import Path

from pocketdiff.checkpoint import load
from pocketdiff.cli.console import say
from pocketdiff.cli.flags import Parser

DESCRIPTION = "Says what a model was trained on, how it is built and how it is sampled by default."

EXAMPLES = """example:
  pocketdiff info runs/laptop
"""


def main(arguments: list[str]) -> int:
    """Parses the flags, prints, and returns the exit status."""
    parser = Parser("pocketdiff info", "RUN_OR_FILE", DESCRIPTION, EXAMPLES)
    parser.add_argument("model", metavar="RUN_OR_FILE", type=Path, help="the folder of a finished run, or a model file")
    model = load(parser.parse(arguments).model)
    info = model.info
    colour = "grey" if info.channels == 1 else "RGB"
    say(f"images      {info.height} x {info.width}, {colour}, {len(info.classes)} classes: {', '.join(info.classes)}")
    if info.train_images is None or info.test_images is None:
        say("trained on  unknown images: what the config says of training is what the original script does")
    else:
        say(f"trained on  {info.train_images:,} images, {info.test_images:,} held out, sha256 {info.sha256}")
    if not model.conditional:
        say("labels      none: it draws without")
    say(f"weights     {sum(weight.numel() for weight in model.net.parameters()):,}")
    say(f"config      {model.config.model_dump_json(indent=2)}")
    return 0
