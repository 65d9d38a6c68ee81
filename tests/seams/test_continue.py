"""Finished runs: made longer, part by part, and their model files made anew."""

import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketdiff import files
from pocketdiff.checkpoint import load
from pocketdiff.config import MethodConfig
from pocketdiff.data import Dataset
from pocketdiff.errors import CheckpointError, RunError
from pocketdiff.folder import RunFolder
from pocketdiff.methods.consistency import ConsistencyConfig
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.run import Run
from tests.helpers import flip_bit
from tests.seams.runs import CONFIG, GAN, assert_ends_like, contents, finish, finished_run, log

EVERY = CONFIG.replace(pictures_every=1, gifs_every=1)
"""Pictures at every epoch, whatever the length."""


@pytest.fixture(scope="module")
def finished(tiny_data: Dataset, tmp_path_factory) -> Run:
    """A finished run of 92 images, which no test changes."""
    return finished_run(EVERY, tiny_data, tmp_path_factory.mktemp("runs") / "short")


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Path:
    """A copy of its folder."""
    return shutil.copytree(finished.folder.path, tmp_path / "copy")


@pytest.fixture(scope="module")
def longer(finished: Run, tiny_data: Dataset, tmp_path_factory) -> Run:
    """The same run, continued to 184 images without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketdiff.run.run.fp32_peak", lambda device: 1e11)
        out = shutil.copytree(finished.folder.path, tmp_path_factory.mktemp("runs") / "longer")
        return finish(Run(EVERY.replace(images=184), tiny_data, out))


# The model file


def damage(path: Path, how: str) -> None:
    """Removes a file, cuts it short, or flips one of its bits."""
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        flip_bit(path, -1)


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_a_finished_run_makes_its_model_file_anew(
    how: str, copy: Path, finished: Run, tiny_data: Dataset, caplog
) -> None:
    summary = (copy / "summary.json").read_bytes()
    built = Run(EVERY, tiny_data, copy)
    for make in (lambda: Run(EVERY, tiny_data, copy), lambda: finish(built)):
        damage(copy / "model.safetensors", how)
        fault = "missing" if how == "missing" else "damaged"
        with pytest.raises(CheckpointError, match=f"the model file is {fault}; the same train command makes it anew$"):
            load(copy)
        caplog.clear()
        with caplog.at_level(logging.INFO, "pocketdiff"):
            run = make()
        (line,) = caplog.messages
        assert f"model.safetensors: was {fault}, and was made anew from" in line
        assert run.finished
        assert list(run) == []
        assert torch.equal(run.model([3, 1]), finished.model([3, 1]))
        assert_ends_like(run, finished)
        assert (copy / "summary.json").read_bytes() == summary


@pytest.mark.parametrize("checkpoint", ["missing", "cut"])
def test_without_model_and_checkpoint_a_finished_run_is_refused(
    checkpoint: str, copy: Path, finished: Run, tiny_data: Dataset
) -> None:
    damage(copy / "model.safetensors", "missing")
    damage(RunFolder(copy).checkpoint(12), checkpoint)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="use a new --out folder") as error:
        Run(EVERY, tiny_data, copy)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\0", b"{}", b"[1]"])
def test_a_damaged_summary_is_made_anew(content: bytes, copy: Path, finished: Run, tiny_data: Dataset) -> None:
    (copy / "summary.json").write_bytes(content)
    run = Run(EVERY, tiny_data, copy)
    assert not run.finished
    assert run.summary is None
    assert list(run) == []
    assert run.summary is not None
    assert run.summary.images_seen == 92
    assert_ends_like(run, finished)


def test_what_a_killed_process_left_at_the_end_is_removed(copy: Path, finished: Run, tiny_data: Dataset) -> None:
    """An older checkpoint before the last write, and temporary files after it."""
    folder = RunFolder(copy)
    shutil.copy(folder.checkpoint(12), folder.checkpoint(11))
    folder.summary.unlink()
    assert_ends_like(finish(Run(EVERY, tiny_data, copy)), finished)
    (copy / ".metrics.jsonl.0.tmp").touch()
    assert_ends_like(Run(EVERY, tiny_data, copy), finished)


# A greater length


def test_a_longer_run_has_two_parts(longer: Run, finished: Run) -> None:
    """The learning rate rises again and falls to zero; the log and the config have both parts."""
    assert longer.finished
    assert longer.config == finished.config.replace(images=184, parts=(92,))
    assert load(longer.folder.path).config == longer.config
    assert json.loads(longer.folder.config.read_text())["train"]["parts"] == [92]
    lines = log(longer)
    assert lines[: len(log(finished))] == log(finished)
    assert [line["seen"] for line in lines] == [16, 32, 48, 64, 80, 92, 100, 116, 132, 148, 164, 180, 184]
    rates = [longer.config.learning_rate(seen, 40) for seen in range(184)]
    assert rates[92:] == rates[:92]
    assert max(rates) > 0.95
    assert rates[91] == rates[183] == min(rates[5:92]) < 0.02
    assert longer.summary is not None
    assert (longer.summary.steps, longer.summary.images_seen) == (24, 184)


def test_a_longer_run_equals_one_whose_config_has_both_parts(longer: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    """Bit for bit, pictures included. The epoch in which the first part ended shows the later weights."""
    whole = finish(Run(EVERY.replace(images=184, parts=(92,)), tiny_data, tmp_path / "run"))
    assert_ends_like(whole, longer)


def test_pictures_of_an_epoch_in_which_a_part_ended_are_drawn_again(longer: Run, finished: Run) -> None:
    before, after = contents(finished.folder.path), contents(longer.folder.path)
    kept = {name for name in before if name.startswith("pictures")}
    assert {name for name in kept if before[name] != after[name]} == {name for name in kept if "_ep2_" in name} != set()


@pytest.mark.parametrize("stop", [13, 14, 15, 20, 23])
def test_a_stop_in_the_added_part_changes_nothing(stop: int, copy: Path, longer: Run, tiny_data: Dataset) -> None:
    config = EVERY.replace(images=184)
    for report in Run(config, tiny_data, copy):
        if report.step == stop:
            break
    run = Run(config, tiny_data, copy)
    assert run.state.step == stop
    assert not run.finished
    assert_ends_like(finish(run), longer)
    assert Run(config, tiny_data, copy).finished


def test_an_interrupt_at_any_write_of_an_added_part_changes_nothing(
    copy: Path, longer: Run, tiny_data: Dataset, monkeypatch
) -> None:
    """Before it and after it; the first write makes the run longer."""
    config, write = EVERY.replace(images=184), files.write_file
    seen: list[str] = []
    stop: tuple[str, bool] | None = None

    def interrupted(path: Path, content: bytes | str) -> None:
        after = stop is not None and stop[1]
        if stop is None or path.name != stop[0] or after:
            write(path, content)
        seen.append(path.name)
        if stop is not None and path.name == stop[0]:
            raise KeyboardInterrupt

    for module in ("tensors", "run.run", "run.gallery", "run.log"):
        monkeypatch.setattr(f"pocketdiff.{module}.write_file", interrupted)
    other = shutil.copytree(copy, copy.with_name("other"))
    finish(Run(config, tiny_data, other))
    names = list(dict.fromkeys(seen))
    assert names[0] == "config.json"
    assert names[-2:] == ["model.safetensors", "summary.json"]
    for name, after in itertools.product(names, (False, True)):
        stop = name, after
        with pytest.raises(KeyboardInterrupt):
            finish(Run(config, tiny_data, copy))
    stop = None
    run = finish(Run(config, tiny_data, copy))
    assert_ends_like(run, longer)


def test_the_model_of_the_first_part_stays_until_the_next_is_finished(
    copy: Path, finished: Run, tiny_data: Dataset
) -> None:
    next(iter(Run(EVERY.replace(images=184), tiny_data, copy)))
    assert torch.equal(load(copy)([3, 1]), finished.model([3, 1]))


def test_a_third_part_follows_from_the_runs_own_config(longer: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    out = shutil.copytree(longer.folder.path, tmp_path / "run")
    run = Run(longer.config.replace(epochs=6), tiny_data, out)
    assert (run.config.parts, run.config.images, run.length) == ((92, 184), None, 240)
    assert run.state.seen == 184
    assert [report.seen for report in itertools.islice(run, 3)] == [192, 200, 208]
    again = finish(Run(EVERY.replace(epochs=6), tiny_data, out))
    assert again.finished
    assert list(again) == []
    with pytest.raises(RunError, match=r"holds a run of 240 images, which cannot be shortened to 184; use another"):
        Run(EVERY.replace(images=184), tiny_data, out)


def test_lengths_that_cannot_follow_are_one_sentence(copy: Path, tiny_data: Dataset) -> None:
    before = contents(copy)
    with pytest.raises(RunError, match="holds a run of 92 images, which cannot be shortened to 40; use another --out"):
        Run(EVERY.replace(images=40), tiny_data, copy)
    with pytest.raises(RunError, match=r"differs in images \(92, 184\), seed \(0, 1\); use another --out"):
        Run(EVERY.replace(images=184, seed=1), tiny_data, copy)
    with pytest.raises(RunError, match="already holds a run"):
        Run(EVERY.replace(images=184), tiny_data, copy, resume="never")
    (summary := copy / "summary.json").rename(copy / "kept.json")
    with pytest.raises(RunError, match="an unfinished run of 92 images; finish it first, at that length, and then"):
        Run(EVERY.replace(images=184), tiny_data, copy)
    (copy / "kept.json").rename(summary)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(RunError, match="the checkpoint at 92 images is gone, so the run cannot be continued; use"):
        Run(EVERY.replace(images=184), tiny_data, copy)
    assert contents(copy) == before


def others(finished: Run) -> dict[str, Any]:
    """Short runs of the other methods, and one with whole epochs and a learning rate by epochs."""
    teacher = {"teacher": str(finished.folder.model), "images": 92, "batch": 8}
    return {
        "gan": GAN,
        "consistency": ConsistencyConfig(**teacher, log_every=16, checkpoint_every=16, pictures_every=1),
        "epochs": EVERY.replace(epochs=2, batch=16, lr_by_epoch=True),
    }


@pytest.mark.parametrize("name", ["gan", "consistency", "epochs"])
def test_every_method_can_go_on(name: str, finished: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    """Stopped once in the added part; it equals a run whose config has both parts."""
    config: MethodConfig = others(finished)[name]
    length = {"epochs": 4} if name == "epochs" else {"images": 184}
    end = config.length(40)
    finish(Run(config, tiny_data, tmp_path / "run"))
    long = config.replace(**length)
    next(iter(Run(long, tiny_data, tmp_path / "run")))
    run = finish(Run(long, tiny_data, tmp_path / "run"))
    assert run.config.parts == (end,)
    whole = finish(Run(long.replace(parts=(end,)), tiny_data, tmp_path / "whole"))
    assert_ends_like(run, whole)


def test_a_batch_ends_with_its_part(tiny_data: Dataset) -> None:
    from pocketdiff.methods.loop import TrainState, batches

    config = DiffusionConfig(images=100, parts=(30, 50), batch=16)
    state, found = TrainState({}, []), []
    for batch in batches(config, tiny_data.train, state):
        found.append((batch.indices.start, batch.progress))
        state.seen += len(batch.indices)
    assert found == [(0, 0.0), (16, 16 / 30), (30, 0.0), (46, 0.8), (50, 0.0), (66, 0.32), (82, 0.64), (98, 0.96)]
    with pytest.raises(ValueError, match="must end one after the other"):
        DiffusionConfig(images=100, parts=(100,))
