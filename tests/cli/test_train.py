"""``pocketdiff train``: runs, their folders, and what interrupts them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors.torch import load_file

from pocketdiff.checkpoint import load
from pocketdiff.cli import console, run, train as module
from pocketdiff.data import load_data
from pocketdiff.folder import RunFolder
from pocketdiff.methods import PRESETS
from pocketdiff.methods.loop import StepReport, TrainState
from pocketdiff.model import DiffusionModel
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.run import Run
from pocketdiff.run.gallery import Gallery
from pocketdiff.run.log import MetricsLog
from pocketdiff.tensors import read_tensors
from tests.cli.helpers import contents, ddpm_words, fails, lines, spawn, train_words


@pytest.fixture
def data(tiny_file: Path) -> Path:
    return tiny_file


def test_a_run_leaves_all_its_files(finished: Path) -> None:
    names = contents(finished).keys()
    assert {"config.json", "metrics.jsonl", "model.safetensors", "summary.json"} <= names
    pictures = {name for name in names if name.startswith("pictures")}
    grids = {f"pictures/image_ep{epoch}_w{w}.png" for epoch in (0, 1, 2) for w in ("0", "0.5", "2")}
    gifs = {f"pictures/gif_ep{epoch}_w{w}.gif" for epoch in (0, 2) for w in ("0", "0.5", "2")}
    assert pictures == grids | gifs
    log = lines(finished)
    assert [line["seen"] for line in log] == [21, 35, 49, 70, 84, 92]
    assert log[0].keys() == {"step", "seen", "epoch", "loss", "lr", "images_per_second", "seconds"}
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["steps"], summary["images_seen"]) == (14, 92)
    assert 50e6 < summary["peak_memory_bytes"] < 4e9
    with Image.open(finished / "pictures/image_ep2_w0.png") as picture:
        real = np.asarray(picture)[picture.height // 2 + 12 :]
        assert real.mean() > 200  # dark ink on white
        assert real.min() < 20


def test_what_was_written_is_named_at_the_end(data: Path, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert run(train_words(data, out)) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"training on 92 images \(2.3 passes over 40\), [\d,]+ weights, into {out}", said[0])
    assert re.fullmatch(r"trained on 92 images in \d+ s, \d+ a second; wrote", said[1])
    last = {
        f"  {out}/pictures/{kind}_ep2_w{w}.{end}"
        for kind, end in (("image", "png"), ("gif", "gif"))
        for w in ("0", "0.5", "2")
    }
    assert set(said[2:-1]) == {
        *last, f"  {out}/metrics.jsonl", f"  {out}/summary.json", f"  {out}/model.safetensors",
        f"  {out}/pictures (those of earlier epochs)",
    }  # fmt: skip
    assert said[-1] == f"now draw: pocketdiff sample {out}"


def test_the_default_preset_is_laptop_and_names_the_folder(data: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = "--images 8 --batch 8 --widths 8 --blocks 1 --embedding 16 --steps 2 --gif-steps 2 --data"
    assert run(["train", "--device", "cpu", *tiny.split(), str(data)]) == 0
    config = json.loads((tmp_path / "runs" / "laptop-tiny" / "config.json").read_text())["train"]
    assert (config["muon_lr"], config["sampling"]["scale"]) == (0.02, 1.4), "the laptop preset's own"
    monkeypatch.setattr(module, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(module, "Run", Recorder)
    with pytest.raises(HaltError):
        module.main(["--data", str(data)])
    assert Recorder.given[0].muon_lr == 0.02, "also on a machine with a GPU"
    assert "--preset gpu" in capsys.readouterr().out


class HaltError(Exception):
    pass


class Recorder:
    given: tuple[Any, ...]

    def __init__(self, *given, **named) -> None:
        Recorder.given = given
        raise HaltError


# What the screen shows


class Shown(console.Bar):
    """Stands in for the bar."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def show(self, *call) -> None:
        super().show(*call)
        self.calls.append(call)


class Working(Run):
    """Stands in for a run of 100 images, 30 of the 330 passes being for pictures."""

    def __init__(self) -> None:  # What a real one needs is missing.
        self.state, self.length = TrainState({}, []), 100
        self.training_seconds, self.drawn = 0.0, 0

    def work(self) -> tuple[float, float]:
        return 3.0 * self.state.seen + self.drawn, 330.0


def screen() -> tuple[module._Screen, Any]:
    return module._Screen(Shown(), console.Stop()), Working()


def step(made: module._Screen, run: Any, images: int, seconds: float, **losses: float) -> None:
    """A step of training."""
    run.state.step, run.state.seen = run.state.step + 1, run.state.seen + images
    run.training_seconds += seconds
    named = {name: torch.tensor(loss) for name, loss in losses.items()}
    made.step(StepReport(run.state.step, run.state.seen, 0, named, 1.0), run)


def test_losses_and_speed_are_shown_as_moving_averages() -> None:
    made, run = screen()
    for loss in (1.0, 0.5, 0.25):
        step(made, run, 10, 2.0, loss=loss, other_loss=2.0)
    average = 0.95 * (0.95 * 1.0 + 0.05 * 0.5) + 0.05 * 0.25
    first, _, third = made.bar.calls  # type: ignore[attr-defined]
    assert first == ("training", 30, 330, "10 of 100 images", "loss 1.0000", "other loss 2.0000")
    assert third == ("training", 90, 330, "30 of 100 images", f"loss {average:.4f}", "other loss 2.0000", "5 img/s")


def test_the_log_has_the_mean_of_each_interval(tmp_path) -> None:
    log = MetricsLog(RunFolder(tmp_path), every=30, ends=(40,))
    for step, loss in enumerate((1.0, 0.5, 0.25, 8.0), 1):
        report = StepReport(step, step * 10, 0, {"loss": torch.tensor(loss)}, 1.0)
        log.add(report, 10 * step - 10, float(step))
    first, second = lines(tmp_path)
    assert first["loss"] == pytest.approx(1.75 / 3)
    assert (second["loss"], second["images_per_second"]) == (8.0, 10.0)


def test_other_work_is_named_behind_the_training_bar_and_has_a_bar_of_its_own_before_it() -> None:
    made, run = screen()
    made("features", 5, 1000)
    step(made, run, 10, 1.0, loss=1.0)
    run.drawn = 3
    made("drawing epoch 0", 3, 1000)
    made("saving the model", 0, 1)
    first, _, third, fourth = made.bar.calls  # type: ignore[attr-defined]
    assert first == ("features", 5, 1000, "5 of 1,000")
    assert third == ("training", 33, 330, "10 of 100 images", "drawing epoch 0, 3 of 1,000")
    assert fourth == ("training", 33, 330, "10 of 100 images", "saving the model")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that a bar reads, in its one element."""
    now = [0.0]
    monkeypatch.setattr("pocketdiff.cli.console.time.perf_counter", lambda: now[0])
    return now


def test_a_long_run_is_announced_once_with_the_time_of_its_pictures(capsys, clock) -> None:
    console.show_messages()
    for seconds, announced in ((50.0, True), (10.0, False)):
        made, run = screen()
        for number in range(1, 41):
            clock[0] += seconds
            step(made, run, 1, seconds, loss=1.0)
            said = "pocketdiff: " in capsys.readouterr().err
            assert said == (announced and number == 20), "after 20 steps: 270 of 330 passes are left"
    made, run = screen()
    for _ in range(20):
        clock[0] += 50.0
        step(made, run, 1, 50.0, loss=1.0)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "pocketdiff: the run takes about 1.2 hours more on this machine; Ctrl-C stops it at any time, and the same "
        "command continues from there"
    )


def test_progress_without_a_terminal_shows_the_time_left_while_there_is_any(capsys, clock) -> None:
    bar = console.Bar()
    for done in (20, 60, 100):
        clock[0] += 10
        bar.show("training", done, 100, f"{done} images", "drawing")
    clock[0] += 1
    bar("scoring", 1, 5)  # less than five seconds later
    clock[0] += 10
    bar("scoring", 4, 5)
    clock[0] += 10
    bar("saving", 0, 1)
    assert capsys.readouterr().err.splitlines() == [
        "training 20%, 20 images, drawing",
        "training 60%, 60 images, 0:00:10 left, drawing",
        "training 100 images, drawing",
        "scoring 80%, 4 of 5, 0:00:03 left",
        "saving",
    ]


def test_the_time_left_is_an_average_and_never_zero_while_work_is_left(clock) -> None:
    bar = console.Bar()
    bar("drawing", 0, 1000)
    left = []
    for done in range(1, 1000):
        clock[0] += 0.01 if done % 10 else 0.11  # Every tenth takes longer.
        bar("drawing", done, 1000)
        left.append(bar.left)
    assert left[:48] == [None] * 48, "not before a second"
    expected = [0.02 * (1000 - done) for done in range(100, 1000)]
    assert left[99:] == pytest.approx(expected, rel=0.1)
    assert "0:00:01 left" in bar.progress.tasks[0].fields["words"] or bar.plain


def test_a_terminal_shows_no_percentage_and_no_time_where_all_counted_work_is_done(monkeypatch, clock) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    bar = console.Bar()
    for done, words in ((0, "0%, 0 of 400"), (399, "99%, 399 of 400, 0:00:01 left"), (400, "400 of 400")):
        bar("drawing", done, 400)
        clock[0] += 100
        (task,) = bar.progress.tasks
        assert (task.fields["words"], task.total) == (words, None if done == 400 else 400)
    bar("saving", 0, 1)
    (task,) = bar.progress.tasks
    assert (task.description, task.fields["words"], task.total) == ("saving", "", None)


def test_the_work_of_a_run_counts_every_picture_and_score_and_reaches_its_total(data: Path, tmp_path) -> None:
    """Network passes: 3 for a training image, and the steps of sampling, twice with guidance, for a drawn one."""
    config = PRESETS["quick"].model_copy(update={"images": 92, "batch": 7, "net": UNetConfig(widths=(8,), embedding=8)})
    work: list[tuple[float, float]] = []
    training = Run(config, load_data(str(data)), tmp_path, progress=lambda *_: work.append(training.work()))
    work.extend(training.work() for _ in training)
    done, totals = zip(*work, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}, "all is done when the model is saved"
    pictures = 40 * (3 * (10 + 20 + 20) + 2 * (30 + 60 + 60))  # three grids and two GIFs, for w = 0, 0.5 and 2
    assert done[-1] == 3 * 92 + pictures
    assert 0 < done[0] <= 21


# Folders


def test_a_finished_run_says_so_and_changes_nothing(finished: Path, data: Path, capsys) -> None:
    before = contents(finished)
    assert run(train_words(data, finished)) == 0
    assert "is finished, and nothing was changed" in capsys.readouterr().out
    assert contents(finished) == before


def test_a_greater_length_continues_a_finished_run(finished: Path, data: Path, capsys, tmp_path) -> None:
    """The same command again finds it finished, or makes its model file anew."""
    out = shutil.copytree(finished, tmp_path / "run")
    words = [*train_words(data, out), "--images", "130"]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert f"continuing from {RunFolder(out).checkpoint(14)}: 92 of 130 images" in said
    assert "trained on 130 images" in said
    assert json.loads((out / "config.json").read_text())["train"]["parts"] == [92]
    assert [line["seen"] for line in lines(out)] == [21, 35, 49, 70, 84, 92, 99, 113, 130]
    before = contents(out)
    assert run(words) == 0
    assert "is finished, and nothing was changed" in capsys.readouterr().out
    assert contents(out) == before
    (out / "model.safetensors").unlink()
    fails(capsys, ["sample", str(out)], 2, "the model file is missing; the same train command makes it anew")
    assert run(words) == 0
    said, warned = capsys.readouterr()
    assert "is finished; its model is" in said
    assert "was missing, and was made anew from" in warned
    assert contents(out) == before
    fails(capsys, train_words(data, out), 2, "holds a run of 130 images, which cannot be shortened to 92")


def test_a_run_starts_from_another_ones_weights(finished: Path, data: Path, capsys, tmp_path) -> None:
    words = train_words(data, tmp_path / "run", "--init-from", str(finished), "--images", "14")
    assert run(words) == 0
    fails(
        capsys, [*words, "--parameterization", "eps"], 2, "parameterization is that of init_from and cannot be chosen"
    )


def test_another_config_or_data_in_the_same_folder_is_refused(finished: Path, data: Path, capsys, tmp_path) -> None:
    before = contents(finished)
    fails(
        capsys, train_words(data, finished, "--seed", "7", "--scale", "3"), 2, "sampling.scale (1.5, 3.0), seed (0, 7)"
    )
    fails(capsys, train_words(data, finished, "--resume", "never"), 2, "--resume is never")
    images = np.load(data)["images"].copy()
    images[0, 0, 0] ^= 1
    np.savez(tmp_path / "tiny.npz", images=images, labels=np.load(data)["labels"])
    fails(capsys, train_words(tmp_path / "tiny.npz", finished), 2, "data.sha256")
    assert contents(finished) == before


def test_half_written_files_of_a_killed_run_are_removed(data: Path, finished: Path, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    (out / "checkpoints/.step-1.0.tmp").mkdir()
    (out / "pictures/.image.png.0.tmp").write_text("half")
    assert run(train_words(data, out)) == 0
    assert [path for path in out.rglob("*") if path.suffix == ".tmp"] == []


def test_a_folder_of_something_else_is_not_touched(data: Path, capsys, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    fails(capsys, train_words(data, tmp_path), 2, "holds files that are not a run's")
    fails(capsys, train_words(data, tmp_path / "thesis.txt"), 2, "is a file")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_never_begins_a_new_run(data: Path, tmp_path) -> None:
    assert run(train_words(data, tmp_path / "run", "--resume", "never")) == 0


def test_a_damaged_line_of_the_log_does_not_stop_a_resume(data: Path, finished: Path, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    (out / "metrics.jsonl").write_bytes((finished / "metrics.jsonl").read_bytes() + b'\0\xff\n[]\n{"st')
    assert run(train_words(data, out)) == 0
    assert [line["step"] for line in lines(out)] == [3, 5, 7, 10, 12, 14]


def test_a_folder_that_only_began_to_be_a_run_is_still_free(data: Path, tmp_path) -> None:
    (tmp_path / ".config.json.00.tmp").write_text("{")
    assert run(train_words(data, tmp_path)) == 0
    assert not (tmp_path / ".config.json.00.tmp").exists()


def test_a_network_whose_code_changed_is_one_sentence(
    data: Path, finished: Path, tmp_path, capsys, monkeypatch
) -> None:
    from pocketdiff.nets.unet import UNet

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    build = UNet.__init__

    def changed(self, *words) -> None:
        build(self, *words)
        self.extra = torch.nn.Linear(1, 1)

    monkeypatch.setattr(UNet, "__init__", changed)
    fails(capsys, train_words(data, out), 2, "another version of the code")


def test_a_given_checkpoint_must_be_one_and_is_continued_from(data: Path, finished: Path, capsys, tmp_path) -> None:
    nowhere = tmp_path / "none"
    fails(capsys, train_words(data, tmp_path / "a", "--resume", str(nowhere)), 2, str(nowhere))
    (checkpoint,) = (finished / "checkpoints").iterdir()
    assert run(train_words(data, tmp_path / "b", "--resume", str(checkpoint))) == 0
    assert f"continuing from {checkpoint}: " in capsys.readouterr().out
    assert (tmp_path / "b/model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_ends_with_advice(data: Path, capsys, tmp_path) -> None:
    out = tmp_path / "run"
    words = train_words(data, out, "--muon-lr", "1e30", "--adam-lr", "1e30")
    capsys.readouterr()
    assert run(words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite" in error
    assert "--muon-lr" in error
    assert not (out / "model.safetensors").exists()


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(data: Path, tmp_path) -> None:
    import resource

    out = tmp_path / "run"
    done = spawn(train_words(data, out), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)))
    _, error = done.communicate(timeout=120)
    assert done.returncode == 1
    assert re.search(r"^pocketdiff: .*safetensors.*File too large$", error, re.MULTILINE), error
    assert "Traceback" not in error
    assert [path for path in out.rglob("*") if path.suffix == ".tmp" or path.name.endswith(".safetensors")] == []
    assert run(train_words(data, out)) == 0  # with room again, the same command finishes


def test_two_processes_cannot_train_in_one_folder(data: Path, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with filelock.FileLock(RunFolder(out).lock):
        fails(capsys, train_words(data, out), 2, "another process")
    assert run(train_words(data, out)) == 0


# The original experiment


def test_the_original_experiment_leaves_its_pictures(data: Path, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert run(ddpm_words(data, out, "--epochs", "7")) == 0
    assert "hours" not in capsys.readouterr().err
    grids = {f"image_ep{epoch}_w{w}.png" for epoch in range(7) for w in ("0", "0.5", "2")}
    gifs = {f"gif_ep{epoch}_w{w}.gif" for epoch in (0, 5, 6) for w in ("0", "0.5", "2")}
    assert {path.name for path in (out / "pictures").iterdir()} == grids | gifs
    with Image.open(out / "pictures/gif_ep5_w2.gif") as gif:
        assert sum(1 for _ in ImageSequence.Iterator(gif)) == 8  # t = 10, and 7 to 1
    with Image.open(out / "pictures/image_ep6_w0.5.png") as picture:
        assert picture.width == (10 * 30 + 2) * 3
        assert np.asarray(picture)[-60:].mean() > 180  # real rows, dark on white
    assert lines(out)[-1]["epoch"] == 6
    assert lines(out)[-1]["lr"] == pytest.approx(1 / 7)
    assert (json.loads((out / "summary.json").read_text()))["steps"] == 21


def test_other_sizes_and_colours_train_with_the_original_network(tmp_path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 256, (12, 20, 17, 3), dtype=np.uint8), labels=np.arange(12) % 2)
    assert run(ddpm_words(tmp_path / "x.npz", tmp_path / "run", "--epochs", "1")) == 0


def test_a_consistency_model_is_trained_from_a_teacher(finished: Path, data: Path, tmp_path, capsys) -> None:
    words = ["train", "--preset", "consistency", "--teacher", str(finished), "--data", str(data)]
    assert run([*words, "--out", str(tmp_path / "run"), "--images", "40", "--batch", "8"]) == 0
    assert run(["sample", str(tmp_path / "run"), "--labels", "3", "--out", str(tmp_path / "a.png")]) == 0
    assert "consistency, 2 steps" in capsys.readouterr().out


def test_a_run_is_distilled_into_a_folder_beside_it(finished: Path, tmp_path, capsys) -> None:
    """On the teacher's own data; the same command again finds it finished."""
    shutil.copytree(finished, tmp_path / "mine")
    words = ["distill", str(tmp_path / "mine"), "--images", "40", "--batch", "8", "--discriminator-first", "8"]
    for flags, name, steps in ((["--discriminator", "8", "8"], "mine-2steps", 2), (["--steps", "1"], "mine-1step", 1)):
        assert run([*words, *flags]) == 0
        assert run([*words, *flags]) == 0
        assert f"{name} is finished" in capsys.readouterr().out
        model = load(tmp_path / name)
        assert (model.config.data, model.nfe()) == (load(finished).config.data, steps)
    assert run(["distill", str(tmp_path / "nowhere")]) == 2
    assert run([*words, "--steps", "3"]) == 2
    assert "--steps 3: input should be less than or equal to 2" in capsys.readouterr().err


# Interruptions


def test_drawing_holds_few_states_in_memory(data: Path, tmp_path, monkeypatch) -> None:
    """However many steps it takes: only GIFs keep the frames that they show."""
    import weakref

    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most, frames = 0, DiffusionModel.frames

    def watched(self, *words):
        nonlocal most
        for frame in frames(self, *words):
            alive.add(frame.pixels)
            most = max(most, len(alive))
            yield frame

    monkeypatch.setattr(DiffusionModel, "frames", watched)
    words = ("--images", "7", "--sampling.steps", "30", "--gif-steps", "2")
    assert run(train_words(data, tmp_path / "run", *words)) == 0
    assert 1 <= most <= 3


def test_time_for_pictures_before_the_first_step_counts(data: Path, tmp_path, monkeypatch) -> None:
    out, draw = tmp_path / "run", Gallery.draw
    assert run(ddpm_words(data, out, "--epochs", "1")) == 0
    for name in ("summary.json", "pictures/image_ep0_w0.png"):
        (out / name).unlink()

    def slowly(self, *words) -> object:
        time.sleep(1)
        return draw(self, *words)

    monkeypatch.setattr(Gallery, "draw", slowly)
    assert run(ddpm_words(data, out, "--epochs", "1")) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["other_seconds"] > 1
    assert (out / "pictures/image_ep0_w0.png").exists()


@pytest.mark.parametrize("ends", [False, True])
def test_a_signal_while_drawing_leaves_at_once_and_the_next_session_draws_first(
    ends, data: Path, tmp_path, monkeypatch, capsys
) -> None:
    """At the end of the first epoch, and when all is trained."""
    epochs = ("--epochs", "1" if ends else "2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(ddpm_words(data, whole, *epochs)) == 0
    frames = DiffusionModel.frames

    def interrupted(model, labels) -> object:
        if model.sampling.scale > 1:  # the second guidance strength
            os.kill(os.getpid(), signal.SIGINT)
        return frames(model, labels)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModel, "frames", interrupted)
        assert run(ddpm_words(data, broken, *epochs)) == 130
    assert "stopped, and saved as" in capsys.readouterr().out
    assert {path.name for path in (broken / "pictures").iterdir()} == {"image_ep0_w0.png", "gif_ep0_w0.gif"}
    assert run(ddpm_words(data, broken, *epochs)) == 0
    assert contents(broken / "pictures") == contents(whole / "pictures")
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_signal_while_training_finishes_the_step_and_saves_it(data: Path, tmp_path, monkeypatch, capsys) -> None:
    step = module._Screen.step

    def interrupted(self, report: StepReport, run: Run) -> None:
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, report, run)

    monkeypatch.setattr(module._Screen, "step", interrupted)
    out = tmp_path / "run"
    assert run(train_words(data, out)) == 130
    saved = RunFolder(out).checkpoint(3)
    assert f"stopped, and saved as {saved}; the same command continues from there" in capsys.readouterr().out
    assert saved.exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handlers are put back"
    monkeypatch.setattr(module._Screen, "step", step)
    assert run(train_words(data, out, "--resume", str(saved))) == 0


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_second_signal_leaves_at_once() -> None:
    """But not the copy that `timeout` sends with the first, nor the loss of the terminal."""
    code = (
        "import os, signal, sys, time\n"
        "from pocketdiff.cli.console import Stop\n"
        "with Stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.2)\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print(stop.requested, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 130)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str], seen: int) -> int:
    """Waits for a checkpoint at that many images or more, and returns its number of images."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for path in RunFolder(folder).saved_checkpoints():
            try:
                reached = int(read_tensors(path)[1]["checkpoint"]["seen"])
            except Exception:  # noqa: BLE001 (it was just replaced by the next one)
                continue
            if reached >= seen:
                return reached
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at {seen} images: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("preset", ["quick", "ddpm"])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(preset, data: Path, tmp_path) -> None:
    """SIGKILL, SIGINT and SIGTERM, each once, then to the end."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words, often, leap = {
        "quick": (train_words, ("--images", "4000", "--checkpoint-every", "160"), 600),
        "ddpm": (ddpm_words, ("--epochs", "30", "--pictures-every", "10"), 200),
    }[preset]
    spawn(words(data, whole, *often)).communicate(timeout=300)
    reached = 0
    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)):
        process = spawn(words(data, broken, *often))
        reached = wait_for_checkpoint(broken, process, reached + leap)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert process.returncode == status, error
        assert ("the same command continues" in out) == (number != signal.SIGKILL)
        assert "Traceback" not in error
    done = spawn(words(data, broken, *often))
    out, _ = done.communicate(timeout=300)
    assert "continuing from" in out
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (broken, whole))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    steps = [line["step"] for line in lines(broken)]
    assert steps == sorted(set(steps))  # no line twice
    assert contents(broken / "pictures") == contents(whole / "pictures")


def test_a_presets_length_is_shortened_for_a_small_set_and_given_values_are_kept(tmp_path, capsys) -> None:
    """Ten images in batches of 32: 200 passes, in whole batches."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16), np.uint8)
    np.savez(tmp_path / "few.npz", images=pixels, labels=np.arange(12) % 2)
    small = "--widths 8 16 --blocks 1 --embedding 16 --steps 2 --guidance-strengths 0 --gif-steps 1"
    words = ["train", "--preset", "quick", "--data", str(tmp_path / "few.npz"), *small.split()]
    assert run([*words, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("training on 1,984 images (198.4 passes over 10), ")
    assert run([*words, "--out", str(tmp_path / "one"), "--epochs", "1"]) == 0
    assert capsys.readouterr().out.startswith("training on 10 images (1 pass over 10), ")
    assert load(tmp_path / "one").sampling.scale == 1.5, "the preset's scale is for MNIST"
    assert run([*words, "--out", str(tmp_path / "given"), "--images", "2100", "--batch", "1050", "--scale", "3"]) == 0
    assert capsys.readouterr().out.startswith("training on 2,100 images (210 passes over 10), ")
    assert load(tmp_path / "given").sampling.scale == 3
    assert PRESETS["laptop"].with_neutral_scale() == PRESETS["laptop"]
    assert PRESETS["ddpm"].with_neutral_scale() == PRESETS["ddpm"]
    assert PRESETS["gan"].with_neutral_scale() == PRESETS["gan"]


def test_a_length_in_epochs_or_over_many_images_stays() -> None:
    config = PRESETS["laptop"]
    assert config.shortened(60_000) == config
    assert config.shortened(100).images == 19_968
    assert config.shortened(1).images == 192
    assert config.model_copy(update={"batch": 1000}).shortened(1).images == 1000
    assert PRESETS["ddpm"].shortened(10) == PRESETS["ddpm"]


@pytest.mark.parametrize("length", [["--images", "none", "--epochs", str(10**9)], ["--images", str(10**18)]])
def test_a_run_of_any_length_begins_at_once(length: list[str], tiny_file: Path, tmp_path, monkeypatch) -> None:
    """No list is as long as the run."""
    steps: list[int] = []

    def stop(state: Any, *_: object) -> None:
        steps.append(state.step)
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketdiff.methods.loop.check_finite", lambda _losses, state, _advice: stop(state))
    words = train_words(tiny_file, tmp_path / "run", *length)
    tracemalloc.start()
    try:
        assert run(words) == 130
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert steps == [0]
