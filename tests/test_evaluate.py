import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pocketdiff
from pocketdiff.cli import run
from pocketdiff.data import Dataset, load_data
from pocketdiff.evaluate import classifiers
from pocketdiff.evaluate.classifiers import SHIPPED, find_classifier

TINY = "--images 300 --batch 20 --widths 8 16 --blocks 1 --embedding 16 --steps 2"


@pytest.fixture(scope="module")
def file(mnist: Dataset, tmp_path_factory) -> Path:
    """A small data set of its own, with a test split."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    parts = {"images": mnist.train.pixels[:500, 0], "labels": mnist.train.labels[:500]}
    parts |= {"test_images": mnist.test.pixels[:200, 0], "test_labels": mnist.test.labels[:200]}
    np.savez(path, **{name: part.numpy() for name, part in parts.items()})  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def data(file: Path) -> Dataset:
    return load_data(str(file))


@pytest.fixture(scope="module", autouse=True)
def cache(file: Path, data: Dataset, tmp_path_factory) -> object:
    """A cache of this module's own, in which MNIST's classifiers pass for those of the small data set."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        mnist = load_data("mnist")
        for kind in classifiers.KINDS:
            trained = find_classifier(kind, mnist.info, [SHIPPED])
            classifiers.save_classifier(
                folder / "pocketdiff" / "classifiers", classifiers.finished(kind, trained.net, data), data.info
            )
        yield folder


@pytest.fixture(scope="module")
def trained(file: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert run(["train", "--preset", "quick", "--data", str(file), "--out", str(out), *TINY.split()]) == 0
    return out


@pytest.fixture(scope="module")
def given(data: Dataset, tmp_path_factory) -> Path:
    """The test split as a file of images."""
    path = tmp_path_factory.mktemp("given") / "test.npz"
    np.savez(path, images=data.test.pixels[:, 0].numpy(), labels=data.test.labels.numpy())
    return path


def fails(capsys, words: list[str], status: int, message: str) -> None:
    capsys.readouterr()
    assert run(words) == status
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("pocketdiff: ")]
    assert len(lines) == 1, error
    assert message in lines[0]


def scored(target: Path, file: Path, out: Path, *more: str) -> dict[str, Any]:
    words = ["evaluate", str(target), "--data", str(file), "--json", str(out / "score.json"), "--overwrite", *more]
    assert run(words) == 0
    return json.loads((out / "score.json").read_text())


def test_the_test_split_as_a_file_gives_the_floor(given: Path, file: Path, data: Dataset, tmp_path, capsys) -> None:
    figures = scored(given, file, tmp_path, "--controls", "--out", str(tmp_path / "report"))
    for name, value in figures["metrics"].items():
        if name != "frechet_test":
            assert value == figures["floor"][name], name
    assert figures["metrics"]["frechet_test"] < 1e-6
    assert set(figures["controls"]) == {"noise", "blurred", "shuffled_labels"}
    frame = figures["frame"]
    assert (frame["n"], frame["seed"], frame["data"], frame["data_sha256"]) == (200, 0, str(file), data.info.sha256)
    assert re.fullmatch("features-[0-9a-f]{8}", frame["feature_network"])
    assert frame["seconds"] > 0
    out = capsys.readouterr().out
    assert f"wrote {tmp_path / 'score.json'}" in out
    assert f"wrote {tmp_path / 'report' / 'index.html'}" in out
    assert "</html>" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.slow
def test_the_floor_of_mnist_is_what_the_docs_say(mnist: Dataset, tmp_path) -> None:
    np.savez(tmp_path / "test.npz", images=mnist.test.pixels[:, 0].numpy(), labels=mnist.test.labels.numpy())
    figures = scored(tmp_path / "test.npz", Path("mnist"), tmp_path)
    assert figures["metrics"]["frechet_train"] == pytest.approx(0.0938, rel=0.02)
    assert figures["metrics"]["accuracy"] >= 0.995
    assert figures["metrics"]["memorized_share"] == pytest.approx(0.01, abs=2e-4)


def test_a_models_images_are_those_that_it_draws(trained: Path, file: Path, data: Dataset, tmp_path) -> None:
    figures = scored(trained, file, tmp_path, "--n", "150", "--seed", "3", "--steps", "3", "--scale", "2")
    frame = figures["frame"]
    assert (frame["sampler"], frame["steps"], frame["scale"], frame["network_evaluations"]) == ("dpmpp_2m", 3, 2.0, 6.0)
    assert scored(trained, file, tmp_path, "--n", "150", "--seed", "3", "--steps", "3", "--scale", "1")["frame"][
        "network_evaluations"
    ] == 3.0  # fmt: skip

    from pocketdiff.config import SamplingConfig
    from pocketdiff.evaluate.score import labels_like

    model = pocketdiff.load(trained)
    labels = labels_like(data.train.labels, 150)
    sampling = SamplingConfig(**model.config.sampling.model_dump() | {"steps": 3, "scale": 2.0})
    images = model.with_sampling(sampling).generate(labels, range(3 << 32, (3 << 32) + 150))
    np.savez(tmp_path / "drawn.npz", images=images[:, 0].numpy(), labels=np.array(labels))
    again = scored(tmp_path / "drawn.npz", file, tmp_path, "--seed", "3")
    assert again["metrics"] == figures["metrics"]
    assert again["intervals"] == figures["intervals"]


def test_a_run_needs_no_data_flag_and_a_model_file_neither(trained: Path, tmp_path) -> None:
    for target in (trained, trained / "model.safetensors"):
        assert run(["evaluate", str(target), "--n", "128"]) == 0


def test_folders_of_images_are_scored_with_labels_and_without(given: Path, file: Path, data: Dataset, tmp_path) -> None:
    with np.load(given) as arrays:
        for i, (image, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
            for place in (tmp_path / "flat", tmp_path / "classes" / str(label)):
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{i:04d}.png")
    wanted = scored(given, file, tmp_path)["metrics"]
    assert scored(tmp_path / "classes", file, tmp_path)["metrics"] == wanted
    flat = scored(tmp_path / "flat", file, tmp_path)
    assert flat["metrics"]["accuracy"] is None
    assert flat["per_class"] == {}
    assert flat["metrics"]["frechet_train"] == pytest.approx(wanted["frechet_train"])


def test_of_more_images_some_are_taken_by_the_seed(given: Path, file: Path, tmp_path) -> None:
    one, other, again = (scored(given, file, tmp_path, "--n", "130", "--seed", seed) for seed in ("0", "1", "0"))
    assert one["frame"]["n"] == 130
    assert one["metrics"] == again["metrics"] != other["metrics"]


def test_a_sweep_scores_every_combination(trained: Path, file: Path, tmp_path, capsys) -> None:
    words = ["--n", "128", "--scales", "1,1.5,1.50", "--steps", "2,3", "--samplers", "euler,heun"]
    figures = scored(trained, file, tmp_path, *words, "--out", str(tmp_path / "sweep"))
    ways = [(row["sampler"], row["steps"], row["scale"]) for row in figures["trials"]]
    assert sorted(ways) == [(name, n, scale) for name in ("euler", "heun") for n in (2, 3) for scale in (1.0, 1.5)]
    evaluations = {way: row["network_evaluations"] for way, row in zip(ways, figures["trials"], strict=True)}
    assert evaluations["euler", 3, 1.0] == 3
    assert evaluations["euler", 3, 1.5] == 6
    assert evaluations["heun", 3, 1.0] == 5
    words = ["--n", "128", "--steps", "3", "--scale", "1.5", "--sampler", "euler"]
    single = scored(trained, file, tmp_path, *words)
    swept = figures["trials"][ways.index(("euler", 3, 1.5))]["metrics"]
    assert swept == {name: None if name.startswith("memorized") else value for name, value in single["metrics"].items()}
    assert "heun, 3 steps, scale 1.5" in capsys.readouterr().out
    assert "</html>" in (tmp_path / "sweep" / "index.html").read_text()


def test_a_classifier_trained_on_the_images_reads_real_ones(given: Path, file: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(classifiers, "_LEAST", 2500)
    metrics = scored(given, file, tmp_path, "--cas")["metrics"]
    assert 0.3 < metrics["cas"] <= 1
    assert 0.3 < metrics["cas_real"] <= 1


def test_classifiers_are_trained_where_there_are_none_and_kept(mnist: Dataset, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(classifiers, "_LEAST", 1280)
    monkeypatch.setattr(classifiers, "_PASSES", 1)
    file, given = tmp_path / "own.npz", tmp_path / "given.npz"
    images, labels = mnist.train.pixels[1000:1400].repeat(1, 3, 1, 1).permute(0, 2, 3, 1), mnist.train.labels[1000:1400]
    np.savez(file, images=images.numpy(), labels=labels.numpy())
    np.savez(given, images=images[:130].numpy(), labels=labels[:130].numpy())
    figures = scored(given, file, tmp_path)
    assert "these data have no features and no reader classifier yet" in capsys.readouterr().out
    kept = sorted(path.name for path in (tmp_path / "cache" / "pocketdiff" / "classifiers").iterdir())
    assert [name.partition("-of-")[0] for name in kept] == ["features", "reader"]
    assert figures["metrics"]["frechet_test"] is None, "forty test images are too few"
    assert figures["floor"] == {}
    assert scored(given, file, tmp_path)["metrics"] == figures["metrics"]
    assert "classifier yet" not in capsys.readouterr().out


def test_the_classifiers_have_a_command_of_their_own(file: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(classifiers, "_LEAST", 1280)
    monkeypatch.setattr(classifiers, "_PASSES", 1)
    out = tmp_path / "weights"
    assert run(["train-classifiers", "--data", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert all(f"wrote {path}" in said for path in out.iterdir())
    assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nothing.npz", "holds no images"),
        ("nothing", "no such file"),
        ("GIVEN --n 100", "--n 100: a sound score needs 128 images or more"),
        ("GIVEN --seed -1", "--seed -1: must be from 0"),
        ("GIVEN --scale 2", "--scale: goes with a model"),
        ("GIVEN --steps 4,6", "--steps: goes with a model"),
        ("GIVEN --samplers heun", "--samplers: goes with a model"),
        ("GIVEN --data nowhere", "no such file or folder, nor the name of a data set"),
        ("GIVEN --data FILE --size 32", "28 x 28 pixels in grey, and those of the data 32 x 32"),
        ("RUN --data mnist", "was not trained on these data"),
        ("RUN --scales 1,2 --scale 1", "--scale and --scales: say the same"),
        ("RUN --scales 1,x", "--scales 1,x: 'x': "),
        ("RUN --scales 1,,2", "--scales 1,,2: '': "),
        ("RUN --samplers heun,best", "--samplers heun,best: 'best': "),
        ("RUN --steps 0", "--steps 0: '0': "),
        ("RUN --split-seed x", "--split-seed x: "),
        ("RUN/config.json", "cannot be read as safetensors"),
        ("RUN/checkpoints/step-00000015", "holds no model.safetensors"),
        ("RUN --scales 1,2 --cas", "go with one way of sampling"),
        ("RUN --json EMPTY", "is a folder that is there already; take another --json"),
        ("RUN --json EMPTY/index.html --out EMPTY", "is where --out writes its page"),
        ("RUN --json GIVEN/score.json", "is a file; take another --json"),
        ("RUN --out GIVEN", "is a file"),
        ("RUN --wrong", "--wrong"),
        ("EMPTY", "holds no image"),
    ],
)
def test_bad_input_is_one_sentence(words: str, message: str, given, file, trained, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    places = {"GIVEN": given, "FILE": file, "RUN": trained, "EMPTY": tmp_path / "empty"}
    line = []
    for word in words.split():
        first, _, rest = word.partition("/")
        line.append(str(places[first] / rest if first in places and rest else places.get(word, word)))
    fails(capsys, ["evaluate", *line], 2, message)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((200, 28, 28), np.uint8), None, "all alike"),
        (np.zeros((127, 28, 28), np.uint8), None, "127 images are too few"),
        (np.full((200, 28, 28), np.nan, np.float32), None, "must be uint8"),
        (np.zeros((200, 20, 28), np.uint8), None, "20 x 28 pixels"),
        (np.zeros((200, 28, 28, 3), np.uint8) + np.arange(3, dtype=np.uint8), None, "of 3 channels"),
        (np.zeros((200, 28, 28), np.uint8), np.zeros(199, np.int64), "200 images but 199 labels"),
        (np.random.default_rng(0).integers(0, 255, (200, 28, 28), np.uint8), np.full(200, 10), "10 to 10"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(images, labels, message, file, tmp_path, capsys) -> None:
    arrays = {"images": images} | ({} if labels is None else {"labels": labels})
    np.savez(tmp_path / "bad.npz", **arrays)
    fails(capsys, ["evaluate", str(tmp_path / "bad.npz"), "--data", str(file)], 2, message)


def test_a_target_that_is_not_there_leaves_no_folder(tmp_path, capsys) -> None:
    fails(capsys, ["evaluate", str(tmp_path / "nothing"), "--out", str(tmp_path / "report")], 2, "no such file")
    assert list(tmp_path.iterdir()) == []


def test_data_that_a_run_no_longer_finds_can_be_named(trained: Path, file: Path, tmp_path, monkeypatch, capsys) -> None:
    moved = tmp_path / "moved.npz"
    moved.write_bytes(file.read_bytes())
    from pocketdiff import checkpoint

    model = pocketdiff.load(trained)
    model.config = model.config.model_copy(update={"data": "gone.npz"})
    checkpoint.save_model(tmp_path / "m.safetensors", model)
    fails(capsys, ["evaluate", str(tmp_path / "m.safetensors")], 2, "say with --data where it is now")
    assert run(["evaluate", str(tmp_path / "m.safetensors"), "--data", str(moved), "--n", "128"]) == 0


def test_too_few_training_images_are_told_before_any_training(tiny_file: Path, given: Path, capsys) -> None:
    fails(capsys, ["evaluate", str(given), "--data", str(tiny_file)], 2, "the data have 40 training images")


def test_classifiers_that_cannot_be_written_are_not_trained(file: Path, given: Path, monkeypatch, capsys) -> None:
    fails(capsys, ["train-classifiers", "--data", str(file), "--out", str(given)], 2, "is a file; take another --out")


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    file: Path, given: Path, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(classifiers, "_LEAST", 1280)
    monkeypatch.setattr(classifiers, "_PASSES", 1)
    assert run(["evaluate", str(given), "--data", str(file)]) == 0
    assert "cannot be kept there" in capsys.readouterr().err


def test_labels_are_needed_to_learn_from(given: Path, file: Path, tmp_path, capsys) -> None:
    with np.load(given) as arrays:
        np.savez(tmp_path / "bare.npz", images=arrays["images"])
    fails(capsys, ["evaluate", str(tmp_path / "bare.npz"), "--data", str(file), "--cas"], 2, "holds no labels")


def test_what_is_there_is_not_overwritten(given: Path, file: Path, tmp_path, capsys) -> None:
    (tmp_path / "score.json").write_text("mine")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("mine")
    words = ["evaluate", str(given), "--data", str(file)]
    for more in (["--json", str(tmp_path / "score.json")], ["--out", str(tmp_path / "report")]):
        fails(capsys, words + more, 2, "add --overwrite")
    assert (tmp_path / "score.json").read_text() == (tmp_path / "report" / "index.html").read_text() == "mine"


def test_copies_are_warned_of(data: Dataset, file: Path, tmp_path, capsys) -> None:
    np.savez(tmp_path / "copies.npz", images=data.train.pixels[:150, 0].numpy(), labels=data.train.labels[:150].numpy())
    figures = scored(tmp_path / "copies.npz", file, tmp_path)
    assert figures["metrics"]["memorized_share"] == 1.0
    assert "100.00% of the images are as near to a training image" in capsys.readouterr().err


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_training_scores_as_it_goes(file: Path, trained: Path, tmp_path) -> None:
    out = tmp_path / "run"
    words = ["train", "--preset", "quick", "--data", str(file), "--out", str(out), *TINY.split()]
    assert run([*words, "--evaluate-every", "100", "--evaluate-images", "128"]) == 0
    scores = [line for line in lines(out) if "evaluation" in line]
    assert [line["seen"] for line in scores] == [100, 200, 300]
    assert (out / "pictures" / "scores.png").exists()
    last = scored(out, file, tmp_path, "--n", "128")["metrics"]
    for name, value in scores[-1]["evaluation"].items():
        if name != "n":
            assert value == last[name], name
    assert scores[0]["floor"]["frechet_train"] > 0
    weights = (folder / "model.safetensors" for folder in (out, trained))
    from safetensors.torch import load_file

    scored_run, plain_run = (load_file(path) for path in weights)
    assert all(torch.equal(plain_run[name], tensor) for name, tensor in scored_run.items()), "a score changes nothing"


def test_a_score_that_was_interrupted_is_owed(file: Path, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "run"
    words = ["train", "--preset", "quick", "--data", str(file), "--out", str(out), *TINY.split()]
    words += ["--evaluate-every", "100", "--evaluate-images", "128"]
    from pocketdiff.cli import scoring
    from pocketdiff.evaluate.score import score as real

    def interrupted(*given, **named) -> object:
        if len([line for line in lines(out) if "evaluation" in line]) == 1:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(scoring, "score", interrupted)
    assert run(words) == 130
    assert "stopped, and saved as" in capsys.readouterr().out
    monkeypatch.setattr(scoring, "score", real)
    assert run(words) == 0
    assert [line["seen"] for line in lines(out) if "evaluation" in line] == [100, 200, 300]
    steps = [line["step"] for line in lines(out)]
    assert steps == sorted(steps)


def test_too_few_images_for_scores_are_refused_before_the_folder_is_made(file, tiny_file, tmp_path, capsys) -> None:
    words = ["train", "--out", str(tmp_path / "run"), *TINY.split(), "--evaluate-every", "100", "--data"]
    fails(capsys, [*words, str(file), "--evaluate-images", "100"], 2, "--evaluate-images 100")
    fails(capsys, [*words, str(tiny_file)], 2, "the data have 40 training images")
    assert not (tmp_path / "run").exists()


def test_a_score_that_cannot_be_made_is_told_of_and_training_goes_on(file: Path, tmp_path, monkeypatch, capsys) -> None:
    from pocketdiff.cli import scoring
    from pocketdiff.evaluate import EvaluationError

    def fail(*given, **named) -> None:
        raise EvaluationError("the images are all alike")

    monkeypatch.setattr(scoring, "score", fail)
    out = tmp_path / "run"
    words = ["train", "--preset", "quick", "--data", str(file), "--out", str(out), *TINY.split()]
    assert run([*words, "--evaluate-every", "200", "--evaluate-images", "128"]) == 0
    assert capsys.readouterr().err.count("no score at") == 2
    scores = [line["evaluation"] for line in lines(out) if "evaluation" in line]
    assert scores == [{"n": 128, "fault": "the images are all alike"}] * 2
    assert (out / "model.safetensors").exists()
    assert not (out / "pictures" / "scores.png").exists()


def test_the_forecast_counts_scores(file: Path, trained: Path, tmp_path, monkeypatch) -> None:
    from pocketdiff.cli.records import MetricsLog
    from pocketdiff.cli.scoring import Scoring

    model = pocketdiff.load(trained)
    model.config = model.config.model_copy(update={"evaluate_every": 100, "evaluate_images": 150})
    scoring = Scoring(load_data(str(file)), model, MetricsLog(tmp_path / "metrics.jsonl", 100))
    assert [scoring.work(seen) for seen in (0, 100, 250, 300)] == [n * 150 * 2 * 2 for n in (3, 2, 1, 0)]
    assert scoring.due(80, 100)
    assert not scoring.due(100, 120)


@pytest.fixture(scope="module")
def unlabelled(file: Path, tmp_path_factory) -> Path:
    """A GAN that learned no labels."""
    out = tmp_path_factory.mktemp("runs") / "gan"
    words = "train --preset gan --generator 64 128 --discriminator 128 64 --images 4000 --batch 100 --generator-lr 1e-3"
    assert run([*words.split(), "--data", str(file), "--out", str(out)]) == 0
    return out


def test_a_model_without_labels_is_scored_like_images_without(unlabelled: Path, file: Path, tmp_path) -> None:
    figures = scored(unlabelled, file, tmp_path, "--n", "128", "--seed", "3", "--out", str(tmp_path / "report"))
    assert figures["metrics"]["accuracy"] is None
    assert figures["metrics"]["frechet_classes"] is None
    assert figures["per_class"] == {}
    frame = figures["frame"]
    assert frame["network_evaluations"] == 1
    assert frame.keys() & {"sampler", "steps", "scale", "schedule"} == set()
    assert "</html>" in (tmp_path / "report" / "index.html").read_text()
    images = pocketdiff.load(unlabelled)([10] * 128, range(3 << 32, (3 << 32) + 128))
    np.savez(tmp_path / "drawn.npz", images=images[:, 0].numpy())
    assert scored(tmp_path / "drawn.npz", file, tmp_path, "--seed", "3")["metrics"] == figures["metrics"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cas", "--cas: "),
        ("--scales 1,2", "--scales: goes with a diffusion model"),
        ("--steps 4", "--steps: goes with a diffusion model"),
        ("--sampler heun", "--sampler: goes with a diffusion model"),
    ],
)
def test_what_a_gan_cannot_do_is_refused(words: str, message: str, unlabelled: Path, capsys) -> None:
    fails(capsys, ["evaluate", str(unlabelled), *words.split()], 2, message)


def test_training_scores_a_model_without_labels(file: Path, tmp_path) -> None:
    words = "train --preset gan --generator 16 --discriminator 16 --images 200 --batch 20"
    words += " --evaluate-every 100 --evaluate-images 128"
    assert run([*words.split(), "--data", str(file), "--out", str(tmp_path / "run")]) == 0
    scores = [line["evaluation"] for line in lines(tmp_path / "run") if "evaluation" in line]
    assert len(scores) == 2
    assert all("frechet_train" in score and "accuracy" not in score for score in scores)
    assert (tmp_path / "run/pictures/scores.png").exists()
    assert (tmp_path / "run/summary.json").exists()
