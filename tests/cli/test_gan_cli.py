"""GANs on the command line: training, sampling, what they cannot do."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketdiff import checkpoint
from pocketdiff.cli import run, train as module
from pocketdiff.methods.gan import PRESETS
from pocketdiff.methods.loop import StepReport
from pocketdiff.run.gallery import Gallery
from tests.cli.helpers import contents, fails, lines

WORDS = {
    "gan": "--net.generator 16 24 --net.discriminator 24 16 --images 92 --batch 8",
    "gan-conditional": "--net.widths 8 --embedding 8 --images 92 --batch 8",
}
both = pytest.mark.parametrize("preset", WORDS)


def gan_words(preset: str, data: Path, out: Path, *more: str) -> list[str]:
    """A run of a second."""
    words = (
        f"train --preset {preset} {WORDS[preset]} --latent 8 --log-every 16 --checkpoint-every 16 --pictures-every 1"
    )
    return [*words.split(), "--data", str(data), "--out", str(out), *more]


@pytest.fixture(scope="module")
def runs(tiny_file: Path, tmp_path_factory) -> dict[str, Path]:
    """A finished run of each preset, which no test changes."""
    out = tmp_path_factory.mktemp("runs")
    for preset in WORDS:
        assert run(gan_words(preset, tiny_file, out / preset)) == 0
    return {preset: out / preset for preset in WORDS}


@both
def test_a_run_leaves_all_its_files(preset: str, runs: dict[str, Path]) -> None:
    out = runs[preset]
    assert {path.name for path in (out / "pictures").iterdir()} == {f"image_ep{epoch}.png" for epoch in range(3)}
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    log = lines(out)
    assert [line["seen"] for line in log] == [16, 32, 48, 64, 80, 92]
    keys = {"step", "seen", "epoch", "discriminator_loss", "generator_loss", "lr", "images_per_second", "seconds"}
    assert all(line.keys() == keys for line in log)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["images_seen"]) == (12, 92)
    with Image.open(out / "pictures/image_ep2.png") as picture:
        assert picture.width == (10 * 30 + 2) * 3
        assert np.asarray(picture)[-60:].mean() > 180  # real rows, dark on white


@both
def test_a_finished_run_says_so_and_changes_nothing(preset: str, runs, tiny_file: Path, capsys) -> None:
    before = contents(runs[preset])
    assert run(gan_words(preset, tiny_file, runs[preset])) == 0
    assert "is finished" in capsys.readouterr().out
    assert contents(runs[preset]) == before


@both
def test_an_interrupted_run_continues_bit_for_bit(preset, runs, tiny_file: Path, tmp_path, monkeypatch, capsys) -> None:
    """Interrupted between two penalties; then while it draws, which the next session does first."""
    out, step, draw = tmp_path / "run", module._Screen.step, Gallery.draw

    def interrupt_training(self, report: StepReport, *rest) -> None:
        step(self, report, *rest)
        if report.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    def interrupt_drawing(self, *words) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return draw(self, *words)

    for owner, name, interrupt in ((module._Screen, "step", interrupt_training), (Gallery, "draw", interrupt_drawing)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            assert run(gan_words(preset, tiny_file, out)) == 130
        assert "stopped, and saved as" in capsys.readouterr().out
    assert run(gan_words(preset, tiny_file, out)) == 0
    assert "continuing from" in capsys.readouterr().out
    assert contents(out / "pictures") == contents(runs[preset] / "pictures")
    assert (out / "model.safetensors").read_bytes() == (runs[preset] / "model.safetensors").read_bytes()
    found = [line["step"] for line in lines(out)]
    assert found == sorted(set(found))  # no line twice


def test_a_rate_that_is_too_high_ends_with_advice(tiny_file: Path, tmp_path, capsys) -> None:
    words = gan_words("gan-conditional", tiny_file, tmp_path / "run", "--generator-lr", "1e30")
    fails(capsys, [*words, "--discriminator-lr", "1e30"], 1, "--generator-lr and --discriminator-lr")
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset gan --net.generator 0", "--net.generator 0"),
        ("--preset gan --net.widths 8", "--net.widths 8"),
        ("--preset gan-conditional --net.widths 12", "--net.widths 12: widths must be multiples of 8"),
        ("--preset gan --loss wasserstein", "there is no GAN loss 'wasserstein'; use nonsaturating, relativistic"),
        ("--preset gan --sampling.steps 5", "--sampling.steps"),
        ("--preset gan --classification 0.5", "classification must be 0"),
        ("--preset gan --net.kind unet", "--net.kind unet: there is no such kind; use mlp, conv"),
        ("--preset laptop --net.kind mlp", "--net.kind mlp: there is no such kind; use unet, context_unet"),
    ],
)
def test_bad_input_is_one_sentence(words: str, message: str, tiny_file: Path, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["train", "--data", str(tiny_file), *words.split()], 2, message)
    assert list(tmp_path.iterdir()) == []


def test_labels_are_drawn_as_pictures_arrays_and_files(runs, tmp_path) -> None:
    words = ["sample", str(runs["gan-conditional"]), "--labels", "2-4", "--per-label", "2", "--seed", "5", "--out"]
    for name in ("x.png", "x.npz", "folder"):
        assert run([*words, str(tmp_path / name)]) == 0
    with np.load(tmp_path / "x.npz") as drawn:
        assert drawn["labels"].tolist() == [2, 3, 4] * 2
        model = checkpoint.load(runs["gan-conditional"])
        assert np.array_equal(drawn["images"], model([2, 3, 4] * 2, range(5, 11))[:, 0].numpy())
    files = sorted(str(path.relative_to(tmp_path / "folder")) for path in (tmp_path / "folder").rglob("*.png"))
    assert files == [f"{label}/{seed:06d}.png" for label in (2, 3, 4) for seed in (label + 3, label + 6)]


def test_a_gan_without_labels_draws_pictures_arrays_and_files(runs, tmp_path, capsys) -> None:
    words = ["sample", str(runs["gan"]), "--seed", "5", "--per-label", "1", "--out"]
    for name in ("x.png", "x.npz", "folder"):
        assert run([*words, str(tmp_path / name)]) == 0
        assert "labels" in capsys.readouterr().err
    with np.load(tmp_path / "x.npz") as drawn:
        assert sorted(drawn) == ["images", "seeds"]
        assert np.array_equal(drawn["images"], checkpoint.load(runs["gan"])([10] * 10, range(5, 15))[:, 0].numpy())
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [f"{seed:06d}.png" for seed in range(5, 15)]


@pytest.mark.parametrize(
    ("preset", "words", "message"),
    [
        ("gan", "--labels 3", "--labels 3: "),
        *(
            (preset, words, message)
            for preset in WORDS
            for words, message in {
                "--steps 5": "--steps",
                "--scale 2": "--scale",
                "--sampler heun": "--sampler",
                "--out x.gif": "--out x.gif",
            }.items()
        ),
    ],
)
def test_what_a_gan_cannot_do_is_one_sentence(preset, words, message, runs, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["sample", str(runs[preset]), *words.split()], 2, message)
    assert list(tmp_path.iterdir()) == []


@both
def test_info_says_what_a_model_is(preset: str, runs, capsys) -> None:
    assert run(["info", str(runs[preset])]) == 0
    out = capsys.readouterr().out
    assert "28 x 28, grey" in out
    assert "10: 0, 1, 2" in out
    assert "GAN, 1 step" in out
    assert ("draws without labels" in out) == (preset == "gan")
    assert f'"loss": "{PRESETS[preset].loss}"' in out
