"""``pocketdiff evaluate`` and ``pocketdiff train-classifiers``."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pocketdiff
from pocketdiff.cli import console, evaluate, run
from pocketdiff.cli.console import cache_folder
from pocketdiff.cli.sample import sampled
from pocketdiff.data import Dataset
from pocketdiff.evaluation import Evaluation, classifiers
from pocketdiff.model import ImageModel
from tests.cli.helpers import fails, scored, spawn

pytestmark = pytest.mark.usefixtures("cache")


def test_real_images_score_like_the_real_baseline(images, file, digits: Dataset, tmp_path, capsys) -> None:
    found = scored(images, file, tmp_path, "--controls", "--out", str(tmp_path / "report"))
    for name, value in found["metrics"].items():
        if name != "frechet_test":
            assert value == found["real_baseline"][name], name
    assert found["metrics"]["frechet_test"] < 1e-6
    assert set(found["controls"]) == {"noise", "blurred", "shuffled_labels"}
    provenance = found["provenance"]
    assert (provenance["n"], provenance["seed"], provenance["data"]) == (200, 0, str(file))
    assert provenance["data_sha256"] == digits.info.sha256
    assert provenance["target"] == str(images)
    assert re.fullmatch("features-[0-9a-f]{8}", provenance["feature_network"]["name"])
    out = capsys.readouterr().out
    assert "label accuracy" in out
    assert out.endswith(f"wrote {tmp_path / 'score.json'}\nwrote {tmp_path / 'report' / 'index.html'}\n")
    assert "</html>" in (tmp_path / "report" / "index.html").read_text()


def test_sampling_flags_reach_the_score(trained: Path, file: Path, tmp_path) -> None:
    words = ["--n", "150", "--seed", "3", "--steps", "3", "--scale", "2", "--schedule.rho", "5"]
    found = scored(trained, file, tmp_path, *words)["provenance"]
    facts = found["drawing"]["sampling"]
    assert (facts["sampler"], facts["steps"], facts["scale"], facts["nfe"]) == ("dpmpp_2m", 3, 2.0, 6.0)
    assert facts["schedule"]["rho"] == 5
    assert (found["n"], found["seed"], found["target"]) == (150, 3, str(trained))


def test_a_run_needs_no_data_flag_and_a_model_file_neither(trained: Path) -> None:
    for target in (trained, trained / "model.safetensors"):
        assert run(["evaluate", str(target), "--n", "128"]) == 0


def test_folders_of_images_are_scored_with_labels_and_without(images, file: Path, tmp_path) -> None:
    with np.load(images) as arrays:
        for i, (image, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
            for place in (tmp_path / "flat", tmp_path / "classes" / str(label)):
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{i:04d}.png")
    labelled, flat = (scored(tmp_path / name, file, tmp_path)["metrics"] for name in ("classes", "flat"))
    assert labelled["accuracy"] > 0.95
    assert flat["accuracy"] is None
    assert flat["frechet_train"] == pytest.approx(labelled["frechet_train"])


def test_a_sweep_scores_every_combination(trained: Path, file: Path, tmp_path, capsys) -> None:
    words = ["--n", "128", "--scales", "1,1.5,1.50", "--steps", "2,3", "--samplers", "euler,heun"]
    found = scored(trained, file, tmp_path, *words, "--out", str(tmp_path / "sweep"))
    facts = [trial["drawing"]["sampling"] for trial in found["trials"]]
    ways = [(fact["sampler"], fact["steps"], fact["scale"]) for fact in facts]
    assert sorted(ways) == [(name, n, scale) for name in ("euler", "heun") for n in (2, 3) for scale in (1.0, 1.5)]
    nfe = {way: fact["nfe"] for way, fact in zip(ways, facts, strict=True)}
    assert (nfe["euler", 3, 1.0], nfe["euler", 3, 1.5], nfe["heun", 3, 1.0]) == (3, 6, 5)
    words = ["--n", "128", "--steps", "3", "--scale", "1.5", "--sampler", "euler"]
    single = scored(trained, file, tmp_path, *words)
    swept = found["trials"][ways.index(("euler", 3, 1.5))]["metrics"]
    assert swept["accuracy"] == single["metrics"]["accuracy"]
    assert swept["frechet_train"] == single["metrics"]["frechet_train"]
    out = capsys.readouterr().out
    assert out.count("heun, 3 steps, scale 1.5 (w = 0.5)") == 2, "as soon as it is scored, and in the table"
    assert "</html>" in (tmp_path / "sweep" / "index.html").read_text()


def test_guidance_intervals_and_guides_are_swept(trained: Path, file: Path, tmp_path) -> None:
    words = ["--n", "128", "--intervals", "none,0.1:20", "--guides", f"none,{trained}", "--steps", "4"]
    facts = [trial["drawing"]["sampling"] for trial in scored(trained, file, tmp_path, *words)["trials"]]
    assert [(fact["interval"], fact["guide"]) for fact in facts] == [
        (None, None), (None, str(trained)), ([0.1, 20.0], None), ([0.1, 20.0], str(trained))
    ]  # fmt: skip
    assert facts[0]["nfe"] == facts[1]["nfe"] == 8
    assert 4 < facts[2]["nfe"] < 8


def test_another_sampler_forgets_the_options_of_the_models_own(trained: Path) -> None:
    model = pocketdiff.load(trained)
    own = model.sampling.model_copy(update={"sampler": "ancestral", "options": {"eta": 0.5}})
    model = model.with_sampling(own)
    kept, other = sampled(model, [{"steps": "3"}, {"sampler": "heun"}], [], trained)
    assert kept.sampling.options == {"eta": 0.5}
    assert (other.sampling.sampler, other.sampling.options) == ("heun", {})


def test_results_are_written_before_they_are_printed(images, file, tmp_path, monkeypatch) -> None:
    def fail(message: str) -> None:
        raise BrokenPipeError

    written = [tmp_path / "score.json", tmp_path / "report" / "index.html"]
    monkeypatch.setattr(console, "say", fail)
    words = ["evaluate", str(images), "--data", str(file), "--json", str(written[0]), "--out", str(tmp_path / "report")]
    saved = os.dup(1)
    try:
        assert run(words) == 1
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert json.loads(written[0].read_text())["provenance"]["n"] == 200
    assert "</html>" in written[1].read_text()


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
def test_head_may_close_the_pipe(images, file, tmp_path) -> None:
    words = ["evaluate", str(images), "--data", str(file), "--json", str(tmp_path / "score.json")]
    with spawn(words) as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert (tmp_path / "score.json").exists()


def test_every_option_reaches_the_library(images, file: Path, monkeypatch) -> None:
    given: dict[str, Any] = {}

    def stand_in(target, data, **named) -> object:
        given.update(named, target=target, data=data)
        return Evaluation.__new__(Evaluation)

    monkeypatch.setattr(evaluate, "evaluate", stand_in)
    monkeypatch.setattr(Evaluation, "json", lambda self: {})
    monkeypatch.setattr(Evaluation, "table", lambda self: "")
    assert run(["evaluate", str(images), "--data", str(file), "--cas", "--controls", "--augment", "--n", "130"]) == 0
    assert (given["cas"], given["controls"], given["augment"], given["n"]) == (True, True, True, 130)
    assert (len(given["target"]), given["name"]) == (200, str(images))
    assert given["cache"] == cache_folder()


@pytest.fixture
def short_training(monkeypatch) -> None:
    """Classifiers are trained for a moment only."""
    monkeypatch.setattr(classifiers, "_MIN_LENGTH", 1280)
    monkeypatch.setattr(classifiers, "_EPOCHS", 1)
    monkeypatch.setattr(classifiers, "_MEASURED", 0.0)


def test_classifiers_are_trained_where_there_are_none_and_kept(
    mnist: Dataset, tmp_path, monkeypatch, capsys, short_training
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, target = tmp_path / "own.npz", tmp_path / "images.npz"
    pixels = mnist.train.pixels[1000:1400].repeat(1, 3, 1, 1).permute(0, 2, 3, 1).numpy()
    labels = mnist.train.labels[1000:1400].numpy()
    np.savez(file, images=pixels, labels=labels)
    np.savez(target, images=pixels[:130], labels=labels[:130])
    found = scored(target, file, tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("training both classifiers of these data takes at most about ")
    kept = sorted(path.name for path in (tmp_path / "cache" / "pocketdiff" / "classifiers").iterdir())
    assert [name.partition("-of-")[0] for name in kept] == ["features", "reader", "reference"]
    assert found["metrics"]["frechet_test"] is None, "forty test images are too few"
    assert found["real_baseline"] == {}
    assert scored(target, file, tmp_path)["metrics"] == found["metrics"]
    assert "training both classifiers" not in capsys.readouterr().out


def test_the_classifiers_have_a_command_of_their_own(file: Path, tmp_path, capsys, short_training) -> None:
    out = tmp_path / "weights"
    assert run(["train-classifiers", "--data", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert all(f"wrote {path}" in said for path in out.iterdir())
    assert len(list(out.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    file: Path, images: Path, tmp_path, monkeypatch, capsys, short_training
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run(["evaluate", str(images), "--data", str(file)]) == 0
    assert "pocketdiff: " in (error := capsys.readouterr().err)
    assert "cannot be saved there" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nothing.npz", "holds no images"),
        ("nothing", "no such file"),
        ("IMAGES --n 100", "--n 100: input should be greater than or equal to 128"),
        ("IMAGES --seed -1", "--seed -1: input should be greater than or equal to 0"),
        ("IMAGES --scale 2", "--scale: needs a model, and"),
        ("IMAGES --steps 4,6", "--steps: needs a model, and"),
        ("IMAGES --samplers heun", "--samplers: needs a model, and"),
        ("IMAGES --data nowhere", "nowhere: no such file or folder"),
        ("IMAGES --data FILE --size 32", "28 x 28 pixels in grey, but those of the data 32 x 32"),
        ("RUN --data mnist", "was not trained on these data"),
        ("RUN --scales 1,2 --scale 1", "--scale and --scales exclude each other"),
        ("RUN --scales 1,x", "--scales 1,x: 'x': "),
        ("RUN --scales 1,,2", "--scales 1,,2: '': "),
        ("RUN --samplers heun,best", "--samplers heun,best: 'best': there is no sampler"),
        ("RUN --steps 0", "--steps 0: '0': "),
        ("RUN --intervals 1:2,3", "--intervals 1:2,3: '3': "),
        ("RUN --guides none,nowhere", "nowhere: no such file"),
        ("RUN --split-seed x", "--split-seed x: "),
        ("RUN --size 20 20 20", "--size 20 20 20: "),
        ("RUN/config.json", "cannot be read as safetensors"),
        ("RUN/checkpoints", "is not a PNG or JPEG file"),
        ("RUN --scales 1,2 --cas", "need a single sampling"),
        ("RUN --scales 1,2 --augment", "need a single sampling"),
        ("RUN --json EMPTY", "is an existing folder; take another --json"),
        ("RUN --json EMPTY/index.html --out EMPTY", "is where --out writes its page"),
        ("RUN --json IMAGES/score.json", "is a file; take another --json"),
        ("RUN --out IMAGES", "is a file; take another --out"),
        ("RUN --wrong", "--wrong"),
        ("EMPTY", "holds no image"),
    ],
)
def test_bad_input_is_one_sentence(words: str, message: str, images, file, trained, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": images, "FILE": file, "RUN": trained, "EMPTY": tmp_path / "empty"}
    line = []
    for word in words.split():
        first, _, rest = word.partition("/")
        line.append(str(places[first] / rest if first in places and rest else places.get(word, word)))
    fails(capsys, ["evaluate", *line], 2, message)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((200, 28, 28), np.uint8), None, "all equal"),
        (np.full((200, 28, 28), np.nan, np.float32), None, "must be uint8"),
        (np.zeros((200, 20, 28), np.uint8), None, "20 x 28 pixels"),
        (np.zeros((200, 28, 28), np.uint8), np.zeros(199, np.int64), "labels has 199 entries for 200 images"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(images, labels, message, file, tmp_path, capsys) -> None:
    arrays = {"images": images} | ({} if labels is None else {"labels": labels})
    np.savez(tmp_path / "bad.npz", **arrays)
    fails(capsys, ["evaluate", str(tmp_path / "bad.npz"), "--data", str(file)], 2, message)


def test_data_that_a_run_no_longer_finds_can_be_named(trained: Path, file: Path, tmp_path, capsys) -> None:
    moved = tmp_path / "moved.npz"
    moved.write_bytes(file.read_bytes())
    model: ImageModel = pocketdiff.load(trained)
    model.config = model.config.model_copy(update={"data": "gone.npz"})
    model.save(tmp_path / "m.safetensors")
    fails(capsys, ["evaluate", str(tmp_path / "m.safetensors")], 2, "(--data)")
    assert run(["evaluate", str(tmp_path / "m.safetensors"), "--data", str(moved), "--n", "128"]) == 0


def test_too_few_training_images_are_named_before_any_training(tiny_file: Path, images: Path, capsys) -> None:
    fails(capsys, ["evaluate", str(images), "--data", str(tiny_file)], 2, "the data have 40 training images")


def test_classifiers_that_cannot_be_written_are_not_trained(file: Path, images: Path, capsys) -> None:
    fails(capsys, ["train-classifiers", "--data", str(file), "--out", str(images)], 2, f"--out {images}: cannot be")


def test_a_classifier_needs_labels_to_learn_from(images, file: Path, tmp_path, capsys) -> None:
    with np.load(images) as arrays:
        np.savez(tmp_path / "bare.npz", images=arrays["images"])
    fails(capsys, ["evaluate", str(tmp_path / "bare.npz"), "--data", str(file), "--cas"], 2, "cas: ")


def test_existing_files_are_not_overwritten(images, file: Path, tmp_path, capsys) -> None:
    (tmp_path / "score.json").write_text("mine")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("mine")
    words = ["evaluate", str(images), "--data", str(file)]
    for more in (["--json", str(tmp_path / "score.json")], ["--out", str(tmp_path / "report")]):
        fails(capsys, words + more, 2, "add --overwrite")
    assert (tmp_path / "score.json").read_text() == (tmp_path / "report" / "index.html").read_text() == "mine"


def test_copies_cause_a_warning(digits: Dataset, file: Path, tmp_path, capsys) -> None:
    pixels, labels = digits.train.pixels[:150, 0].numpy(), digits.train.labels[:150].numpy()
    np.savez(tmp_path / "copies.npz", images=pixels, labels=labels)
    found = scored(tmp_path / "copies.npz", file, tmp_path)
    assert found["metrics"]["memorized_share"] == 1.0
    assert "pocketdiff: 100.00% of the images are as near to a training image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cas", "has no labels"),
        ("--augment", "augment: "),
        ("--scales 1,2", "--scales: "),
        ("--steps 4", "--steps: "),
        ("--sampler heun", "--sampler: "),
        ("--guides none", "--guides: "),
    ],
)
def test_a_gan_has_no_sampling_settings(words: str, message: str, unlabelled: Path, capsys) -> None:
    fails(capsys, ["evaluate", str(unlabelled), *words.split()], 2, message)
