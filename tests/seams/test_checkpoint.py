"""Checkpoints and model files: complete or absent, verified, and never code."""

import json
import os
import stat
import time
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
from pocketdiff.errors import CheckpointError, RequestError, TrainingError
from pocketdiff.folder import RunFolder
from pocketdiff.guidance import guide
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.methods.gan import GanConfig
from pocketdiff.methods.loop import TrainState
from pocketdiff.model import DiffusionModel
from pocketdiff.nets.gan import MlpGanConfig
from pocketdiff.records import Interval
from tests.helpers import assert_same, flip_bit, metadata, model_of, new_state, signed, steps, trained

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
    interval = Interval(seen=8, seconds=0.5, steps=1, sums={"loss": 0.1 + 0.2})
    path = checkpoint.save_checkpoint(folder, state, tiny_run, 1.5, 2.5, interval)
    assert path == folder.checkpoint(2) == folder.path / "checkpoints" / "step-00000002.safetensors"
    found = checkpoint.read_checkpoint(path)
    assert found.config == tiny_run
    times = {"training_seconds": 1.5, "other_seconds": 2.5}
    assert found.position.model_dump() == {"step": 2, "seen": 16, **times, "interval": interval.model_dump()}
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


def test_no_flipped_bit_in_a_header_gives_another_state(tmp_path: Path, tiny_data: Dataset) -> None:
    """A sample of the bits, with more of the position's; ``benchmarks/fuzz.py --parts header`` flips every bit."""
    net = MlpGanConfig(latent=2, generator=(2,), discriminator=(2,))
    config = GanConfig(images=8, batch=8, net=net, classification=0.0)
    run = RunConfig(train=config, data=tiny_data.info)
    path = checkpoint.save_checkpoint(RunFolder(tmp_path), trained(config, tiny_data)[0], run)
    content, good = path.read_bytes(), checkpoint.read_checkpoint(path)
    size = 8 + int.from_bytes(content[:8], "little")
    start = content.index(b'checkpoint\\"')
    end = content.index(b"}", start)
    assert b"seen" in content[start:end]
    for bit in [*range(0, 8 * size, 499), *range(8 * start, 8 * end, 7)]:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = checkpoint.read_checkpoint(path)
        except CheckpointError:
            continue
        assert (found.position, found.config) == (good.position, good.config)
        assert tensors.fingerprint(found.tensors, {}) == tensors.fingerprint(good.tensors, {})


@pytest.mark.parametrize(
    "change", [{"step": 3}, {"seen": 0}, {"seen": 93}, {"step": -1}, {"seen": 2**70}, {"training_seconds": "NaN"}]
)
def test_a_signed_position_that_cannot_be_is_refused(change, state, tiny_run, folder: RunFolder, tmp_path) -> None:
    path = checkpoint.save_checkpoint(folder, state, tiny_run)
    about = metadata(path)
    about["checkpoint"] |= change
    signed(path, about, tmp_path).replace(path)
    with pytest.raises(CheckpointError, match=r"does not fit its name or its config|is not valid in this version"):
        checkpoint.read_checkpoint(path)


def test_a_checkpoint_under_the_name_of_another_step_is_refused(state, tiny_run, folder: RunFolder) -> None:
    path = checkpoint.save_checkpoint(folder, state, tiny_run)
    with pytest.raises(CheckpointError, match="holds step 2, after 16 of 92 images, which does not fit its name"):
        checkpoint.read_checkpoint(path.rename(folder.checkpoint(3)))
    assert checkpoint.read_checkpoint(folder.checkpoint(3).rename(folder.path / "kept")).position.step == 2


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


@pytest.mark.parametrize("name", ["diffusion", "ddpm"])
def test_a_loaded_denoiser_is_bound_in_eval_mode_and_keeps_its_buffers(name: str) -> None:
    """The ddpm network has batch norm, which in train mode would mix the images of a batch and change its buffers."""
    model: Any = checkpoint.load(OLD / f"{name}.safetensors")
    before = {key: buffer.clone() for key, buffer in model.net.named_buffers()}
    x, label = model.start([0, 1, 2], 2.0), torch.tensor([1, 2, 3])
    together = guide(model.denoiser, label, scale=2.0)(x, 2.0)
    alone = torch.cat([guide(model.denoiser, label[i : i + 1], scale=2.0)(x[i : i + 1], 2.0) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(buffer, before[key]) for key, buffer in model.net.named_buffers())


@pytest.mark.parametrize("name", ["diffusion", "ddpm", "gan", "mlp"])
def test_torchs_default_dtype_does_not_change_a_model(name: str) -> None:
    def draw() -> torch.Tensor:
        model = checkpoint.load(OLD / f"{name}.safetensors")
        assert {weight.dtype for weight in model.net.parameters()} == {torch.float32}
        return model([3, 1] if model.conditional else [model.null] * 2)

    expected = draw()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(draw(), expected)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_torchs_default_dtype_does_not_change_training(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    expected = trained(tiny_config, tiny_data)[0]
    torch.set_default_dtype(torch.float64)
    try:
        found = trained(tiny_config, tiny_data)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(found, expected)


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


@pytest.mark.parametrize("name", ["diffusion", "ddpm", "gan", "mlp"])
def test_half_precision_halves_the_file_and_hardly_changes_the_images(name: str, tmp_path: Path) -> None:
    """ddpm has counters, which stay integers."""
    model, path = checkpoint.load(OLD / f"{name}.safetensors"), tmp_path / "half.safetensors"
    model.save(path, half=True)
    assert {tensor.dtype for tensor in load_file(path).values()} <= {torch.float16, torch.int64}
    half = checkpoint.load(path)
    assert {weight.dtype for weight in half.net.parameters()} == {torch.float32}
    for key, tensor in model.net.state_dict().items():
        torch.testing.assert_close(half.net.state_dict()[key], tensor, rtol=2**-11, atol=2**-25)
    labels = list(range(10)) if model.conditional else [model.null] * 10
    assert (half(labels).int() - model(labels).int()).abs().max() <= 2
    half.save(tmp_path / "again.safetensors", half=True)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_the_files_of_half_precision_are_half_as_large(drawing: DiffusionModel, model: Path, tmp_path: Path) -> None:
    drawing.save(tmp_path / "half.safetensors", half=True)
    numbers = sum(tensor.numel() for tensor in load_file(model).values())
    header = len(str(tensors.read_tensors(model)[1]))
    assert model.stat().st_size - (tmp_path / "half.safetensors").stat().st_size == pytest.approx(
        2 * numbers, abs=header
    )


def test_kept_settings_keep_the_precision(drawing: DiffusionModel, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    drawing.save(path, half=True)
    checkpoint.keep_sampling(path, drawing.sampling.replace(steps=1))
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("value", "message"), [(65_520.0, "that float16 cannot hold"), (torch.nan, "is not finite"), (torch.inf, "is not")]
)
def test_weights_that_half_precision_cannot_hold_are_not_saved(
    value: float, message: str, drawing: DiffusionModel, tmp_path: Path
) -> None:
    weight = drawing.net.state_dict()["net.first.weight"]
    weight[0, 0, 0, 0] = 65_504.0
    drawing.save(tmp_path / "largest.safetensors", half=True)
    assert checkpoint.load(tmp_path / "largest.safetensors").net.state_dict()["net.first.weight"].max() == 65_504
    weight[0, 0, 0, 0] = value
    with pytest.raises((RequestError, TrainingError), match=message) as error:
        drawing.save(tmp_path / "half.safetensors", half=True)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["largest.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.bool])
def test_a_model_file_with_weights_of_another_type_is_refused(dtype: torch.dtype, model: Path) -> None:
    held, about = tensors.read_tensors(model)
    name = "net.first.weight"
    tensors.write_tensors(model, {**held, name: held[name].to(dtype)}, about)
    with pytest.raises(CheckpointError, match=f"its config does not fit its tensor '{name}'"):
        checkpoint.load(model)


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


HOSTILE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "blocks": ("diffusion", "train.net", {"blocks": 10**9}),
    "a width": ("diffusion", "train.net", {"widths": [8000, 8000]}),
    "an embedding": ("diffusion", "train.net", {"embedding": 10**6}),
    "a large network": ("diffusion", "train.net", {"blocks": 4, "widths": [1024] * 5, "embedding": 4096}),
    "the largest ddpm": ("ddpm", "train.net", {"n_feat": 1024}),
    "the largest GAN": ("gan", "train.net", {"widths": [1024] * 5, "embedding": 4096}),
    "a generator": ("mlp", "train.net", {"generator": [2**16] * 8}),
    "a discriminator, which is in no model file": ("mlp", "train.net", {"discriminator": [2**16] * 8}),
    "classes": ("diffusion", "data", {"classes": [str(number) for number in range(10**5)]}),
    "no class": ("diffusion", "data", {"classes": []}),
    "a height": ("gan", "data", {"height": 20_000}),
    "a width of images": ("diffusion", "data", {"width": 65}),
    "channels": ("diffusion", "data", {"channels": 10**6}),
    "two channels": ("diffusion", "data", {"channels": 2}),
    "steps": ("diffusion", "train.sampling", {"steps": 10**6}),
    "steps of GIFs": ("diffusion", "train", {"gif_steps": 10**6}),
    "pictures": ("diffusion", "train", {"guidance_strengths": [number / 10 for number in range(17)]}),
    "timesteps": ("ddpm", "train.schedule", {"timesteps": 10**6}),
    "a terminal escape as hash": ("diffusion", "data", {"sha256": "\x1b[2J"}),
    "a negative number of images": ("diffusion", "data", {"train_images": -1}),
    "a test split without a size": ("diffusion", "data", {"test_images": None}),
    "a list as kind": ("diffusion", "train", {"kind": ["diffusion"]}),
    "a number as kind": ("diffusion", "train.net", {"kind": 3}),
    "a dictionary as kind": ("diffusion", "train.schedule", {"kind": {"kind": "karras"}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_file_that_asks_for_too_much_is_refused_at_once(name: str, tmp_path: Path, monkeypatch) -> None:
    """No network is built, so its weights, and torch's generator, are never touched."""
    base, place, fields = HOSTILE[name]
    about = part = metadata(OLD / f"{base}.safetensors")
    for key in place.split("."):
        part = part[key]
    part.update(fields)
    path = signed(OLD / f"{base}.safetensors", about, tmp_path)
    monkeypatch.setattr(checkpoint, "_new_model", only_shapes(checkpoint._new_model))
    began = time.process_time()
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    assert time.process_time() - began < 2
    assert str(error.value).isprintable()


def only_shapes(build: Any) -> Any:
    """The function, which may only build networks without values."""

    def checked(config: RunConfig) -> Any:
        model = build(config)
        assert {weight.device.type for weight in model.net.parameters()} == {"meta"}
        return model

    return checked


def test_a_tensor_that_does_not_fit_the_config_is_named(tmp_path: Path) -> None:
    about = metadata(OLD / "diffusion.safetensors")
    about["train"]["net"]["embedding"] = 4096
    with pytest.raises(
        CheckpointError, match=r"its config does not fit its tensor 'net\.embedding\.label\.weight'; use"
    ):
        checkpoint.load(signed(OLD / "diffusion.safetensors", about, tmp_path))


def test_an_unknown_network_among_other_faults_is_named_with_its_remedy(tmp_path: Path) -> None:
    about = metadata(OLD / "diffusion.safetensors")
    about["train"] |= {"net": {"kind": "mine"}, "images": "many", "later": 1}
    with pytest.raises(CheckpointError, match="there is no network 'mine'; if a plug-in provides it, import it first"):
        checkpoint.load(signed(OLD / "diffusion.safetensors", about, tmp_path))


def test_a_remedy_holds_no_terminal_escapes(tmp_path: Path) -> None:
    about = metadata(OLD / "diffusion.safetensors")
    about["train"]["net"] = {"kind": "mine"}
    about["plugins"] = [{"noun": "network", "name": "mine", "module": "\x1b[2J", "package": None}]
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(signed(OLD / "diffusion.safetensors", about, tmp_path))
    assert str(error.value).isprintable()


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


@pytest.mark.skipif(os.name != "posix", reason="Windows restricts links")
def test_of_a_link_among_the_leftovers_only_the_link_is_removed(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    (outside / ".kept.tmp").mkdir(parents=True)
    (outside / "file").write_text("kept")
    run.mkdir()
    (run / ".folder.tmp").symlink_to(outside)
    (run / ".file.tmp").symlink_to(outside / "file")
    (run / ".dangling.tmp").symlink_to(tmp_path / "nowhere")
    (run / ".loop.tmp").symlink_to(run / ".loop.tmp")
    (run / "pictures").symlink_to(outside)
    (run / ".half.tmp").mkdir()
    (run / ".half.tmp" / "picture").write_text("half")
    files.remove_leftovers(run)
    assert [path.name for path in run.iterdir()] == ["pictures"]
    assert {path.name for path in outside.iterdir()} == {".kept.tmp", "file"}


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
