"""Checkpoints and model files: complete or absent, verified, and never code."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from pocketdiff import checkpoint, files, tensors
from pocketdiff.checkpoint import Checkpoint, RunConfig
from pocketdiff.data import Dataset
from pocketdiff.errors import CheckpointError, TrainingError
from pocketdiff.folder import RunFolder
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.methods.loop import TrainState
from pocketdiff.model import DiffusionModel
from tests.helpers import assert_same, flip_bit, metadata, model_of, new_state, signed, steps

OLD = Path(__file__).parent / "data"
"""Model files that commit 0935374 wrote, each with the images that it drew for the seeds 0 to 9."""


@pytest.fixture
def state(tiny_config: DiffusionConfig, tiny_data: Dataset) -> TrainState:
    """A state after two steps."""
    state = new_state(tiny_config, tiny_data)
    loop = steps(state, tiny_config, tiny_data)
    for _ in range(2):
        next(loop)
    return state


@pytest.fixture
def drawing(state: TrainState, tiny_config: DiffusionConfig, tiny_data: Dataset) -> DiffusionModel:
    return model_of(state, tiny_config, tiny_data)


@pytest.fixture
def model(drawing: DiffusionModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    drawing.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


# Checkpoints


def newest_of(folder: RunFolder) -> tuple[Checkpoint, list[str]]:
    """The newest valid checkpoint, which must exist."""
    found = checkpoint.newest_checkpoint(folder)
    assert found is not None
    return found


def test_a_checkpoint_is_one_file_with_every_module_and_optimizer(state, tiny_run, folder: RunFolder) -> None:
    path = checkpoint.save_checkpoint(folder, state, tiny_run, 1.5, 2.5)
    assert path == folder.checkpoint(2) == folder.path / "checkpoints" / "step-00000002.safetensors"
    found = checkpoint.read_checkpoint(path)
    assert found.config == tiny_run
    assert found.position.model_dump() == {"step": 2, "seen": 16, "training_seconds": 1.5, "other_seconds": 2.5}
    names = {name.split("/")[0] + "/" + name.split("/")[1] for name in found.tensors}
    assert names == {"modules/net", "modules/ema", "optimizers/0", "optimizers/1"}


def test_the_old_checkpoint_is_removed_only_after_the_new_one_is_verified(
    state, tiny_run, folder: RunFolder, monkeypatch
) -> None:
    first = checkpoint.save_checkpoint(folder, state, tiny_run)
    state.step += 1

    def fail(path: Path) -> None:
        raise CheckpointError("does not verify")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read_checkpoint", fail)
        with pytest.raises(CheckpointError):
            checkpoint.save_checkpoint(folder, state, tiny_run)
    assert checkpoint.read_checkpoint(first).position.step == 2
    second = checkpoint.save_checkpoint(folder, state, tiny_run)
    assert list(folder.checkpoints.iterdir()) == [second]


def test_a_full_disk_keeps_the_old_checkpoint_and_leaves_no_litter(
    state, tiny_run, folder: RunFolder, monkeypatch
) -> None:
    first = checkpoint.save_checkpoint(folder, state, tiny_run)
    state.step += 1

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*step-00000003\.safetensors'"):
        checkpoint.save_checkpoint(folder, state, tiny_run)
    assert list(folder.checkpoints.iterdir()) == [first]
    found, faults = newest_of(folder)
    assert (found.path, faults) == (first, [])


@pytest.mark.parametrize("at", [0, 9, 300, 50_000, -1])
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_checkpoint_is_skipped_for_an_older_one(
    at: int, damage: str, state, tiny_config, tiny_data, tiny_run, folder: RunFolder
) -> None:
    first = checkpoint.save_checkpoint(folder, state, tiny_run)
    kept = folder.path / "kept"
    first.rename(kept)
    state.step += 1
    newest = checkpoint.save_checkpoint(folder, state, tiny_run)
    kept.rename(first)
    if damage == "flip":
        flip_bit(newest, at)
    else:
        os.truncate(newest, at % newest.stat().st_size)
    found, faults = newest_of(folder)
    assert found.path == first
    (fault,) = faults
    assert fault.startswith(f"{newest}: ")
    other = new_state(tiny_config, tiny_data)
    checkpoint.restore_checkpoint(found, other, tiny_run)
    state.step -= 1
    assert_same(other, state)
    flip_bit(first, -1)
    with pytest.raises(CheckpointError, match="no other checkpoint is left"):
        checkpoint.newest_checkpoint(folder)


def test_weights_that_are_not_finite_are_never_saved(state, drawing, tiny_run, folder: RunFolder) -> None:
    first = checkpoint.save_checkpoint(folder, state, tiny_run)
    with torch.no_grad():
        next(state.ema.parameters()).view(-1)[0] = torch.nan
    state.step += 1
    with pytest.raises(TrainingError, match="not finite"):
        checkpoint.save_checkpoint(folder, state, tiny_run)
    with pytest.raises(TrainingError, match="not finite"):
        drawing.save(folder.model)
    assert list(folder.checkpoints.iterdir()) == [first]
    assert not folder.model.exists()


def test_a_users_own_files_between_the_checkpoints_stay(state, tiny_run, folder: RunFolder) -> None:
    first = checkpoint.save_checkpoint(folder, state, tiny_run)
    (first.parent / ".DS_Store").write_bytes(b"")
    first.with_name("best").mkdir()
    state.step += 1
    second = checkpoint.save_checkpoint(folder, state, tiny_run)
    assert {path.name for path in second.parent.iterdir()} == {second.name, ".DS_Store", "best"}


def test_a_checkpoint_of_another_run_is_refused(state, tiny_run, folder: RunFolder) -> None:
    found = checkpoint.read_checkpoint(checkpoint.save_checkpoint(folder, state, tiny_run))
    other = RunConfig(train=tiny_run.train.model_copy(update={"seed": 3, "muon_lr": 0.5}), data=tiny_run.data)
    with pytest.raises(CheckpointError, match=r"differs in muon_lr \(0.02, 0.5\), seed \(0, 3\)"):
        checkpoint.restore_checkpoint(found, state, other)


def test_a_checkpoint_of_other_code_is_one_sentence(state, tiny_config, tiny_data, tiny_run, folder) -> None:
    path = checkpoint.save_checkpoint(folder, state, tiny_run)
    found = checkpoint.read_checkpoint(path)
    names = iter(found.tensors)
    for change in (
        {next(name for name in names if name.startswith("modules/net")): None},
        {"modules/net/extra": torch.zeros(1)},
        {"optimizers/0/net.missing.weight/momentum": torch.zeros(1)},
        {"optimizers/7/net.first.weight/momentum": torch.zeros(1)},
        {"optimizers/x": torch.zeros(1)},
    ):
        changed = {name: tensor for name, tensor in {**found.tensors, **change}.items() if tensor is not None}
        with pytest.raises(CheckpointError, match="another version of the code") as error:
            checkpoint.restore_checkpoint(found._replace(tensors=changed), new_state(tiny_config, tiny_data), tiny_run)
        assert "\n" not in str(error.value)


def test_a_model_file_is_not_a_checkpoint_and_the_other_way_round(model: Path, state, tiny_run, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.read_checkpoint(model)
    path = checkpoint.save_checkpoint(RunFolder(tmp_path / "run"), state, tiny_run)
    with pytest.raises(CheckpointError, match="has the format None"):
        checkpoint.load(path)


# Model files


def test_a_model_file_is_complete_on_its_own(model: Path, state, tiny_run) -> None:
    loaded = checkpoint.load(model)
    assert loaded.config == tiny_run.train
    assert loaded.info == tiny_run.data
    for name, tensor in state.ema.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], tensor)
    assert not any(parameter.requires_grad for parameter in loaded.net.parameters())
    assert not any(module.training for module in loaded.net.modules())


@pytest.mark.parametrize("name", ["diffusion", "ddpm", "gan", "mlp"])
def test_model_files_of_the_first_version_draw_the_same_images(name: str, tmp_path: Path) -> None:
    """Up to one grey level, because kernels round differently on other processors. Saved again, they stay the same."""
    model = checkpoint.load(OLD / f"{name}.safetensors")
    labels = list(range(10)) if model.conditional else [model.null] * 10
    drawn = model(labels, range(10))
    expected = np.load(OLD / f"{name}.npy")
    assert np.abs(drawn[:, 0].numpy().astype(int) - expected).max() <= 1
    model.save(tmp_path / "again.safetensors")
    again = checkpoint.load(tmp_path / "again.safetensors")
    assert again.config == model.config
    assert torch.equal(again(labels, range(10)), drawn)


def test_fields_of_the_first_version_keep_their_meaning() -> None:
    """``even_levels`` is called ``stratified`` now."""
    configs: list[Any] = [checkpoint.load(OLD / f"{name}.safetensors").config for name in ("diffusion", "ddpm")]
    assert [config.stratified for config in configs] == [True, False]


def test_the_same_weights_give_the_same_file(model: Path, drawing: DiffusionModel, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    drawing.save(again)
    assert again.read_bytes() == model.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_have_the_mode_that_the_umask_gives(model: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(model.stat().st_mode) == 0o666 & ~umask


def test_a_flipped_bit_in_the_weights_is_found(model: Path) -> None:
    flip_bit(model, -1)
    with pytest.raises(CheckpointError, match="its content is not what was saved"):
        checkpoint.load(model)


@pytest.mark.parametrize(("saved", "changed"), [('"steps\\": 3', '"steps\\": 2'), ('"ink\\": true', '"ink\\": null')])
def test_a_changed_config_is_found(saved: str, changed: str, model: Path) -> None:
    content = model.read_bytes()
    assert content.count(saved.encode()) == 1
    model.write_bytes(content.replace(saved.encode(), changed.encode()))
    with pytest.raises(CheckpointError, match="its content is not what was saved"):
        checkpoint.load(model)


def test_other_files_are_refused(model: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(model), foreign)
    run = tmp_path / "run"
    run.mkdir()
    for path, message in [
        (foreign, "not written by pocketdiff"),
        (tmp_path / "none", "no such file"),
        (run, "holds no model file"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(path)
    (run / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="unfinished run"):
        checkpoint.load(run)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1}, {"format": "2"}, {"kind": "gan"}, {"kind": None}, {"train": {}}, {"train": None}, {"train": []},
        {"data": {}}, {"extra": 1},
    ],
)  # fmt: skip
def test_metadata_of_another_version_is_refused(change: dict[str, Any], model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"use the version (of pocketdiff )?that wrote it") as error:
        checkpoint.load(signed(model, metadata(model) | change, tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../../escaped", "/etc", "..", "", "a\\b", "two\nlines"])
def test_a_class_name_that_is_a_path_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    about = metadata(model)
    about["data"]["classes"][0] = name
    with pytest.raises(CheckpointError, match="its config is not valid in this version"):
        checkpoint.load(signed(model, about, tmp_path))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_model_in_one_sentence(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["format", "kind", "train", "data", "plugins", "checkpoint", "config"]), JSON))
def test_any_metadata_give_a_model_or_one_sentence(tmp_path_factory, change: dict[str, Any]) -> None:
    base = tmp_path_factory.getbasetemp() / "metadata"
    base.mkdir(exist_ok=True)
    path = signed(OLD / "mlp.safetensors", metadata(OLD / "mlp.safetensors") | change, base)
    for read in (checkpoint.load, checkpoint.read_checkpoint):
        try:
            read(path)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017 (both ways are right)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_a_runs_config_are_one_sentence(tmp_path_factory, content: bytes) -> None:
    run = RunFolder(tmp_path_factory.mktemp("any"))
    run.config.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.read_run_config(run)


def test_a_run_config_survives_json(tiny_run: RunConfig, folder: RunFolder) -> None:
    assert checkpoint.read_run_config(folder) is None
    folder.config.write_text(tiny_run.to_json())
    assert checkpoint.read_run_config(folder) == tiny_run


# Files


def test_tensors_survive_a_file_in_any_order_and_layout(tmp_path: Path) -> None:
    saved = {
        "b": torch.arange(12.0).view(3, 4).T,
        "a": torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "n": torch.tensor(3),
        "h": torch.randn(5).bfloat16(),
    }
    about = {"list": [1, 2.5, None], "text": "ß"}
    tensors.write_tensors(tmp_path / "x", saved, about)
    found, told = tensors.read_tensors(tmp_path / "x")
    assert told == about
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) and found[name].dtype == saved[name].dtype for name in saved)
    backwards = dict(reversed(saved.items()))
    assert tensors.fingerprint(saved, about) == tensors.fingerprint(backwards, about)
    for name, other in (("n", torch.tensor(4)), ("n", torch.tensor(3.0)), ("b", saved["b"].reshape(12))):
        assert tensors.fingerprint({**saved, name: other}, about) != tensors.fingerprint(saved, about)


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    files.write_file(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_appears_completely_or_not_at_all(tmp_path: Path) -> None:
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
