"""Makes the models that come with the package from finished runs, and scores them.

    python benchmarks/box.py mnist=runs/laptop mnist-2-steps=runs/consistency [--n 10000] [--out FOLDER]

Each run's model becomes NAME.safetensors, in half precision, and is scored as it is in that file. models.json records
the training commands, which follow from the runs' configs, what the runs took, and the scores. All files together must
stay below 3 MB. At the end they replace those in FOLDER, which is the package's own by default.
"""

import argparse
import hashlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import training  # noqa: F401 (it sets GOMP_SPINCOUNT before torch is loaded)

import pocketdiff as pd
from pocketdiff import shipped
from pocketdiff.checkpoint import RunConfig, read_run_config
from pocketdiff.cli.flags import apply, parse
from pocketdiff.cli.train import TrainOptions
from pocketdiff.config import MethodConfig
from pocketdiff.files import write_file
from pocketdiff.folder import RunFolder, short_name
from pocketdiff.frozen import Filled, Frozen
from pocketdiff.records import Summary, commit
from pocketdiff.shipped import Scores, Shipped, ShippedModel, Training

SOURCES = ("teacher", "init_from")
"""Fields of a config that name another run."""
ABOUT = {"data": "MNIST (Yann LeCun and Corinna Cortes, CC BY-SA 3.0)", "licence": "MIT, that of the package"}


def trainings(run: Path) -> Iterator[Training]:
    """The runs behind a run's model, the oldest first.

    Raises:
        ValueError: If the folder holds no run, or its command cannot be found.
    """
    folder = RunFolder(run.parent if run.is_file() else run)
    if (config := read_run_config(folder)) is None:
        raise ValueError(f"{run}: is no run, so its training is not known")
    for source in filter(None, (getattr(config.train, field, None) for field in SOURCES)):
        known = shipped.about(shipped.find(source))
        yield from known.training if known else trainings(Path(source))
    now, trained = (getattr(each, "sampling", None) for each in (pd.load(folder.path), config.train))
    kept = flags(now, trained) if now and trained else ""
    lines = [*commands(folder.path, config), *[f"pocketdiff set runs/{folder.path.name} {kept}"] * bool(kept)]
    yield Training(commands=tuple(lines), summary=Summary.model_validate_json(folder.summary.read_bytes()))


def commands(run: Path, config: RunConfig) -> Iterator[str]:
    """The commands that train a run, one for each of its parts.

    Raises:
        ValueError: If a command would give another config.
    """
    presets = {name: preset for name, preset in pd.PRESETS.items() if preset.kind == config.train.kind}
    train = renamed(config.train)
    best = min(presets, key=lambda name: len(flags(train, presets[name])))
    for end in config.ends:
        part = train if end == config.ends[-1] else train.model_copy(update={"images": end, "epochs": None})
        given = flags(part, presets[best])
        _, typed = parse("train", shlex.split(given), TrainOptions, presets[best])
        if flags(apply(presets[best], typed), part):
            raise ValueError(f"{run}: no command was found that gives its config")
        out = "" if run.name == best else f"--out runs/{run.name}"
        yield " ".join(filter(None, ["pocketdiff train --preset", best, given, out]))


def flags(config: Frozen, default: Frozen, prefix: str = "") -> str:
    """The flags that turn the default into the config; none for fields that a run fills in."""
    given = []
    for name, field in type(config).model_fields.items():
        value, before = getattr(config, name), getattr(default, name, None)
        flag = f"--{prefix}{name.replace('_', '-')}"
        if value == before or name == "kind" or any(isinstance(mark, Filled) for mark in field.metadata):
            continue
        if isinstance(value, Frozen):
            kind, same = getattr(value, "kind", None), type(value) is type(before)
            given += [] if same else [f"{flag}.kind {kind}"]
            given += [flags(value, before if same and before is not None else type(value)(), f"{flag[2:]}.")]
        elif isinstance(value, bool):
            given += [flag if value else flag.replace("--", "--no-")]
        elif isinstance(value, dict):
            given += [" ".join([flag, *(f"{key}={part}" for key, part in value.items())] if value else [flag, "none"])]
        elif isinstance(value, tuple):
            given += [f"{flag} {(':' if name == 'interval' else ' ').join(map(str, value))}"]
        else:
            given += [f"{flag} {'none' if value is None else shlex.quote(str(value))}"]
    return " ".join(filter(None, given))


def renamed(config: MethodConfig) -> Any:
    """The config with the names that the commands give to other runs: runs/NAME, or that of a model of the package."""
    sources = {field: source for field in SOURCES if (source := getattr(config, field, None))}
    own = {field for field, source in sources.items() if shipped.is_shipped(shipped.find(source))}
    return config.replace(**{
        field: source if field in own else f"runs/{short_name(Path(source))}" for field, source in sources.items()
    })  # fmt: skip


def scores(file: Path, n: int, cache: Path) -> Scores:
    """The scores of a model file."""
    record = pd.evaluate(file, n=n, cache=cache).record
    p = record.provenance
    return Scores(
        n=p.n, seed=p.seed, metrics=record.metrics, intervals=record.intervals, real_baseline=record.real_baseline,
        networks={network.name: network.sha256 for network in (p.feature_network, p.label_network)},
        nfe=pd.load(file).nfe(),
    )  # fmt: skip


def main() -> None:
    """Makes the files, scores them, and puts them into the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=RUN", help="a name and the finished run behind it")
    parser.add_argument("--n", type=int, default=10_000, help="images in a score")
    parser.add_argument("--out", type=Path, default=shipped.FOLDER, help="where the files go (default: the package)")
    given = parser.parse_args()
    runs = {name: Path(run) for name, _, run in (word.partition("=") for word in given.models)}
    made = {name: tuple(trainings(run)) for name, run in runs.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.safetensors" for name in runs}
        for name, file in files.items():
            model = pd.load(runs[name])
            model.config = renamed(model.config)
            model.save(file, half=True)
        contents = {file.name: file.read_bytes() for file in files.values()}
        if (total := sum(map(len, contents.values()))) > 0.99 * shipped.MAX_BYTES:  # The rest is for models.json.
            parser.error(f"the models take {total:,} bytes, over 99% of {shipped.MAX_BYTES:,}; leave one out")
        models = {
            name: ShippedModel(
                sha256=hashlib.sha256(contents[file.name]).hexdigest(), training=made[name], commit=commit(), **ABOUT,
                scores=scores(file, given.n, Path(folder)),
            )
            for name, file in files.items()
        }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    for old in given.out.glob("*.safetensors"):
        old.unlink()
    for name, content in contents.items():
        write_file(given.out / name, content)
    write_file(given.out / "models.json", Shipped(models=models).model_dump_json(indent=1) + "\n")
    for name, entry in models.items():
        found = entry.scores
        values = (pd.METRICS[key].text(found.metrics[key]) for key in ("frechet_train", "accuracy"))
        print("{}: {:,} images, distance {}, accuracy {}".format(name, found.n, *values))


if __name__ == "__main__":
    main()
