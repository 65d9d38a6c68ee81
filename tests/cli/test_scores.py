"""Scores during training: ``pocketdiff train --evaluate-every``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pocketdiff.cli import run
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation.score import score
from tests.cli.helpers import SMALL, fails, lines, scored

pytestmark = pytest.mark.usefixtures("cache")
OFTEN = ["--evaluate-every", "100", "--evaluate-images", "128"]


def words(file: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--preset", "quick", "--data", str(file), "--out", str(out), *SMALL.split(), *OFTEN, *more]


def scores(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(folder) if "evaluation" in line]


def test_training_scores_at_intervals_and_changes_nothing(file: Path, trained: Path, tmp_path) -> None:
    out = tmp_path / "run"
    assert run(words(file, out)) == 0
    found = scores(out)
    assert [line["seen"] for line in found] == [100, 200, 300]
    assert (out / "pictures" / "scores.png").exists()
    last = scored(out, file, tmp_path, "--n", "128")["metrics"]
    for name, value in found[-1]["evaluation"].items():
        if name != "n":
            assert value == last[name], name
    assert found[0]["real_baseline"]["frechet_train"] > 0
    plain, with_scores = (load_file(folder / "model.safetensors") for folder in (trained, out))
    assert all(torch.equal(plain[name], tensor) for name, tensor in with_scores.items())


def test_an_interrupted_score_is_made_by_the_next_session(file: Path, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "run"

    def interrupted(*given, **named) -> object:
        if len(scores(out)) == 1:
            raise KeyboardInterrupt
        return score(*given, **named)

    monkeypatch.setattr("pocketdiff.run.scoring.score", interrupted)
    assert run(words(file, out)) == 130
    assert "stopped, and saved as" in capsys.readouterr().out
    monkeypatch.setattr("pocketdiff.run.scoring.score", score)
    assert run(words(file, out)) == 0
    assert [line["seen"] for line in scores(out)] == [100, 200, 300]
    steps = [line["step"] for line in lines(out)]
    assert steps == sorted(steps)


def test_too_few_images_for_scores_are_refused_before_the_folder_is_made(file, tiny_file, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    fails(capsys, words(file, out, "--evaluate-images", "100"), 2, "a score needs 128 or more")
    fails(capsys, words(tiny_file, out), 2, "a score needs 128 or more")
    assert not out.exists()


def test_a_score_that_cannot_be_made_is_a_warning_and_training_continues(
    file: Path, tmp_path, monkeypatch, capsys
) -> None:
    def fail(*given, **named) -> None:
        raise EvaluationError("the images are all equal")

    monkeypatch.setattr("pocketdiff.run.scoring.score", fail)
    out = tmp_path / "run"
    assert run(words(file, out, "--evaluate-every", "200")) == 0
    assert capsys.readouterr().err.count("pocketdiff: no score at") == 2
    assert [line["evaluation"] for line in scores(out)] == [{"n": 128, "fault": "the images are all equal"}] * 2
    assert (out / "model.safetensors").exists()
    assert not (out / "pictures" / "scores.png").exists()


def test_a_model_without_labels_is_scored_without_them(file: Path, tmp_path) -> None:
    tiny = "train --preset gan --generator 16 --discriminator 16 --images 200 --batch 20"
    assert run([*tiny.split(), *OFTEN, "--data", str(file), "--out", str(tmp_path / "run")]) == 0
    found = [line["evaluation"] for line in scores(tmp_path / "run")]
    assert len(found) == 2
    assert all("frechet_train" in score and "accuracy" not in score for score in found)
    assert (tmp_path / "run/pictures/scores.png").exists()
    assert (tmp_path / "run/summary.json").exists()
