"""``pocketdiff import-ddpm``: a model of the original script as a model file of pocketdiff."""

from pathlib import Path
from typing import Annotated

from pocketdiff.cli.console import check_free, say
from pocketdiff.cli.flags import Metavar, Positional, UsageError, parse
from pocketdiff.frozen import Frozen
from pocketdiff.importer import import_ddpm


class ImportOptions(Frozen):
    """Converts what the DDPM-MNIST script saved with torch.save(ddpm.state_dict(), ...) into a model file. The numbers
    of features, classes and steps are read from the tensors. The file is read as data; no code in it is run.

    Examples:
      pocketdiff import-ddpm model_19.pth --out model.safetensors
      pocketdiff sample model.safetensors --labels 0-9 --out digits.png
    """

    file: Annotated[Path, Positional("MODEL.pth")]
    """The state dict that the script saved."""
    out: Annotated[Path, Metavar("FILE")] = Path("model.safetensors")
    """The model file to write."""
    overwrite: bool = False
    """Replace an existing file."""


def main(arguments: list[str]) -> int:
    """Converts a model and returns the exit status."""
    options, _ = parse("import-ddpm", arguments, ImportOptions)
    if options.out.suffix != ".safetensors":
        raise UsageError("must end in .safetensors", f"--out {options.out}")
    check_free(options.out, options.overwrite)
    model = import_ddpm(options.file)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    model.save(options.out)
    say(f"wrote {options.out}: {model.num_parameters:,} weights, {len(model.classes)} classes, {model.how()}")
    say(f"now draw: pocketdiff sample {options.out}")
    return 0
