"""``pocketdiff compare``: models side by side, scored alike, with what each of them costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pocketdiff.checkpoint import load
from pocketdiff.cli.console import Bar, cache_folder, check_free, finish, pick_device
from pocketdiff.cli.evaluate import ScoreOptions, load_set
from pocketdiff.cli.flags import Metavar, Positional, parse
from pocketdiff.evaluation import Comparison, compare

WRITTEN: dict[str, Callable[[Comparison], str]] = {
    "index.html": Comparison.page,
    "table.md": Comparison.table,
    "comparison.json": lambda comparison: json.dumps(comparison.json(), indent=2, allow_nan=False) + "\n",
}
"""The files of --out."""


class CompareOptions(ScoreOptions):
    """Scores models alike and shows them side by side: realism, variety, labels, and what training and drawing cost.
    Differences that exceed their confidence interval are marked.

    Examples:
      pocketdiff compare runs/gan runs/gan-conditional runs/laptop --out report
      pocketdiff compare runs/laptop runs/other --n 2000
      pocketdiff compare here.json there.json            files of evaluate --json, from two machines
    """

    runs: Annotated[tuple[Path, ...], Positional("RUN")]
    """A finished run, a model file, a model of the package (mnist), or a file of evaluate --json."""
    out: Annotated[Path | None, Metavar("FOLDER")] = None
    """Write a page, a table and JSON into this folder."""
    overwrite: bool = False
    """Replace existing files."""
    device: Annotated[str, Metavar("NAME")] = "auto"
    """Where models draw: cpu, cuda, or auto: a GPU if there is one."""


def main(arguments: list[str]) -> int:
    """Scores, writes, and returns the exit status."""
    options, _ = parse("compare", arguments, CompareOptions)
    outputs = [options.out / name for name in WRITTEN] if options.out else []
    for path in outputs:
        check_free(path, options.overwrite)
    device = pick_device(options.device)
    models = [run for run in options.runs if run.suffix != ".json"]
    data = load_set(options, load(models[0])) if models else None
    with Bar() as bar:
        result = compare(
            options.runs, data, n=options.n, seed=options.seed, device=device, cache=cache_folder(), progress=bar
        )
    return finish({path: WRITTEN[path.name](result) for path in outputs}, result.table())
