"""``pocketdiff import-ddpm``."""

from pathlib import Path

import pytest
import torch

from pocketdiff.checkpoint import load
from pocketdiff.cli import run
from tests.cli.helpers import fails
from tests.seams.test_importer import saved


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model_19.pth"
    torch.save(saved(8, 1, 4, 20, 2e-4), path)
    return path


def test_an_imported_model_is_described_and_draws(file: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "model.safetensors"
    assert run(["import-ddpm", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}: " in said
    assert "4 classes, ancestral_beta, 20 steps" in said
    assert run(["info", str(out)]) == 0
    assert "unknown images" in capsys.readouterr().out
    for name in ("digits.png", "digits.gif", "digits.npz"):
        assert run(["sample", str(out), "--labels", "0-3", "--out", str(tmp_path / name)]) == 0
    few = ["--sampler", "euler", "--steps", "5", "--labels", "3", "--out", str(tmp_path / "few.png")]
    assert run(["sample", str(out), *few]) == 0


def test_a_file_that_cannot_be_imported_writes_nothing(tmp_path: Path, capsys) -> None:
    file, out = tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(1)}, file)
    fails(capsys, ["import-ddpm", str(file), "--out", str(out)], 2, f"{file}: has no")
    assert not out.exists()


def test_existing_files_are_not_overwritten(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    out.write_text("years of work")
    before = file.read_bytes()
    for words in (["--out", str(out)], ["--out", str(tmp_path / "model.pth")], ["--out", str(file)]):
        assert run(["import-ddpm", str(file), *words]) == 2
    assert out.read_text() == "years of work"
    assert file.read_bytes() == before
    assert run(["import-ddpm", str(file), "--out", str(out), "--overwrite"]) == 0
    assert load(out).classes == tuple("0123")
