"""``pocketdiff set`` and ``pocketdiff evaluate --keep-best``: settings that a model file keeps."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import pocketdiff as pd
from pocketdiff.cli import run
from pocketdiff.evaluation import Sweep
from tests.cli.helpers import contents, fails, train_words


@pytest.fixture
def mine(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(finished, tmp_path / "mine"))


def test_the_model_file_keeps_the_settings_and_its_weights_and_nothing_else_changes(mine: Path, capsys) -> None:
    before, old = contents(mine), pd.load(mine)
    assert run(["set", str(mine), "--w", "1", "--steps", "3"]) == 0
    was, now = "dpmpp_2m, 2 steps, scale 1.5 (w = 0.5)", "dpmpp_2m, 3 steps, scale 2 (w = 1)"
    assert capsys.readouterr().out == f"{mine} drew by {was}; it now draws by {now}\n"
    after, new = contents(mine), pd.load(mine)
    assert {name for name in after if after[name] != before.get(name)} == {"model.safetensors"}
    assert after.keys() == before.keys()
    assert new.config.model_dump() == {**old.config.model_dump(), "sampling": new.sampling.model_dump()}
    assert all(torch.equal(tensor, new.net.state_dict()[name]) for name, tensor in old.net.state_dict().items())
    assert run(["info", str(mine / "model.safetensors")]) == 0
    assert f"draws by    {now}," in capsys.readouterr().out


def test_a_finished_run_stays_finished_and_does_not_undo_the_settings(mine: Path, tiny_file: Path, capsys) -> None:
    assert run(["set", str(mine / "model.safetensors"), "--scale", "1"]) == 0
    before = contents(mine)
    assert run(train_words(tiny_file, mine)) == 0
    assert "is finished, and nothing was changed" in capsys.readouterr().out
    assert contents(mine) == before
    assert pd.load(mine).sampling.scale == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "there is nothing to set; give a setting, such as --scale 1.3"),
        ("--scale -1", "--scale -1: "),
        ("--w -2", "--w -2 (scale -1): "),
        ("--w 1 --scale 2", "argument --scale: not allowed with argument --w"),
        ("--steps none", "--steps none: steps is none, but the karras schedule is continuous"),
        ("--guide RUN", "sampling.guide is for drawing only, because a model file must be complete on its own"),
        ("--images 5", "there is no '--images'"),
    ],
)
def test_what_cannot_be_set_is_one_sentence_and_changes_nothing(words: str, message: str, finished, capsys) -> None:
    before = contents(finished)
    fails(capsys, ["set", str(finished), *words.replace("RUN", str(finished)).split()], 2, message)
    assert contents(finished) == before


def test_a_model_in_one_step_has_no_settings(unlabelled: Path, capsys) -> None:
    message = f"--scale: {unlabelled} draws in one step and has no sampling settings"
    fails(capsys, ["set", str(unlabelled), "--scale", "2"], 2, message)
    with pytest.raises(pd.PocketdiffError, match="draws in one step"):
        pd.keep_sampling(unlabelled, pd.SamplingConfig())


@pytest.mark.parametrize("words", ["set mnist --scale 1", "evaluate mnist --scales 1,2 --keep-best"])
def test_a_model_of_the_package_is_not_changed(words: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    fails(
        capsys, words.split(), 2, "mnist: comes with the package and cannot be changed; give the settings when you draw"
    )


# --keep-best

SWEEP = ["--n", "128", "--scales", "1,1.5", "--steps", "2"]


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run whose data have classifiers."""
    return Path(shutil.copytree(trained, tmp_path / "own"))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("number", [0, 1, None])
def test_a_sweep_keeps_its_best_trial_if_there_is_one(own: Path, number: int | None, monkeypatch, capsys) -> None:
    def best(self: Sweep) -> Any:
        return None if number is None else self.record.trials[number]

    monkeypatch.setattr(Sweep, "best", best)
    before = pd.load(own)
    assert run(["evaluate", str(own), *SWEEP, "--keep-best"]) == 0
    last, now = capsys.readouterr().out.splitlines()[-1], pd.load(own)
    if number is None:
        assert last == f"no trial is accurate enough to be the best, so {own} was not changed"
        assert now.sampling == before.sampling
    else:
        assert last == f"{own} now draws by {now.how()}"
        assert now.sampling == before.sampling.model_copy(update={"scale": (1.0, 1.5)[number], "steps": 2})


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN --scales 1", "--keep-best: needs a sweep"),
        ("RUN --scales 1,2 --guides none,RUN", "--keep-best: cannot keep a guide"),
        ("IMAGES", "--keep-best: needs a model"),
        ("GAN", "--keep-best: GAN draws in one step"),
    ],
)
def test_keep_best_needs_a_sweep_of_a_model(words: str, message: str, trained, unlabelled, images, capsys) -> None:
    for name, path in {"RUN": trained, "GAN": unlabelled, "IMAGES": images}.items():
        words, message = words.replace(name, str(path)), message.replace(name, str(path))
    fails(capsys, ["evaluate", *words.split(), "--keep-best", "--n", "128"], 2, message)
