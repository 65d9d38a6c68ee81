"""The examples do what they say."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import pocketdiff as pd
from pocketdiff.cli import run as command
from pocketdiff.data import Dataset
from tests.seams.small import small_world

EXAMPLES = Path(__file__).parents[2] / "examples"
OWN = str(EXAMPLES / "own_network.py")


@pytest.fixture(scope="module", autouse=True)
def world(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_world(mnist, tmp_path_factory.mktemp("examples")):
        yield
    sys.modules.pop("own_network", None)


@pytest.fixture(scope="module")
def own_network(world: None) -> ModuleType:
    return imported("own_network")


def imported(name: str) -> ModuleType:
    """An example as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return importlib.import_module(name)


def start(module: ModuleType, *words: str) -> str:
    """Runs an example as a script with these arguments; what it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(module.__file__), *words])
        module.main()
    return printed.getvalue()


def in_a_new_process(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "pocketdiff.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_minimal_trains_and_draws_every_digit_in_under_100_lines() -> None:
    minimal = imported("minimal")
    start(minimal, "--images", "64", "--out", "digits.png")
    with Image.open("digits.png") as picture:
        assert picture.size == (2 * (10 * 30 + 2), 2 * (4 * 30 + 2))
    assert len((EXAMPLES / "minimal.py").read_text().splitlines()) < 100


class Trained(NamedTuple):
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def from_python(own_network: ModuleType) -> Trained:
    small = own_network.MixerConfig(width=16, depth=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_network, "MixerConfig", lambda: small)
        return Trained(Path("python"), start(own_network, "--images", "256", "--n", "150", "--out", "python"))


def test_own_network_trains_is_scored_and_loads(from_python: Trained) -> None:
    assert "label accuracy" in from_python.printed
    assert "draws the same images: True" in from_python.printed
    config = pd.load(from_python.folder / "copy.safetensors").config.model_dump()
    assert (config["net"]["kind"], config["schedule"]["kind"]) == ("mixer", "laplace")
    assert config["loss_weighting"] == "sigmoid"


def test_the_command_line_trains_the_same_model(from_python: Trained) -> None:
    words = "--net.kind mixer --schedule.kind laplace --loss-weighting sigmoid --images 256 --width 16 --depth 1"
    assert command(["train", "--plugin", OWN, *words.split(), "--out", "terminal"]) == 0
    mine, theirs = (pd.load(run).net.state_dict() for run in (from_python.folder, "terminal"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_an_interrupted_run_continues_bit_for_bit(from_python: Trained) -> None:
    config = pd.load(from_python.folder).config
    for _ in pd.Run(config, pd.load_data("mnist"), "halves"):
        break
    run = pd.Run(config, pd.load_data("mnist"), "halves")
    assert run.state.step == 1
    for _ in run:
        pass
    whole = pd.load(from_python.folder).net.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in run.model.net.state_dict().items())


def test_a_new_process_needs_the_plugin_and_says_so(from_python: Trained) -> None:
    without = in_a_new_process("info", str(from_python.folder))
    assert without.returncode == 2
    assert "needs the network 'mixer'" in without.stderr
    assert "--plugin own_network" in without.stderr


def test_a_new_process_with_the_plugin_draws_the_same_images(from_python: Trained) -> None:
    words = "--labels 0-9 --out drawn.npz"
    done = in_a_new_process("sample", str(from_python.folder), "--plugin", OWN, *words.split())
    assert done.returncode == 0, done.stderr
    with np.load("drawn.npz") as file:
        drawn = torch.from_numpy(file["images"])
    assert torch.equal(drawn, pd.load(from_python.folder)(range(10))[:, 0])


def test_the_examples_name_their_commands() -> None:
    assert "python examples/minimal.py" in (EXAMPLES / "minimal.py").read_text()
    assert "--plugin examples/own_network.py --net.kind mixer" in Path(OWN).read_text()
