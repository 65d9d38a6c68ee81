import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from safetensors.torch import load_file

import pocketdiff
from pocketdiff.cli import VERBS, run
from pocketdiff.cli.flags import Parser, UsageError, add_config, apply
from pocketdiff.cli.sample import parse_labels
from pocketdiff.config import PRESETS, TrainConfig
from pocketdiff.data import load_data
from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.schedule import DiscreteBeta, Karras, LogNormal

TINY = "--images 92 --batch 7 --widths 8 16 --blocks 1 --embedding 16 --steps 2 --checkpoint-every 16 --log-every 16"


@pytest.fixture(scope="module")
def data(tiny_file: Path) -> Path:
    return tiny_file


def train_words(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--preset", "quick", "--data", str(data), "--out", str(out), *TINY.split(), *more]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert run(train_words(data, out)) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fails(capsys, words: list[str], status: int, message: str) -> None:
    """The command gives this status and one sentence on standard error that holds the message."""
    capsys.readouterr()
    assert run(words) == status
    error = capsys.readouterr().err
    assert re.fullmatch(r"pocketdiff: [^\n]+\n", error), error
    assert message in error


def spawn(words: list[str], **options) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pocketdiff.cli", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


# Help


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from pocketdiff.cli import run; run(['--help']); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    assert all(f"  {verb}" in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        run([verb, "--help"])
    assert left.value.code == 0
    assert re.search(rf"^examples?:\n  pocketdiff {verb} ", capsys.readouterr().out, re.MULTILINE)


def test_train_help_has_a_flag_for_every_field_with_its_description(capsys) -> None:
    with pytest.raises(SystemExit):
        run(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in TrainConfig.model_fields.items():
        assert (f"--{name.replace('_', '-')}" in text) == (name != "kind")  # which the preset decides
        if name not in ("kind", "net", "schedule", "sampling"):
            assert " ".join(str(field.description).removesuffix(".").split()) in text
    assert "[karras] How much shorter" in text


def test_version(capsys) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{pocketdiff.__version__}\n"


# Flags


def flags(*words: str, config: TrainConfig = PRESETS["quick"]) -> TrainConfig:
    parser = Parser("test", "", "", "")
    add_config(parser, config)
    return apply(config, parser.parse(words))


def test_flags_reach_every_depth() -> None:
    config = flags(
        "--seed", "3", "--widths", "8", "16", "--sampling.steps", "5", "--scale", "2", "--compile", "--size", "32", "24"
    )
    assert config.net == PRESETS["quick"].net.model_copy(update={"widths": (8, 16)})
    assert (config.seed, config.compile, config.size) == (3, True, (32, 24))
    assert (config.sampling.steps, config.sampling.scale) == (5, 2.0)
    assert flags("--size", "32").size == (32, 32)
    assert flags("--pictures-every", "2").pictures_every == 2
    assert flags("--pictures-every", "none").pictures_every is None


def test_the_original_experiments_knobs_are_flags() -> None:
    config = flags("--n-feat", "16", "--timesteps", "50", "--sampling.steps", "9", config=PRESETS["ddpm"])
    assert config.net == ContextUnetConfig(n_feat=16)
    assert config.schedule == DiscreteBeta(timesteps=50, beta_start=1e-4, beta_end=0.02, zeroth=True)
    assert len(config.sampling.grid(config.schedule)) == 10
    whole = flags("--timesteps", "50", config=PRESETS["ddpm"])
    assert len(whole.sampling.grid(whole.schedule)) == 51  # sampling goes with it


def test_a_length_that_is_given_takes_the_others_place() -> None:
    from pocketdiff.cli.train import _parse

    for words, length in {
        "--preset ddpm": (None, 20),
        "--preset ddpm --epochs 2": (None, 2),
        "--preset ddpm --images 500": (500, None),
        "--preset ddpm --images none": (None, 20),
        "--preset quick --epochs 3": (None, 3),
        "--preset quick --images 500": (500, None),
        "--preset quick --epochs none": (22_000, None),
    }.items():
        namespace, preset, _ = _parse(words.split())
        config = apply(PRESETS[preset], namespace)
        assert (config.images, config.epochs) == length
    assert (flags("--epochs", "1").images, flags("--images", "5", config=PRESETS["ddpm"]).epochs) == (None, None)
    assert (TrainConfig(epochs=3).images, TrainConfig().images) == (None, 100_000)


def test_a_schedule_of_its_own_may_be_given_to_sampling_and_taken_away() -> None:
    own = flags(
        "--sampling.schedule.kind", "karras", "--sampling.schedule.rho", "5", "--steps", "5", config=PRESETS["ddpm"]
    )
    assert own.sampling.schedule == Karras(rho=5)
    assert flags("--sampling.schedule.kind", "none", "--schedule.kind", "flow").sampling.schedule is None
    with pytest.raises(
        UsageError, match=r"--sampling.schedule.rho 5: goes with a --sampling.schedule.kind that has it"
    ):
        flags("--sampling.schedule.rho", "5", config=PRESETS["ddpm"])


def test_a_new_kind_begins_with_its_own_defaults() -> None:
    assert flags("--schedule.kind", "karras").schedule == Karras()
    assert flags("--schedule.rho", "5", "--schedule.kind", "karras").schedule == Karras(rho=5)
    kept = LogNormal(mean=-1, std=0.5)
    config = PRESETS["quick"].model_copy(update={"schedule": kept})
    assert flags("--schedule.kind", "lognormal", "--schedule.mean", "2", config=config).schedule == LogNormal(
        mean=2, std=0.5
    )


@given(
    st.sampled_from(
        [
            name
            for name, field in TrainConfig.model_fields.items()
            if name not in ("kind", "net", "schedule", "sampling") and field.annotation is not bool
        ]
    )
    | st.sampled_from(["schedule.kind", "schedule.mean", "net.widths", "sampling.steps", "sampling.sampler"]),
    st.text(max_size=8).filter(lambda text: not text.startswith("-")),
)
def test_any_value_gives_a_config_or_a_sentence_that_names_the_flag(name: str, value: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    try:
        config = flags(flag, value)
    except UsageError as error:
        assert str(error).startswith(flag)  # noqa: PT017 (both ways are right)
    else:
        assert isinstance(config, TrainConfig)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fly", "no verb 'fly'"),
        ("train --imges 5", "did you mean --images?"),
        ("train --images 5 --epochs 5", "give one of them, and not both"),
        ("train --images none", "--images none: the length is told in images or in epochs"),
        ("train --guidance-strengths 1 1", "--guidance-strengths 1 1: guidance_strengths that are equal"),
        ("train --epochs 0", "--epochs 0: input should be greater than or equal to 1"),
        ("train --preset ddpm --n-feat 12", "--net.n-feat 12: input should be a multiple of 8"),
        ("train --n-feat 16", "--net.n-feat 16"),
        ("train --preset ddpm --timesteps 10 --steps 11", "only 10 noise levels"),
        ("train --sampling.steps none", "no number of levels of its own"),
        ("import-ddpm /nowhere.pth", "/nowhere.pth: no such file"),
        ("import-ddpm x.pth --out model.pth", "must end in .safetensors"),
        ("train --preset huge", "there are quick, laptop, ddpm, gpu"),
        ("train --images -1", "--images -1: input should be greater than or equal to 1"),
        ("train --images many", "--images many"),
        ("train --images", "expected one argument"),
        ("train --schedule.sigma-min 100", "sigma_min (100) must be below sigma_max (80)"),
        ("train --schedule.kind wavy", "--schedule.kind wavy: there is no such kind; use karras, lognormal"),
        ("train --schedule.rho 3", "--schedule.rho 3"),
        ("train --schedule.kind karras --schedule.rho 0.001", "not between 0 and 1e+30"),
        ("train --schedule.kind discrete_beta --schedule.beta-end 0.95", "not between 0 and 1e+30"),
        ("train --sampling.schedule.kind discrete_beta --sampling.schedule.timesteps 5", "has only 5 noise levels"),
        ("train --device meta", "no such device"),
        ("train --out /dev/null/x", "take another --out"),
        ("train --parameterization y", "'eps', 'x0', 'v' or 'flow'"),
        ("train --net.kind none", "--net.kind none: there is no such kind; use unet, context_unet"),
        ("train --images none", "give one of them"),
        ("train --guidance-strengths 0.5 0 0.5", "pictures of one name"),
        ("train --sampling.schedule.kind none --sampling.schedule.rho 5", "here that is none"),
        ("train --widths 30", "--net.widths 30: widths must be multiples of 8"),
        ("train --size 32 32 32", "--size 32 32 32"),
        ("train --size 8", "--size 8: input should be greater than or equal to 16"),
        ("train --sampler best", "--sampling.sampler best"),
        ("train --precision fp8", "'fp32' or 'bf16'"),
        ("train --device tpu9", "--device tpu9"),
        ("train --data /nowhere", "/nowhere"),
        ("sample", "required: RUN_OR_FILE"),
        ("sample /nowhere", "/nowhere: no such file"),
        ("sample x --per-label 0", "--per-label 0"),
        ("sample x --out a.bmp", "a.bmp"),
        ("info /nowhere", "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(words: str, message: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fails(capsys, words.split(), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(capsys) -> None:
    assert run(["info", "/nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


# Training


def test_a_run_leaves_all_its_files(finished: Path, capsys) -> None:
    names = contents(finished).keys()
    assert {"config.json", "metrics.jsonl", "model.safetensors", "summary.json"} <= names
    pictures = {name for name in names if name.startswith("pictures")}
    grids = {f"pictures/image_ep{epoch}_w{w}.png" for epoch in (0, 1, 2) for w in ("0", "0.5", "2")}
    gifs = {f"pictures/gif_ep{epoch}_w{w}.gif" for epoch in (0, 2) for w in ("0", "0.5", "2")}
    assert pictures == grids | gifs
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["seen"] for line in lines] == [21, 42, 63, 84, 92]
    assert lines[0].keys() == {"step", "seen", "epoch", "loss", "lr", "images_per_second", "seconds"}
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["steps"], summary["images_seen"]) == (14, 92)
    assert 50e6 < summary["peak_memory_bytes"] < 4e9
    with Image.open(finished / "pictures/image_ep2_w0.png") as picture:
        real = np.asarray(picture)[picture.height // 2 + 12 :]
        assert real.mean() > 200  # dark ink on white
        assert real.min() < 20


def test_the_shown_loss_is_a_moving_average_and_the_written_one_a_mean(tmp_path) -> None:
    from pocketdiff.cli.records import MetricsLog
    from pocketdiff.loop import Metrics

    log = MetricsLog(tmp_path / "metrics.jsonl", every=30)
    for step, loss in enumerate((1.0, 0.5, 0.25), 1):
        log.add(Metrics(step, 10 * step, 0, {"loss": torch.tensor(loss)}, 1.0), float(step), last=False)
    assert log.note.startswith(f"loss {0.95 * (0.95 * 1.0 + 0.05 * 0.5) + 0.05 * 0.25:.4f}, 10 img/s")
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == pytest.approx(1.75 / 3)


def test_a_grid_holds_no_more_than_two_states_in_memory(mnist, tmp_path, monkeypatch) -> None:
    """However many steps it takes: GIFs alone keep what they show."""
    import weakref

    from pocketdiff import pictures
    from pocketdiff.cli.gallery import Due, Gallery
    from pocketdiff.generate import DiffusionModel, build_denoiser

    config = flags("--widths", "8", "--blocks", "1", "--embedding", "16", "--steps", "30")
    model = DiffusionModel(build_denoiser(config, mnist.info), config, mnist.info)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most, denoising = 0, pictures.denoising

    def watched(*words):
        nonlocal most
        for left, pixels in denoising(*words):
            alive.add(pixels)
            most = max(most, len(alive))
            yield left, pixels

    monkeypatch.setattr(pictures, "denoising", watched)
    Gallery(tmp_path, model, mnist.train).draw(Due(0, grids=True, gifs=False), lambda note: None)
    assert 1 <= most <= 3


def test_progress_without_a_terminal_tells_the_time_left_while_there_is_any(capsys, monkeypatch) -> None:
    from pocketdiff.cli import console

    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("pocketdiff.cli.console.time.perf_counter", lambda: next(clock))
    bar = console.Bar("training", 100, 20)
    for done in (20, 60, 100):
        bar.update(done, "drawing")
    first, second, third = capsys.readouterr().err.splitlines()
    assert (first, third) == ("training 20 of 100, drawing", "training 100 of 100, drawing")
    assert re.fullmatch(r"training 60 of 100, drawing, 0:00:\d\d left", second)


def test_a_finished_run_says_so_and_changes_nothing(finished: Path, data: Path, capsys) -> None:
    before = contents(finished)
    assert run(train_words(data, finished)) == 0
    assert "is finished" in capsys.readouterr().out
    assert contents(finished) == before


def test_another_config_or_data_in_the_same_folder_is_refused(finished: Path, data: Path, capsys, tmp_path) -> None:
    before = contents(finished)
    fails(
        capsys, train_words(data, finished, "--seed", "7", "--scale", "3"), 2, "sampling.scale (2.4, 3.0), seed (0, 7)"
    )
    fails(capsys, train_words(data, finished, "--resume", "never"), 2, "--resume is never")
    images = np.load(data)["images"].copy()
    images[0, 0, 0] ^= 1
    np.savez(tmp_path / "tiny.npz", images=images, labels=np.load(data)["labels"])
    fails(capsys, train_words(tmp_path / "tiny.npz", finished), 2, "data.sha256")
    assert contents(finished) == before


def test_what_a_killed_run_left_half_written_is_removed(data: Path, tmp_path) -> None:
    out = tmp_path / "run"
    assert run(train_words(data, out)) == 0
    (out / "summary.json").unlink()
    (out / "checkpoints/.step-1.0.tmp").mkdir()
    (out / "pictures/.image.png.0.tmp").write_text("half")
    assert run(train_words(data, out)) == 0
    assert [path for path in out.rglob("*") if path.suffix == ".tmp"] == []


def test_a_folder_of_something_else_is_left_alone(data: Path, capsys, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    fails(capsys, train_words(data, tmp_path), 2, "holds files that are no run")
    fails(capsys, train_words(data, tmp_path / "thesis.txt"), 2, "is a file")
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_never_begins_a_new_run(data: Path, tmp_path) -> None:
    assert run(train_words(data, tmp_path / "run", "--resume", "never")) == 0


def test_a_spoilt_line_of_metrics_does_not_stop_a_resume(data: Path, finished: Path, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    (out / "metrics.jsonl").write_bytes((finished / "metrics.jsonl").read_bytes() + b'\0\xff\n[]\n{"st')
    assert run(train_words(data, out)) == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 9, 12, 14]


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
    fails(capsys, train_words(data, out), 2, "another version of the network's code")


def test_an_unforeseen_error_is_still_one_line(capsys, monkeypatch) -> None:
    def fail(words: list[str]) -> int:
        raise RuntimeError("one\ntwo")

    monkeypatch.setitem(VERBS, "fail", ("", fail))
    fails(capsys, ["fail"], 1, "an unforeseen RuntimeError: one")


def test_a_checkpoint_named_must_be_one(data: Path, finished: Path, capsys, tmp_path) -> None:
    fails(capsys, train_words(data, tmp_path / "a", "--resume", str(tmp_path / "none")), 2, "is not a whole checkpoint")
    (checkpoint,) = (finished / "checkpoints").iterdir()
    assert run(train_words(data, tmp_path / "b", "--resume", str(checkpoint))) == 0
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
        reached = wait_for_progress(broken, process, reached + leap)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert process.returncode == status, error
        assert ("the same command again goes on" in out) == (number != signal.SIGKILL)
        assert "Traceback" not in error
    done = spawn(words(data, broken, *often))
    out, _ = done.communicate(timeout=300)
    assert "going on from" in out
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (broken, whole))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))  # no line twice
    assert contents(broken / "pictures") == contents(whole / "pictures")


DDPM = "--preset ddpm --n-feat 8 --timesteps 10 --batch 16 --checkpoint-every 16 --log-every 16"


def ddpm_words(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--data", str(data), "--out", str(out), *DDPM.split(), *more]


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
        assert picture.width == (10 * 30 + 2) * 2
        assert np.asarray(picture)[-60:].mean() > 180  # real rows, dark on white
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["epoch"] == 6
    assert lines[-1]["lr"] == pytest.approx(1 / 7)
    assert (json.loads((out / "summary.json").read_text()))["steps"] == 21


def test_other_sizes_and_colours_train_with_the_original_network(tmp_path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 256, (12, 20, 17, 3), dtype=np.uint8), labels=np.arange(12) % 2)
    assert run(ddpm_words(tmp_path / "x.npz", tmp_path / "run", "--epochs", "1")) == 0


def test_a_long_run_is_announced_with_its_hours_and_goes_on(data: Path, tmp_path, capsys, monkeypatch) -> None:
    from pocketdiff.cli import train as module

    monkeypatch.setattr(module, "LONG", 0.0)
    assert run(ddpm_words(data, tmp_path / "run", "--epochs", "1")) == 0
    words = capsys.readouterr().err
    assert re.search(
        r"^pocketdiff: on this CPU that takes about [\d.]+ hours: [\d.]+ of training and", words, re.MULTILINE
    )


def test_the_forecast_counts_the_pictures_that_are_drawn(data: Path, tmp_path, monkeypatch) -> None:
    from pocketdiff.cli.gallery import Gallery
    from pocketdiff.denoiser import Denoiser

    asked = {"foretold": 0, "drawn": 0}
    forward, work, draw = Denoiser.forward, Gallery.work, Gallery.draw

    def foretell(self, seen: int) -> int:
        asked["foretold"] = work(self, seen)
        return asked["foretold"]

    def count(self, *words) -> object:
        def forwarded(self, x, sigma, label) -> object:
            asked["drawn"] += len(x)
            return forward(self, x, sigma, label)

        with monkeypatch.context() as patch:
            patch.setattr(Denoiser, "forward", forwarded)
            return draw(self, *words)

    monkeypatch.setattr(Gallery, "work", foretell)
    monkeypatch.setattr(Gallery, "draw", count)
    for words in (ddpm_words(data, tmp_path / "a", "--epochs", "7"), train_words(data, tmp_path / "b")):
        asked["drawn"] = 0
        assert run(words) == 0
        assert asked["drawn"] == asked["foretold"] > 0


def test_time_spent_on_pictures_that_were_owed_counts(data: Path, tmp_path, monkeypatch) -> None:
    from pocketdiff.cli.gallery import Gallery

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
def test_a_signal_while_drawing_leaves_at_once_and_the_pictures_are_owed(
    ends, data: Path, tmp_path, monkeypatch, capsys
) -> None:
    """At the edge of the first epoch, or when all is trained: the next session draws first."""
    from pocketdiff import pictures

    epochs = ("--epochs", "1" if ends else "2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(ddpm_words(data, whole, *epochs)) == 0
    denoising = pictures.denoising

    def interrupted(model, labels, seeds) -> object:
        if model.sampling.scale > 1:  # the second guidance strength
            os.kill(os.getpid(), signal.SIGINT)
        return denoising(model, labels, seeds)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "denoising", interrupted)
        assert run(ddpm_words(data, broken, *epochs)) == 130
    assert "stopped, and saved as" in capsys.readouterr().out
    assert {path.name for path in (broken / "pictures").iterdir()} == {"image_ep0_w0.png", "gif_ep0_w0.gif"}
    assert run(ddpm_words(data, broken, *epochs)) == 0
    assert contents(broken / "pictures") == contents(whole / "pictures")
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def wait_for_progress(run: Path, process: subprocess.Popen[str], seen: int) -> int:
    """Waits until a checkpoint stands at that many images."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for manifest in run.glob("checkpoints/step-*/manifest.json"):
            try:
                reached = int(json.loads(manifest.read_text())["seen"])
            except FileNotFoundError:  # it was just replaced by the next
                continue
            if reached >= seen:
                return reached
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at {seen} images: {process.communicate()}")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_second_signal_leaves_at_once() -> None:
    code = (
        "import os, signal, sys, time\n"
        "from pocketdiff.cli.console import Stop\n"
        "with Stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(stop.asked, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 130)


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX's")
def test_two_processes_cannot_train_in_one_folder(data: Path, tmp_path, capsys) -> None:
    from pocketdiff.cli.console import locked

    out = tmp_path / "run"
    out.mkdir()
    with locked(out):
        fails(capsys, train_words(data, out), 2, "another process")
    assert run(train_words(data, out)) == 0


def test_colour_images_of_any_shape_train_and_sample(tmp_path, capsys) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 256, (20, 27, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    out = tmp_path / "run"
    assert run(train_words(tmp_path / "photos", out)) == 0
    assert run(["sample", str(out), "--labels", "dog,cat", "--out", str(tmp_path / "x.npz"), "--per-label", "2"]) == 0
    with np.load(tmp_path / "x.npz") as drawn:
        assert drawn["images"].shape == (4, 20, 27, 3)
        assert drawn["labels"].tolist() == [1, 0, 1, 0]


# Sampling


def test_the_readmes_python_runs(finished: Path, capsys) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("runs/laptop", str(finished)), names)
    assert names["images"].shape == (3, 1, 28, 28)  # type: ignore[attr-defined]
    assert names["last"].x.shape == (2, 1, 28, 28)  # type: ignore[attr-defined]


def test_sample_needs_the_model_file_alone(finished: Path, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "moved.safetensors").write_bytes((finished / "model.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(["sample", "moved.safetensors", "--labels", "3,1,4,1,5", "--seed", "7"]) == 0
    assert (
        "wrote samples.png: 5 images, dpmpp_2m, 2 steps, scale 2.4 (w = 1.4), seeds 7 to 11" in capsys.readouterr().out
    )
    with Image.open("samples.png") as picture:
        assert picture.width / picture.height == pytest.approx(152 / 32)


def test_what_is_there_is_not_overwritten(finished: Path, tmp_path, capsys) -> None:
    for name in ("a.png", "a.npz", "a.gif"):
        path = tmp_path / name
        words = ["sample", str(finished), "--labels", "0", "--out", str(path)]
        assert run(words) == 0
        fails(capsys, words, 2, "--overwrite")
        assert run([*words, "--overwrite", "--seed", "9"]) == 0
    fails(capsys, ["sample", str(finished), "--seed", "-1", "--out", str(tmp_path / "b.png")], 2, "--seed -1")
    fails(capsys, ["sample", str(finished), "--seed", str(2**63), "--out", str(tmp_path / "b.npz")], 2, "2^63")
    fails(capsys, ["sample", str(finished), "--labels", "", "--out", str(tmp_path / "b.png")], 2, "no class ''")
    words = ["sample", str(finished), "--schedule.kind", "discrete_beta", "--schedule.timesteps", "2", "--steps", "3"]
    fails(
        capsys, [*words, "--out", str(tmp_path / "b.png")], 2, "steps is 3, but the discrete_beta schedule has only 2"
    )
    (tmp_path / "folder").mkdir()
    words = ["sample", str(finished), "--out", str(tmp_path / "folder"), "--overwrite"]
    fails(capsys, words, 2, "is a folder that is there already")


def test_arrays_and_files_hold_the_same_images(finished: Path, tmp_path) -> None:
    words = ["sample", str(finished), "--labels", "2-4", "--per-label", "3", "--seed", "5", "--out"]
    assert run([*words, str(tmp_path / "x.npz")]) == 0
    assert run([*words, str(tmp_path / "folder")]) == 0
    with np.load(tmp_path / "x.npz") as drawn:
        assert drawn["images"].shape == (9, 28, 28)
        assert drawn["images"].dtype == np.uint8
        assert drawn["labels"].tolist() == [2, 3, 4] * 3
        assert drawn["seeds"].tolist() == list(range(5, 14))
        for image, label, seed in zip(drawn["images"], drawn["labels"], drawn["seeds"], strict=True):
            with Image.open(tmp_path / "folder" / str(label) / f"{seed:06d}.png") as file:
                assert np.array_equal(np.asarray(file), image)
        again = pocketdiff.load(finished)(drawn["labels"].tolist(), drawn["seeds"].tolist())
        assert np.array_equal(again[:, 0].numpy(), drawn["images"])
    assert load_data(str(tmp_path / "folder")).info.classes == ("2", "3", "4")
    assert len(load_data(str(tmp_path / "x.npz")).train) == 6


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("0-9", list(range(10))),
        ("3,1,4,1,5", [3, 1, 4, 1, 5]),
        ("7", [7]),
        ("8-9, 0-1", [8, 9, 0, 1]),
    ],
)
def test_labels_of_digits(text: str, labels: list[int]) -> None:
    assert parse_labels(text, tuple("0123456789")) == labels


def test_labels_by_name_with_dashes_and_by_index() -> None:
    classes = ("ankle-boot", "bag", "t-shirt")
    assert parse_labels("t-shirt,bag", classes) == [2, 1]
    assert parse_labels("ankle-boot-t-shirt", classes) == [0, 1, 2]
    assert parse_labels("0-1,t-shirt", classes) == [0, 1, 2]


def test_a_number_that_names_a_class_is_never_an_index() -> None:
    letters = ("1", "2", "3")  # EMNIST's labels begin at 1
    assert parse_labels("1-3", letters) == [0, 1, 2]
    with pytest.raises(UsageError, match="no class '0-2'"):
        parse_labels("0-2", letters)


@pytest.mark.parametrize("text", ["", ",", "10", "-1", "0-10", "5-3", "cat", "1.5", "²"])
def test_labels_that_are_none_are_named(text: str) -> None:
    with pytest.raises(UsageError, match="there is no class"):
        parse_labels(text, tuple("0123456789"))


@given(st.text(alphabet="0123456789-,ab ", max_size=12))
def test_any_list_of_labels_gives_labels_or_a_sentence(text: str) -> None:
    classes = ("a", "b", "a-b", "c")
    try:
        labels = parse_labels(text, classes)
    except UsageError:
        return
    assert labels
    assert all(0 <= label < len(classes) for label in labels)


def test_info_says_what_a_model_is(finished: Path, capsys) -> None:
    assert run(["info", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "28 x 28, grey, 10 classes: 0, 1, 2" in out
    assert '"muon_lr": 0.015' in out
