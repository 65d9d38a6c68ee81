"""``pocketdiff compare``."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketdiff.cli import console, run
from pocketdiff.data import Dataset
from tests.cli.helpers import fails, scored

pytestmark = pytest.mark.usefixtures("cache")
GAN = "--images 300 --batch 20 --pictures-every 1"


@pytest.fixture(scope="module")
def gans(file: Path, tmp_path_factory) -> list[Path]:
    """A GAN that knows labels, and one that does not."""
    folder = tmp_path_factory.mktemp("gans")
    for preset, words in {"gan-conditional": "--widths 8 16", "gan": "--generator 16 32 --discriminator 32 16"}.items():
        out = str(folder / preset)
        assert run(["train", "--preset", preset, "--data", str(file), "--out", out, *GAN.split(), *words.split()]) == 0
    return [folder / "gan-conditional", folder / "gan"]


def compared(out: Path, *words: str) -> dict[str, Any]:
    assert run(["compare", *words, "--n", "150", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return found


def test_scores_are_those_of_evaluate_and_costs_those_of_the_run(
    trained: Path, gans: list[Path], file: Path, tmp_path, capsys
) -> None:
    found = compared(tmp_path / "report", str(trained), *map(str, gans))
    said = capsys.readouterr().out
    assert list(found["runs"]) == ["tiny", "gan-conditional", "gan"]
    for path in (trained, *gans):
        alone = scored(path, file, tmp_path, "--n", "150")
        entry = found["runs"][path.name]
        for part in ("metrics", "intervals", "real_baseline"):
            assert entry[part] == alone[part]
        summary = json.loads((path / "summary.json").read_text())
        for cost in ("parameters", "training_seconds", "images_seen", "images_per_second", "peak_memory_bytes"):
            assert entry["costs"][cost] == summary[cost]
        assert entry["costs"]["nfe"] == alone["provenance"]["drawing"]["sampling"]["nfe"]
    assert found["runs"]["gan"]["metrics"]["accuracy"] is None
    assert found["runs"]["gan"]["costs"]["drawing_parameters"] < found["runs"]["gan"]["costs"]["parameters"]
    table = (tmp_path / "report" / "table.md").read_text()
    assert table in said
    assert "| label accuracy | " in table
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<svg") == 2
    assert said.endswith(
        "".join(f"wrote {tmp_path}/report/{x}\n" for x in ("index.html", "table.md", "comparison.json"))
    )


def test_files_of_evaluate_can_be_compared_if_they_were_made_alike(
    trained: Path, gans: list[Path], file: Path, tmp_path, capsys
) -> None:
    for name, target, n in (("a", trained, "150"), ("b", gans[0], "150"), ("c", gans[0], "140")):
        (tmp_path / name).mkdir()
        scored(target, file, tmp_path / name, "--n", n)
        (tmp_path / name / "score.json").rename(tmp_path / f"{name}.json")
    a, b, c = (str(tmp_path / f"{name}.json") for name in "abc")
    found = compared(tmp_path / "report", a, b)
    assert list(found["runs"]) == ["a", "b"]
    assert found["runs"]["a"]["costs"]["training_seconds"] is None
    assert found["runs"]["a"]["costs"]["sampling_seconds"] > 0
    both = compared(tmp_path / "both", a, str(gans[0]))
    assert both["runs"]["gan-conditional"]["metrics"] == found["runs"]["b"]["metrics"]
    fails(capsys, ["compare", a, c], 2, "a and c differ in number of images (n): 150 and 140")
    fails(capsys, ["compare", a, str(gans[0]), "--n", "160", "--out", str(tmp_path / "none")], 2, "differ in")
    assert not (tmp_path / "none").exists()


def test_models_of_other_data_are_refused_by_name(trained: Path, digits: Dataset, tmp_path, capsys) -> None:
    pixels, labels = digits.train.pixels[:400, 0].numpy(), digits.train.labels[:400].numpy()
    np.savez(tmp_path / "other.npz", images=pixels, labels=labels)
    other = str(tmp_path / "other")
    words = "--images 20 --batch 20 --widths 8 --preset gan-conditional"
    assert run(["train", "--data", str(tmp_path / "other.npz"), "--out", other, *words.split()]) == 0
    fails(capsys, ["compare", str(trained), other, "--n", "150"], 2, "tiny and other differ in data: ")


def test_the_flags_name_the_data_set(trained: Path, digits: Dataset, tmp_path, capsys) -> None:
    pixels, labels = digits.train.pixels[:400, 0].numpy(), digits.train.labels[:400].numpy()
    np.savez(tmp_path / "other.npz", images=pixels, labels=labels)
    words = ["compare", str(trained), "--n", "150"]
    fails(capsys, [*words, "--data", str(tmp_path / "other.npz")], 2, "tiny: was not trained on these data")
    fails(capsys, [*words, "--size", "20"], 2, "tiny: was not trained on these data")


def test_runs_of_one_name_are_told_apart(gans: list[Path], tmp_path, monkeypatch, capsys) -> None:
    for place, run_folder in zip("ab", gans, strict=True):
        shutil.copytree(run_folder, tmp_path / place / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("a/run")
    found = compared(tmp_path / "report", "a/run", "b/run/model.safetensors")
    assert list(found["runs"]) == ["a/run", "b/run/model.safetensors"]
    fails(capsys, ["compare", "a/run", "link"], 2, "is named twice")


def test_damaged_summaries_and_pictures_cost_nothing_but_themselves(gans: list[Path], tmp_path, capsys) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(gans[0], damaged)
    (damaged / "pictures" / "image_ep0.png").write_bytes(b"no picture")
    (damaged / "summary.json").write_bytes(b'{"training_seconds": "soon"}')
    found = compared(tmp_path / "report", str(damaged))
    assert found["runs"]["damaged"]["costs"]["training_seconds"] is None
    assert "pocketdiff: " in (error := capsys.readouterr().err)
    assert "summary.json: is damaged" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare", "the following arguments are required: RUN"),
        ("compare {run} {run}/", "is named twice"),
        ("compare {run} nowhere", "nowhere: no such file"),
        ("compare nowhere.json", "nowhere.json: no such file"),
        ("compare {run}/metrics.jsonl.json", "no such file"),
        ("compare {run}/config.json", "config.json: is not what evaluate --json writes"),
        ("compare {run} --n 5", "--n 5: input should be greater than or equal to 128"),
        ("compare {run} --seed -1", "--seed -1: input should be greater than or equal to 0"),
        ("compare {run} --out {run}/summary.json", "is a file; take another --out"),
        ("compare {run} --data nowhere", "nowhere"),
        ("compare {run} --scales 1", "there is no '--scales'"),
    ],
)
def test_each_fault_is_one_sentence(words: str, message: str, gans: list[Path], capsys) -> None:
    fails(capsys, [word.format(run=gans[0]) for word in words.split()], 2, message)


def test_existing_files_are_not_replaced(gans: list[Path], tmp_path, capsys) -> None:
    (tmp_path / "table.md").write_text("mine")
    fails(capsys, ["compare", str(gans[0]), "--n", "150", "--out", str(tmp_path)], 2, "table.md: exists already")
    assert (tmp_path / "table.md").read_text() == "mine"
    assert run(["compare", str(gans[0]), "--n", "150", "--out", str(tmp_path), "--overwrite"]) == 0
    assert "mine" not in (tmp_path / "table.md").read_text()


def test_results_are_written_before_they_are_printed(gans: list[Path], tmp_path, monkeypatch) -> None:
    def fail(message: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(console, "say", fail)
    saved = os.dup(1)
    try:
        assert run(["compare", str(gans[0]), "--n", "150", "--out", str(tmp_path / "report")]) == 1
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert len(list((tmp_path / "report").iterdir())) == 3
