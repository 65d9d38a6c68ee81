"""Runs: a folder that is claimed, trained in, left at any point, continued bit for bit, and finished."""

import contextlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from pocketdiff import files, pictures
from pocketdiff.checkpoint import load
from pocketdiff.config import SamplingConfig
from pocketdiff.data import Dataset, Images
from pocketdiff.errors import (
    CheckpointError,
    EvaluationError,
    PluginError,
    PocketdiffError,
    RequestError,
    RunError,
    TrainingError,
)
from pocketdiff.evaluation.classifiers import SHIPPED
from pocketdiff.folder import RunFolder, short_name
from pocketdiff.methods import loop
from pocketdiff.methods.consistency import ConsistencyConfig
from pocketdiff.methods.diffusion import Diffusion
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.optim import Muon
from pocketdiff.records import Summary
from pocketdiff.run import Run
from pocketdiff.run.gallery import Due, Gallery
from tests.helpers import assert_same, trained
from tests.seams.runs import CONFIG, GAN, assert_ends_like, contents, finish, finished_run, log, stopped_and_finished


@pytest.fixture(scope="module")
def finished(tiny_data: Dataset, tmp_path_factory) -> Run:
    """A finished run, which no test changes."""
    return finished_run(CONFIG, tiny_data, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def again(finished: Run, tmp_path: Path) -> Path:
    """A copy of its folder without the summary: a run that was killed before its last write."""
    out = tmp_path / "again"
    shutil.copytree(finished.folder.path, out)
    (out / "summary.json").unlink()
    return out


# A finished run


def test_a_run_trains_as_the_loop_does(finished: Run, tiny_data: Dataset) -> None:
    state, _ = trained(CONFIG, tiny_data)
    assert_same(finished.state, state)
    assert torch.equal(load(finished.folder.path)([3, 1]), finished.model([3, 1]))


def test_a_run_leaves_all_its_files(finished: Run) -> None:
    out = finished.folder.path
    assert {path.name for path in out.iterdir()} - {".lock"} == {
        "config.json", "metrics.jsonl", "summary.json", "model.safetensors", "pictures", "checkpoints",
    }  # fmt: skip
    views = ("_w0", "_w0.5")
    grids = {finished.folder.image(epoch, view) for epoch in range(3) for view in views}
    gifs = {finished.folder.gif(epoch, view) for epoch in (0, 2) for view in views}
    assert set(finished.folder.pictures.iterdir()) == grids | gifs
    assert list(finished.folder.checkpoints.iterdir()) == [finished.folder.checkpoint(12)] == [finished.saved]
    last = {finished.folder.image(2, view) for view in views} | {finished.folder.gif(2, view) for view in views}
    files = {finished.folder.metrics, finished.folder.summary, finished.folder.model}
    assert set(finished.written) == last | files
    assert len(finished.written) == 7


def test_the_config_records_the_data(finished: Run, tiny_data: Dataset) -> None:
    assert finished.config == CONFIG.model_copy(update={"data": tiny_data.source})
    stored = json.loads(finished.folder.config.read_text())
    assert stored["train"]["data"] == tiny_data.source
    assert stored["data"] == tiny_data.info.model_dump(mode="json")
    assert finished.length == 92


def test_the_log_has_a_line_for_each_interval(finished: Run, tiny_data: Dataset) -> None:
    _, reports = trained(CONFIG, tiny_data)
    lines = [json.loads(line) for line in finished.folder.metrics.read_text().splitlines()]
    assert [line["seen"] for line in lines] == [16, 32, 48, 64, 80, 92]
    assert all(line.keys() == {"step", "seen", "epoch", "loss", "lr", "images_per_second", "seconds"} for line in lines)
    for line, pair in zip(lines, zip(reports[::2], reports[1::2], strict=True), strict=True):
        assert line["loss"] == pytest.approx(sum(report.losses["loss"].item() for report in pair) / 2, rel=1e-6)
        assert (line["step"], line["epoch"], line["lr"]) == (pair[1].step, pair[1].epoch, pair[1].lr)
    assert all(line["images_per_second"] > 0 for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_the_summary_is_a_record(finished: Run) -> None:
    summary = finished.summary
    assert summary is not None
    assert Summary.model_validate_json(finished.folder.summary.read_text()) == summary
    assert (summary.steps, summary.images_seen) == (12, 92)
    assert summary.parameters == finished.model.num_parameters
    assert summary.images_per_second == pytest.approx(92 / summary.training_seconds)
    assert summary.training_seconds == pytest.approx(finished.training_seconds)
    assert summary.other_seconds > 0
    assert summary.peak_memory_bytes is None or 50e6 < summary.peak_memory_bytes < 4e9
    assert summary.peak_gpu_memory_bytes is None
    assert summary.fp32_peak_flops == 1e11
    assert summary.hardware.device == "cpu"


def test_pictures_show_generated_images_above_real_ones(finished: Run) -> None:
    with Image.open(finished.folder.image(2, "_w0.5")) as picture:
        assert picture.width == (10 * 30 + 2) * 3
        real = np.asarray(picture)[picture.height // 2 + 12 :]
        assert real.mean() > 200  # dark ink on white
        assert real.min() < 20
    with Image.open(finished.folder.gif(2, "_w0.5")) as gif:
        assert sum(1 for _ in ImageSequence.Iterator(gif)) == 4  # pure noise, and three steps
        assert gif.width == picture.width


def test_pictures_say_what_they_show(finished: Run, tiny_data: Dataset, tmp_path: Path, monkeypatch) -> None:
    """Which epoch, guidance strength, classes, step and noise level."""
    said: list[tuple[object, ...]] = []
    captioned = pictures.captioned

    def spy(grid: Image.Image, *words: Any) -> Image.Image:
        said.append(words)
        return captioned(grid, *words)

    monkeypatch.setattr(pictures, "captioned", spy)
    gallery = Gallery(RunFolder(tmp_path), finished.model, tiny_data.train)
    gallery.draw(Due(2, 92, grids=True, gifs=True), lambda what, done, total: None)
    digits = list("0123456789")
    slow: Any = finished.model.views()[1].slow
    assert said[0] == ("real: training images", digits)
    assert said[-1] == ("generated: epoch 2, w = 0.5, 92 images seen", digits)
    assert said[-5:-1] == [
        (f"epoch 2, w = 0.5: step {step} of 3, noise level {sigma:.2g}", digits)
        for step, sigma in enumerate(slow.grid())
    ]


def test_a_finished_run_changes_nothing_and_draws(finished: Run, tiny_data: Dataset) -> None:
    before = contents(finished.folder.path)
    run = Run(CONFIG, tiny_data, finished.folder.path)
    assert run.finished
    assert list(run) == []
    assert run.summary == finished.summary
    assert torch.equal(run.model([3, 1]), finished.model([3, 1]))
    assert contents(finished.folder.path) == before
    assert repr(run) == f"Run(diffusion, '{finished.folder}', finished)"


def test_the_names_of_a_runs_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    assert not folder.is_run()
    assert not folder.path.exists()
    assert short_name(folder.path) == short_name(folder.model) == "mine"
    assert short_name(Path("models/other.safetensors")) == "other"
    folder.pictures.mkdir(parents=True)
    for name in ("image_ep0_w0.5.png", "image_ep10_w0.5.png", "image_ep2_w0.png", "image_epx_w0.5.png", "scores.png"):
        (folder.pictures / name).touch()
    assert folder.image_epochs("_w0.5") == {epoch: folder.image(epoch, "_w0.5") for epoch in (0, 10)}
    assert folder.image_epochs("_w0") == {2: folder.image(2, "_w0")}
    assert folder.image_epochs("") == {}
    folder.config.touch()
    assert folder.is_run()


# Leaving and continuing


@pytest.mark.parametrize("new", [False, True], ids=["the same object", "a new object"])
def test_a_run_left_after_every_step_ends_like_one_without_a_stop(
    new: bool, finished: Run, tiny_data: Dataset, tmp_path: Path
) -> None:
    run = Run(CONFIG, tiny_data, tmp_path / "run")
    for step in range(1, 13):
        for report in run:
            assert report.step == step
            break
        assert run.saved == run.folder.checkpoint(step)
        assert run.saved.exists()
        assert not run.finished
        assert repr(run).endswith(f"{run.state.seen} of 92 images)")
        if new:
            run = Run(CONFIG, tiny_data, tmp_path / "run")
            assert run.resumed_from == run.folder.checkpoint(step)
    assert list(run) == []  # Only pictures, model and summary were left to do.
    assert_ends_like(run, finished)


@pytest.mark.parametrize("stop", [1, 4, 5, 11])
def test_an_error_in_the_loops_body_loses_nothing(stop: int, finished: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    run = Run(CONFIG, tiny_data, tmp_path / "run")

    def fail() -> None:
        for report in run:
            if report.step == stop:
                raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        fail()
    assert run.saved == run.folder.checkpoint(stop)
    assert_ends_like(finish(Run(CONFIG, tiny_data, tmp_path / "run")), finished)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_of_the_progress_callback_loses_nothing(
    error: type[BaseException], finished: Run, tiny_data: Dataset, tmp_path: Path
) -> None:
    """The callback is called while pictures are drawn; the next session draws them first."""
    calls: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        calls.append(what)
        if len(calls) == 9:  # inside the second view of the first epoch
            raise error

    run = Run(CONFIG, tiny_data, tmp_path / "run", progress=progress)
    with pytest.raises(error):
        finish(run)
    assert set(calls) == {"drawing epoch 0, w = 0", "drawing epoch 0, w = 0.5"}
    assert (run.state.step, run.saved) == (5, run.folder.checkpoint(5))
    assert not run.folder.image(0, "_w0.5").exists()
    for report in run:
        assert report.step == 6
        assert run.folder.image(0, "_w0.5").exists()
        break
    assert_ends_like(finish(run), finished)


def interrupted(work: Callable[..., Any], call: int, after: bool) -> Callable[..., Any]:
    """A function that raises KeyboardInterrupt at its n-th call, before or after its work."""
    calls = 0

    def wrapped(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = work(*given, **options) if calls != call or after else None
        if calls == call:
            raise KeyboardInterrupt
        return result

    return wrapped


@pytest.mark.parametrize("call", [1, 7])
@pytest.mark.parametrize("where", ["before backward", "after backward", "between the optimizers", "before the average"])
def test_an_interrupt_inside_a_step_never_saves_a_torn_state(
    where: str, call: int, finished: Run, tiny_data: Dataset, tmp_path: Path, monkeypatch
) -> None:
    """The same object and a new one continue from the last checkpoint, or from the start."""
    owner, name, after = {
        "before backward": (Diffusion, "backward", False),
        "after backward": (Diffusion, "backward", True),
        "between the optimizers": (Muon, "step", True),
        "before the average": (loop, "update_ema", False),
    }[where]
    run = Run(CONFIG, tiny_data, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted(getattr(owner, name), call, after))
        with pytest.raises(KeyboardInterrupt):
            finish(run)
    whole = (call - 1) // 2 * 2  # A checkpoint is due after every second step, and after each epoch of 5 steps.
    whole = max(whole, 5 if call > 5 else 0, 10 if call > 10 else 0)
    assert run.folder.saved_checkpoints() == ([run.folder.checkpoint(whole)] if whole else [])
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    assert_ends_like(finish(run), finished)
    assert_ends_like(finish(Run(CONFIG, tiny_data, copy)), finished)


def test_an_object_whose_folder_went_further_follows(finished: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    slow, fast = (Run(CONFIG, tiny_data, tmp_path / "run") for _ in range(2))
    next(iter(slow))
    for report in fast:
        if report.step == 7:
            break
    assert [report.step for report in itertools.islice(slow, 2)] == [8, 9]
    finish(fast)
    assert list(slow) == []
    assert torch.equal(slow.model([3, 1]), finished.model([3, 1]))
    assert_ends_like(slow, finished)


def test_time_counts_over_all_sessions(tiny_data: Dataset, tmp_path: Path) -> None:
    times = []
    for stop in (3, 6, None):
        run = Run(CONFIG, tiny_data, tmp_path / "run")
        for report in run:
            if report.step == stop:
                break
        times.append((run.training_seconds, run.other_seconds))
    assert times == sorted(times)
    assert [other for _, other in times] == sorted(other for _, other in times)
    assert run.summary.training_seconds == times[-1][0]


# Folders


def test_two_loops_cannot_train_in_one_folder(tiny_data: Dataset, tmp_path: Path) -> None:
    one, other = (Run(CONFIG, tiny_data, tmp_path / "run") for _ in range(2))
    reports = iter(one)
    next(reports)
    for attempt in (
        lambda: next(iter(other)),
        lambda: next(iter(one)),
        lambda: Run(CONFIG, tiny_data, tmp_path / "run"),
    ):
        with pytest.raises(RunError, match="another process is training there"):
            attempt()
    assert next(reports).step == 2
    reports.close()
    assert next(iter(other)).step == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7, "batch": 9}, r"batch \(8, 9\), seed \(0, 7\)"),
        ({"sampling": SamplingConfig(steps=2, scale=3.0)}, r"sampling\.scale \(1\.4, 3\.0\)"),
        ({"net": UNetConfig(widths=(8, 16), blocks=1, embedding=8)}, r"net\.widths \(\[8\], \[8, 16\]\)"),
    ],
)
def test_another_config_is_refused_and_named(change: dict[str, Any], message: str, finished: Run, tiny_data) -> None:
    before = contents(finished.folder.path)
    with pytest.raises(RunError, match=f"holds a run that differs in {message}"):
        Run(CONFIG.model_copy(update=change), tiny_data, finished.folder.path)
    assert contents(finished.folder.path) == before


def test_other_data_and_another_method_are_refused(finished: Run, tiny_data: Dataset) -> None:
    pixels = tiny_data.train.pixels.clone()
    pixels[0, 0, 0, 0] ^= 1
    other = Dataset.from_arrays(
        pixels, tiny_data.train.labels, tiny_data.test.pixels, tiny_data.test.labels, classes=tiny_data.info.classes
    )
    with pytest.raises(RunError, match=r"data\.sha256 .*, data \("):
        Run(CONFIG, other, finished.folder.path)
    with pytest.raises(RunError, match=r"kind \(diffusion, gan\)"):
        Run(GAN, tiny_data, finished.folder.path)


def test_other_files_are_not_touched(tiny_data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="holds files that are not a run's"):
        Run(CONFIG, tiny_data, tmp_path)
    with pytest.raises(RunError, match=r"thesis\.txt: is a file"):
        Run(CONFIG, tiny_data, tmp_path / "thesis.txt")
    with pytest.raises(RunError, match="cannot be used"):
        Run(CONFIG, tiny_data, tmp_path / "thesis.txt" / "run")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} <= {"thesis.txt", ".lock"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs file modes, which root ignores")
def test_a_read_only_folder_is_refused(tiny_data: Dataset, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for folder in (tmp_path, tmp_path / "run"):
            with pytest.raises(RunError, match="cannot be used"):
                Run(CONFIG, tiny_data, folder)
    finally:
        tmp_path.chmod(0o700)


def test_a_system_error_of_the_folder_is_one_sentence(tiny_data: Dataset, tmp_path: Path, monkeypatch) -> None:
    """A read-only file system, for one; root ignores the modes of files."""

    def refuse(*given: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"run: cannot be used \(Read-only file system\)"):
        Run(CONFIG, tiny_data, tmp_path / "run")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"train": {"kind": "diffusion", "muon": 1}, "data": {}}'])
def test_a_damaged_config_is_refused(content: str, again: Path, tiny_data: Dataset) -> None:
    (again / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        Run(CONFIG, tiny_data, again)


def test_litter_of_a_killed_process_is_removed(again: Path, finished: Run, tiny_data: Dataset) -> None:
    (again / "checkpoints/.step-1.0.tmp").mkdir()
    (again / "pictures/.image.png.0.tmp").write_text("half")
    assert_ends_like(finish(Run(CONFIG, tiny_data, again)), finished)
    assert list(again.rglob("*.tmp")) == []


def test_a_folder_that_was_claimed_halfway_is_still_free(tiny_data: Dataset, tmp_path: Path) -> None:
    (tmp_path / ".config.json.00.tmp").write_text("{")
    next(iter(Run(CONFIG, tiny_data, tmp_path)))
    assert not (tmp_path / ".config.json.00.tmp").exists()


def test_a_damaged_log_does_not_stop_a_run(again: Path, finished: Run, tiny_data: Dataset) -> None:
    with (again / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\xff\n[]\n{"step": 99}\n{"step": 1%s}\n{"st' % (b"0" * 400))
    run = finish(Run(CONFIG, tiny_data, again))
    assert log(run) == log(finished)


# Checkpoints


def test_never_refuses_a_folder_with_a_run_and_begins_in_a_new_one(
    finished: Run, tiny_data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="already holds a run"):
        Run(CONFIG, tiny_data, finished.folder.path, resume="never")
    run = Run(CONFIG, tiny_data, tmp_path / "run", resume="never")
    next(iter(run))
    assert run.saved == run.folder.checkpoint(1)
    assert next(iter(run)).step == 2  # The same object may be left and continued.


def test_a_given_checkpoint_is_continued_in_its_own_folder_or_another(
    finished: Run, tiny_data: Dataset, tmp_path: Path
) -> None:
    run = Run(CONFIG, tiny_data, tmp_path / "run")
    for report in run:
        if report.step == 3:
            break
    kept = tmp_path / "kept.safetensors"
    shutil.copy(run.folder.checkpoint(3), kept)
    for report in run:
        if report.step == 7:
            break
    for folder in (tmp_path / "run", tmp_path / "other"):
        back = Run(CONFIG, tiny_data, folder, resume=str(kept))
        assert (back.resumed_from, back.state.step) == (kept, 3)
        assert [report.step for report in itertools.islice(back, 2)] == [4, 5]
        assert back.folder.saved_checkpoints() == [back.folder.checkpoint(5)]
        assert back.saved == back.folder.checkpoint(5)
    finish(back)
    assert (back.folder.model).read_bytes() == finished.folder.model.read_bytes()


def test_a_given_checkpoint_must_fit(finished: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        Run(CONFIG, tiny_data, tmp_path / "a", resume=str(tmp_path / "none.safetensors"))
    with pytest.raises(CheckpointError, match=r"belongs to a run that differs in seed \(0, 1\)"):
        Run(CONFIG.model_copy(update={"seed": 1}), tiny_data, tmp_path / "b", resume=str(finished.saved))


def test_a_damaged_checkpoint_is_a_warning_if_there_is_an_older_one(
    finished: Run, tiny_data: Dataset, tmp_path: Path, caplog
) -> None:
    run = Run(CONFIG, tiny_data, tmp_path / "run")
    next(iter(run))
    damaged = run.folder.checkpoint(2)
    damaged.write_bytes(run.saved.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "pocketdiff"):
        run = Run(CONFIG, tiny_data, tmp_path / "run")
    assert run.resumed_from == run.folder.checkpoint(1)
    assert str(damaged) in caplog.text
    assert_ends_like(finish(run), finished)
    run.folder.summary.unlink()
    run.folder.checkpoint(12).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other checkpoint is left"):
        Run(CONFIG, tiny_data, tmp_path / "run")


def test_a_full_disk_loses_nothing(finished: Run, tiny_data: Dataset, tmp_path: Path, monkeypatch) -> None:
    """Whatever file it is: with room again, the run ends like one without a stop."""
    write = files.write_file
    for name in ("step-00000002", "image_ep0_w0.5", "gif_ep0_w0.gif", "model.safetensors", "summary.json"):
        out = tmp_path / name
        run = Run(CONFIG, tiny_data, out)

        def full(path: Path, content: bytes | str) -> None:
            if path.name.startswith(name):  # noqa: B023 (used inside the loop only)
                raise OSError(28, "No space left on device", str(path))
            write(path, content)

        with monkeypatch.context() as patch:
            for module in ("tensors", "run.run", "run.gallery"):
                patch.setattr(f"pocketdiff.{module}.write_file", full)
            with pytest.raises(OSError, match="No space left"):
                finish(run)
        assert not run.finished
        assert list(out.rglob("*.tmp")) == []
        assert_ends_like(finish(run), finished)


def test_a_full_disk_at_the_end_of_a_loop_is_raised_where_it_is_closed(
    tiny_data: Dataset, tmp_path: Path, monkeypatch
) -> None:
    run = Run(CONFIG, tiny_data, tmp_path / "run")

    def full(path: Path, content: bytes | str) -> None:
        raise OSError(28, "No space left on device", str(path))

    def leave() -> None:
        with contextlib.closing(iter(run)) as reports:
            next(reports)

    with monkeypatch.context() as patch:
        patch.setattr("pocketdiff.tensors.write_file", full)
        with pytest.raises(OSError, match="No space left"):
            leave()
    assert run.saved is None
    assert next(iter(run)).step == 2  # The object still has the state.


def test_code_that_changed_is_one_sentence(again: Path, tiny_data: Dataset, monkeypatch) -> None:
    from pocketdiff.nets.unet import UNet

    build = UNet.__init__

    def changed(self: UNet, *given: Any) -> None:
        build(self, *given)
        self.extra = torch.nn.Linear(1, 1)

    monkeypatch.setattr(UNet, "__init__", changed)
    with pytest.raises(CheckpointError, match="another version of the code"):
        Run(CONFIG, tiny_data, again)


# What a config decides


def test_the_seed_decides_the_run(finished: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(3)
    same = finish(Run(CONFIG, tiny_data, tmp_path / "same"))
    assert_ends_like(same, finished)
    assert same.folder.metrics != finished.folder.metrics
    assert log(same) == log(finished)
    other = finish(Run(CONFIG.model_copy(update={"seed": 1}), tiny_data, tmp_path / "other"))
    assert not torch.equal(other.model([3, 1]), finished.model([3, 1]))


def test_augmentation_is_part_of_the_run(finished: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    flip = CONFIG.model_copy(update={"augment": "flip"})
    with pytest.raises(RunError, match=r"augment \(none, flip\)"):
        Run(flip, tiny_data, finished.folder.path)
    whole = finish(Run(flip, tiny_data, tmp_path / "whole"))
    assert log(whole)[0]["loss"] != log(finished)[0]["loss"]
    broken = Run(flip, tiny_data, tmp_path / "broken")
    next(iter(broken))
    assert_ends_like(finish(broken), whole)


def test_a_loss_that_is_not_finite_ends_with_advice(tiny_data: Dataset, tmp_path: Path) -> None:
    run = Run(CONFIG.model_copy(update={"muon_lr": 1e30, "adam_lr": 1e30}), tiny_data, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"not finite .*--muon-lr"):
        finish(run)
    assert not run.finished
    assert not run.folder.model.exists()


def test_arrays_are_data(tiny_data: Dataset, tmp_path: Path) -> None:
    data = Dataset.from_arrays(tiny_data.train.pixels, tiny_data.train.labels.numpy())
    run = Run(CONFIG.model_copy(update={"images": 8}), data, str(tmp_path / "run"))
    assert run.config.data == "arrays"
    finish(run)
    assert run.model([3, 1, 4]).shape == (3, 1, 28, 28)


def test_a_gan_runs_in_the_same_way(tiny_data: Dataset, tmp_path: Path) -> None:
    whole = finish(Run(GAN, tiny_data, tmp_path / "whole"))
    assert {path.name for path in whole.folder.pictures.iterdir()} == {f"image_ep{epoch}.png" for epoch in range(3)}
    assert log(whole)[0].keys() == {"step", "seen", "epoch", "discriminator_loss", "generator_loss", "lr"}
    run = Run(GAN, tiny_data, tmp_path / "broken")
    for step in range(1, 13, 4):
        assert next(iter(run)).step == step
        assert [report.step for report in itertools.islice(run, 3)] == [step + 1, step + 2, step + 3]
    assert_ends_like(finish(run), whole)


def test_a_consistency_model_is_distilled_from_a_run(finished: Run, tiny_data: Dataset, tmp_path: Path) -> None:
    """The run records the teacher's hash, continues bit for bit, and its model needs no teacher."""
    teacher = tmp_path / "teacher"
    shutil.copytree(finished.folder.path, teacher)
    config = ConsistencyConfig(teacher=str(teacher), images=92, batch=8, log_every=16, checkpoint_every=16)
    whole = finish(Run(config, tiny_data, tmp_path / "whole"))
    assert {path.name for path in whole.folder.pictures.iterdir()} == {
        f"image_ep{epoch}{view}.png" for epoch in range(3) for view in ("_1step", "_2steps")
    }
    assert (whole.config.net, whole.config.teacher_scale) == (CONFIG.net, CONFIG.sampling.scale)  # type: ignore[attr-defined]
    assert_ends_like(stopped_and_finished(config, tiny_data, tmp_path / "broken", (3, 7)), whole)
    other = Run(CONFIG.model_copy(update={"seed": 1}), tiny_data, tmp_path / "other")
    finish(other)
    shutil.copy(other.folder.model, teacher / "model.safetensors")
    with pytest.raises(RunError, match="holds a run that differs in teacher_sha256"):
        Run(config, tiny_data, tmp_path / "whole")
    shutil.rmtree(teacher)
    assert torch.equal(load(tmp_path / "whole")([3, 1]), whole.model([3, 1]))
    assert whole.model.nfe() == 2


def test_a_run_that_cannot_start_leaves_no_folder(tiny_data: Dataset, tmp_path: Path, finished: Run) -> None:
    few = tiny_data.train.labels < 4
    data = Dataset.from_arrays(tiny_data.train.pixels[few], tiny_data.train.labels[few])
    config = ConsistencyConfig(teacher=str(finished.folder))
    for given, fault in ((ConsistencyConfig(), "needs a teacher"), (config, "learned other classes")):
        with pytest.raises(RequestError, match=fault):
            Run(given, data, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_own_network_that_the_config_does_not_build_is_refused_at_the_end(
    tiny_data: Dataset, tmp_path: Path
) -> None:
    """The weights stay in the checkpoint."""
    run = Run(CONFIG, tiny_data, tmp_path / "run")
    for module in (run.state.net, run.state.ema):
        module.net.last.append(torch.nn.Identity())
    with pytest.raises(PluginError, match="the config does not build the network to save"):
        finish(run)
    assert not run.finished
    assert not run.folder.model.exists()
    assert run.folder.saved_checkpoints() == [run.folder.checkpoint(12)]


def test_pictures_follow_their_intervals(tiny_data: Dataset, tmp_path: Path) -> None:
    """In epochs; the end of the run always has pictures, and a network after one step may draw blank images."""
    config = CONFIG.model_copy(
        update={
            "images": None, "epochs": 5, "batch": 40, "guidance_strengths": (0.0,), "pictures_every": 2,
            "gifs_every": 3,
        }
    )  # fmt: skip
    run = finish(Run(config, tiny_data, tmp_path / "run"))
    assert {path.name for path in run.folder.pictures.iterdir()} == {
        *(f"image_ep{epoch}_w0.png" for epoch in (0, 2, 4)), *(f"gif_ep{epoch}_w0.gif" for epoch in (0, 3, 4)),
    }  # fmt: skip


# Scores during training


@pytest.fixture(scope="module")
def digits(mnist: Dataset) -> Dataset:
    """Some of MNIST; its hash is MNIST's own, so that the shipped classifiers are used."""
    train, test = mnist.train, mnist.test
    return replace(
        mnist, train=Images(train.pixels[:300], train.labels[:300]), test=Images(test.pixels[:200], test.labels[:200])
    )


def test_scores_are_logged_plotted_and_not_made_twice(digits: Dataset, tmp_path: Path) -> None:
    assert SHIPPED.exists()
    config = CONFIG.model_copy(
        update={"images": 300, "batch": 50, "log_every": 300, "evaluate_every": 150, "evaluate_images": 128}
    )
    said: list[str] = []
    run = Run(config, digits, tmp_path / "run", progress=lambda what, done, total: said.append(what))
    finish(run)
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    scores = [line for line in lines if "evaluation" in line]
    assert [(line["step"], line["seen"]) for line in scores] == [(3, 150), (6, 300)]
    for line in scores:
        assert line["evaluation"]["n"] == 128
        assert line["evaluation"]["frechet_train"] > line["real_baseline"]["frechet_train"] > 0
        assert 0 <= line["evaluation"]["accuracy"] <= 1
    assert run.folder.scores_plot in run.written
    with Image.open(run.folder.scores_plot) as plot:
        assert plot.width > 100
    assert any(what.startswith("scoring: ") for what in said)
    run.folder.summary.unlink()
    again = finish(Run(config, digits, tmp_path / "run", progress=lambda what, done, total: said.append(what)))
    assert [json.loads(line) for line in again.folder.metrics.read_text().splitlines()] == lines


def test_scores_that_the_data_do_not_allow_are_refused_before_training(tiny_data: Dataset, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"evaluate_every": 40})
    with pytest.raises(EvaluationError, match="evaluate_images is 2,000 and the data have 40 training images"):
        Run(config, tiny_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_error_of_a_run_is_one_of_ours() -> None:
    assert issubclass(RunError, PocketdiffError)
    assert RunError("x").status == 2
    assert TrainingError("x").status == 1
