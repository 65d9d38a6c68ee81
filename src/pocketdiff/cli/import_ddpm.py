"""``pocketdiff import-ddpm``: a model of the original script, made one of pocketdiff's."""

from pathlib import Path

from pocketdiff.checkpoint import save_model
from pocketdiff.cli.console import check_free, make_folder, say
from pocketdiff.cli.flags import Parser, UsageError
from pocketdiff.importer import import_ddpm

DESCRIPTION = """Makes a model file of what the DDPM-MNIST script saved with torch.save(ddpm.state_dict(), ...). The
numbers of features, classes and steps are found from the tensors; the file is read as data and none of it is run."""

EXAMPLES = """example:
  pocketdiff import-ddpm model_19.pth --out model.safetensors
  pocketdiff sample model.safetensors --labels 0-9 --out digits.png
"""


def main(arguments: list[str]) -> int:
    """Parses the flags, converts, and returns the exit status."""
    parser = Parser("pocketdiff import-ddpm", "MODEL.pth [flags]", DESCRIPTION, EXAMPLES)
    parser.add_argument("file", metavar="MODEL.pth", type=Path, help="the state dict that the script saved")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("model.safetensors"),
        help="the model file to write (default: model.safetensors)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    flags = parser.parse(arguments)
    if flags.out.suffix != ".safetensors":
        raise UsageError(f"--out {flags.out}: must end in .safetensors")
    check_free(flags.out, flags.overwrite)
    model = import_ddpm(flags.file)
    make_folder(flags.out.parent)
    save_model(flags.out, model)
    weights, steps = sum(weight.numel() for weight in model.net.parameters()), int(model.config.schedule.levels)
    say(f"wrote {flags.out}: {weights:,} weights, {len(model.classes)} classes, {steps} steps, all checked")
    say(f"now draw: pocketdiff sample {flags.out}")
    return 0
