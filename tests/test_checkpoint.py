import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pocketdiff import checkpoint, files
from pocketdiff.checkpoint import CheckpointError, RunConfig
from pocketdiff.config import TrainConfig
from pocketdiff.denoiser import Denoiser
from pocketdiff.generate import DiffusionModel
from pocketdiff.loop import TrainingError, TrainState
from pocketdiff.train import new_state, train


@pytest.fixture
def state(tiny_config: TrainConfig, tiny_data) -> TrainState[Denoiser]:
    state = new_state(tiny_config, tiny_data.info)
    steps = train(state, tiny_data.train, tiny_config)
    for _ in range(2):
        next(steps)
    return state


@pytest.fixture
def drawing(state: TrainState[Denoiser], tiny_config: TrainConfig, tiny_data) -> DiffusionModel:
    return DiffusionModel(state.ema, tiny_config, tiny_data.info)


@pytest.fixture
def model(drawing: DiffusionModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, drawing)
    return path


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_the_one_before_goes_only_after_the_new_one_verifies(state, tiny_run, tmp_path, monkeypatch) -> None:
    first = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    state.step += 1

    def fail(path: Path) -> None:
        raise CheckpointError("does not verify")

    monkeypatch.setattr(checkpoint, "verify_checkpoint", fail)
    with pytest.raises(CheckpointError):
        checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    monkeypatch.undo()
    assert checkpoint.verify_checkpoint(first).step == 2
    second = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    assert list(second.parent.iterdir()) == [second]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_litter(state, tiny_run, tmp_path, monkeypatch) -> None:
    first = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    state.step += 1

    def full(path: Path, content: bytes | str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    assert list(first.parent.iterdir()) == [first]
    assert checkpoint.newest_checkpoint(tmp_path) == (first, [])


@pytest.mark.parametrize("file", ["net.safetensors", "ema.safetensors", "optimizers.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_for_a_whole_one(file, damage, state, tiny_run, tmp_path) -> None:
    first = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    kept = tmp_path / "kept"
    first.rename(kept)
    state.step += 1
    newest = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    kept.rename(first)
    victim = newest / file
    if damage == "flip":
        flip(victim, 1)
    elif damage == "truncate":
        os.truncate(victim, victim.stat().st_size - 1)
    else:
        victim.unlink()
    found = checkpoint.newest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == first
    assert str(newest) in found[1][0]
    with pytest.raises(CheckpointError):
        checkpoint.restore_checkpoint(newest, state, tiny_run)
    flip(first / "manifest.json", 0)
    with pytest.raises(CheckpointError, match="no other is left"):
        checkpoint.newest_checkpoint(tmp_path)


def test_weights_that_are_not_finite_are_never_saved(state, drawing, tiny_run, tmp_path) -> None:
    first = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    with torch.no_grad():
        next(state.ema.parameters()).view(-1)[0] = torch.nan
    state.step += 1
    with pytest.raises(TrainingError, match="not finite"):
        checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    with pytest.raises(TrainingError, match="not finite"):
        checkpoint.save_model(tmp_path / "model.safetensors", drawing)
    assert list(first.parent.iterdir()) == [first]


def test_what_a_user_keeps_beside_the_checkpoints_stays(state, tiny_run, tmp_path) -> None:
    first = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    (first.parent / ".DS_Store").write_bytes(b"")
    first.with_name("best").mkdir()
    state.step += 1
    second = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    assert {path.name for path in second.parent.iterdir()} == {second.name, ".DS_Store", "best"}


@pytest.mark.parametrize("name", ["../../escaped", "/etc", "..", "", "a\\b", "two\nlines"])
def test_a_class_name_that_leads_elsewhere_is_refused(name, model: Path, tmp_path) -> None:
    about = metadata(model)
    about["data"]["classes"][0] = name
    with pytest.raises(CheckpointError, match="its config is not of this version"):
        checkpoint.load(signed(model, about, tmp_path))


def metadata(model: Path) -> dict[str, Any]:
    """What a model file says of itself."""
    from safetensors import safe_open

    with safe_open(model, "pt") as file:
        return json.loads(file.metadata()["pocketdiff"])


def signed(model: Path, about: dict[str, Any], folder: Path) -> Path:
    """The same weights with other metadata, under their own SHA-256, as a stranger would write them."""
    about = {name: value for name, value in about.items() if name != "sha256"}
    about["sha256"] = checkpoint.fingerprint(load_file(model), about)
    path = folder / "changed.safetensors"
    save_file(load_file(model), path, {"pocketdiff": json.dumps(about)})
    return path


def test_a_checkpoint_of_another_run_is_refused(state, tiny_run, tmp_path) -> None:
    path = checkpoint.save_checkpoint(tmp_path, state, tiny_run)
    other = RunConfig(train=tiny_run.train.model_copy(update={"seed": 3, "muon_lr": 0.5}), data=tiny_run.data)
    with pytest.raises(CheckpointError, match=r"muon_lr \(0.02, 0.5\), seed \(0, 3\)"):
        checkpoint.restore_checkpoint(path, state, other)


def test_a_model_file_needs_nothing_beside_it(model: Path, state, tiny_run) -> None:
    loaded = checkpoint.load(model)
    assert loaded.config == tiny_run.train
    assert loaded.info == tiny_run.data
    for name, tensor in state.ema.state_dict().items():
        assert torch.equal(loaded.denoiser.state_dict()[name], tensor)
    assert not any(parameter.requires_grad for parameter in loaded.denoiser.parameters())


def test_the_same_weights_give_the_same_file(model: Path, drawing, tmp_path) -> None:
    again = tmp_path / "again.safetensors"
    checkpoint.save_model(again, drawing)
    assert again.read_bytes() == model.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_have_the_mode_that_the_umask_gives(model: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(model.stat().st_mode) == 0o666 & ~umask


def test_a_flipped_bit_in_the_weights_is_found(model: Path) -> None:
    flip(model, model.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="not those that were saved"):
        checkpoint.load(model)


@pytest.mark.parametrize(("saved", "changed"), [('"steps\\": 3', '"steps\\": 2'), ('"ink\\": true', '"ink\\": null')])
def test_a_changed_config_is_found(saved: str, changed: str, model: Path) -> None:
    content = model.read_bytes()
    assert content.count(saved.encode()) == 1
    model.write_bytes(content.replace(saved.encode(), changed.encode()))
    with pytest.raises(CheckpointError, match="its weights or its config are not those that were saved"):
        checkpoint.load(model)


def test_files_that_are_no_model_say_so(model: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(model), foreign)
    run = tmp_path / "run"
    run.mkdir()
    for path, message in [
        (foreign, "not written by pocketdiff"),
        (tmp_path / "none", "no such file"),
        (run, "holds no model.safetensors"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(path)
    (run / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="unfinished run"):
        checkpoint.load(run)


@pytest.mark.parametrize("change", [{"format": 1}, {"kind": "gan"}, {"train": {}}, {"extra": 1}])
def test_metadata_of_another_version_is_refused(change, model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"use the (one|version) that wrote it"):
        checkpoint.load(signed(model, metadata(model) | change, tmp_path))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_model_or_a_sentence(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_any_bytes_as_a_runs_config_give_a_sentence(tmp_path_factory, content: bytes) -> None:
    run = tmp_path_factory.mktemp("any")
    (run / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.read_run_config(run)


def test_config_survives_json(tiny_run: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny_run.to_json())
    assert checkpoint.read_run_config(tmp_path) == tiny_run


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    files.write_file(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def fail() -> None:
        with files.new_folder(path) as folder:
            (folder / "half").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with files.new_folder(path) as folder:
        (folder / "whole").write_text("whole")
        assert not path.exists()
    assert [child.name for child in path.iterdir()] == ["whole"]
