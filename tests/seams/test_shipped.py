"""The models that come with the package: complete, known by name, and as good as recorded."""

import hashlib
import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import pocketdiff as pd
from pocketdiff import shipped
from pocketdiff.checkpoint import RunConfig
from pocketdiff.cli.flags import apply, parse
from pocketdiff.cli.train import TrainOptions
from pocketdiff.data import Dataset, to_data_units
from pocketdiff.errors import CheckpointError, RequestError
from pocketdiff.evaluation import METRICS, classifiers
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.shipped import Shipped
from tests.helpers import model_of, new_state
from tests.seams.runs import CONFIG, finished_run

RECORD = Shipped.model_validate_json((shipped.FOLDER / "models.json").read_bytes())


def test_the_record_is_about_the_files() -> None:
    assert shipped.names() == sorted(RECORD.models)
    assert "mnist" in shipped.names()
    assert sum(path.stat().st_size for path in shipped.FOLDER.iterdir() if path.is_file()) < shipped.MAX_BYTES
    for name, model in RECORD.models.items():
        file = shipped.FOLDER / f"{name}.safetensors"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == model.sha256
        assert shipped.about(file) == model
        assert model.scores.metrics.keys() <= METRICS.keys()
        assert model.scores.nfe == pd.load(name).nfe()
        for training in model.training:
            assert all(command.startswith(("pocketdiff train ", "pocketdiff set ")) for command in training.commands)


@pytest.mark.parametrize("name", shipped.names())
def test_its_models_draw_the_requested_digits(name: str, mnist: Dataset) -> None:
    """At least 95 of 100, as the reader of the evaluation reads them."""
    labels = torch.arange(10).repeat(10)
    reader = classifiers.find_classifier("reader", mnist.info, [classifiers.SHIPPED]).net
    with torch.no_grad():
        read = reader(to_data_units(pd.load(name)(labels))).argmax(1)
    assert (read == labels).sum() >= 95


@pytest.mark.parametrize("what", ["run", "file"])
def test_a_run_or_a_file_of_that_name_comes_first(what: str, tiny_data: Dataset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = model_of(new_state(CONFIG, tiny_data), CONFIG, tiny_data)
    own = mine([3, 1, 4])
    assert not torch.equal(pd.load("mnist")([3, 1, 4]), own)
    if what == "run":
        Path("mnist").mkdir()
    mine.save("mnist/model.safetensors" if what == "run" else "mnist")
    assert torch.equal(pd.load("mnist")([3, 1, 4]), own)
    assert pd.keep_sampling("mnist", pd.SamplingConfig(steps=3)).sampling.steps == 3


def test_a_folder_of_data_does_not_hide_the_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist").mkdir()
    assert pd.load("mnist").num_parameters == pd.load(shipped.FOLDER / "mnist.safetensors").num_parameters


def test_an_unknown_name_gets_the_names(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ", ".join(shipped.names())
    with pytest.raises(CheckpointError, match=rf"^mnits: no such file; .* or a model of the package: {names}$"):
        pd.load("mnits")


@pytest.mark.parametrize("path", ["mnist", shipped.FOLDER / "mnist.safetensors"])
def test_its_files_do_not_change(path: Path | str) -> None:
    with pytest.raises(RequestError, match="comes with the package and cannot be changed; give the settings when you"):
        pd.keep_sampling(path, pd.SamplingConfig(steps=3))
    assert (
        RECORD.models["mnist"].sha256 == hashlib.sha256((shipped.FOLDER / "mnist.safetensors").read_bytes()).hexdigest()
    )


def test_its_names_are_sources_of_weights_and_guides(tiny_data: Dataset, tmp_path: Path) -> None:
    config = DiffusionConfig(images=8, batch=8, init_from="mnist")
    run: Any = pd.Run(config, tiny_data, tmp_path / "tuned")
    assert run.config.init_sha256 is not None
    for name, weight in pd.load("mnist").net.state_dict().items():
        assert torch.equal(run.state.net.state_dict()[name], weight)
    model = pd.load("mnist")
    assert pd.with_sampling(model, model.sampling.replace(guide="mnist")).nfe() == model.nfe()


# benchmarks/box.py


@pytest.fixture
def box(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("box")


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("laptop", {}),
        ("laptop", {"images": 300_000, "seed": 2, "augment": "flip", "compile": True, "ema": None}),
        ("quick", {"net": pd.UNetConfig(widths=(8, 16, 16)), "schedule": pd.Cosine(), "stratified": False}),
        ("laptop", {"sampling": pd.SamplingConfig(sampler="ancestral", options={"eta": 0.5}, interval=(0.3, 3.0))}),
        ("laptop", {"data": "two words.npz", "sampling": pd.SamplingConfig(steps=12, schedule=pd.Karras(rho=5))}),
        ("ddpm", {"epochs": 3}),
        ("gan-conditional", {"images": 5}),
    ],
)
def test_the_recorded_command_trains_with_the_runs_config(preset: str, changes: Any, box: Any, mnist: Dataset) -> None:
    config = pd.PRESETS[preset].replace(**changes)
    (command,) = box.commands(Path("runs/laptop"), RunConfig(train=config, data=mnist.info))
    words = shlex.split(command)
    assert words[:4] == ["pocketdiff", "train", "--preset", preset]
    options, given = parse("train", words[2:], TrainOptions, pd.PRESETS[preset])
    assert apply(pd.PRESETS[preset], given) == config
    assert options.out == (None if preset == "laptop" else Path("runs/laptop"))


def test_the_recorded_commands_tell_of_parts_teachers_and_kept_settings(box: Any, tiny_data: Dataset, tmp_path) -> None:
    teacher = finished_run(CONFIG, tiny_data, tmp_path / "old")
    config = pd.PRESETS["consistency"].replace(images=8, batch=8, teacher=str(teacher.folder))
    finished_run(config, tiny_data, tmp_path / "consistency")
    finished_run(config.replace(images=16), tiny_data, tmp_path / "consistency")
    pd.keep_sampling(tmp_path / "consistency", pd.load(tmp_path / "consistency").sampling.replace(steps=1))
    first, second = box.trainings(tmp_path / "consistency")
    assert first.commands[0].endswith("--out runs/old")
    assert first.summary == teacher.summary
    short, long, kept = second.commands
    assert "--images 8 " in short
    assert "--images 16 " in long
    assert "--teacher runs/old" in short
    assert kept == "pocketdiff set runs/consistency --steps 1"
    assert str(tmp_path) not in json.dumps([first.commands, second.commands])
