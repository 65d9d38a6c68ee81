"""``pocketdiff sample`` and ``pocketdiff info``."""

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image, ImageSequence

import pocketdiff
from pocketdiff import shipped
from pocketdiff.cli import run
from pocketdiff.data import load_data
from pocketdiff.data.labels import parse_labels
from pocketdiff.errors import RequestError
from pocketdiff.model import ImageModel
from tests.cli.helpers import fails, train_words


def test_sample_needs_only_the_model_file(finished: Path, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "moved.safetensors").write_bytes((finished / "model.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(["sample", "moved.safetensors", "--labels", "3,1,4,1,5", "--seed", "7"]) == 0
    said = capsys.readouterr().out
    assert said == "wrote samples.png: 5 images, dpmpp_2m, 2 steps, scale 1.5 (w = 0.5), seeds 7 to 11\n"
    with Image.open("samples.png") as picture:
        assert picture.size == (152 * 6, 32 * 6 + 20)  # One line of headings.
    assert run(["sample", "moved.safetensors", "--labels", "3,1", "--zoom", "4", "--plain", "--out", "plain.png"]) == 0
    with Image.open("plain.png") as picture:
        assert picture.size == (62 * 4, 32 * 4)


def test_sample_without_a_target_draws_with_the_model_of_the_package(tmp_path, monkeypatch, capsys) -> None:
    """From any folder, and with the target before or after the flags."""
    monkeypatch.chdir(tmp_path)
    for number, words in enumerate(
        ["--labels 3,1", "mnist --labels 3,1", "--labels 3,1 mnist", "--labels 3,1 --plain"]
    ):
        assert run(["sample", *words.split(), "--out", f"{number}.png"]) == 0
    assert capsys.readouterr().out.startswith("wrote 0.png: 2 images, ")
    first, *others = (Path(f"{number}.png").read_bytes() for number in range(4))
    assert [other == first for other in others] == [True, True, False]


def test_info_shows_where_a_model_of_the_package_comes_from(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["info", "mnist"]) == 0
    out, known = capsys.readouterr().out, shipped.about(shipped.find("mnist"))
    for training in known.training:
        assert f"{training.summary.training_seconds:.0f} s on {training.summary.hardware}" in out
        assert all(f"{command}\n" in out for command in training.commands)
    assert f"\nscores      of {known.scores.n:,} images, seed {known.scores.seed}, by features-" in out
    assert f"label accuracy {known.scores.metrics['accuracy']:.2%} (real images 99." in out
    assert f"\nsha256      {known.sha256}\n" in out


def test_existing_files_are_not_overwritten(finished: Path, tmp_path, capsys) -> None:
    for name in ("a.png", "a.npz", "a.gif"):
        path = tmp_path / name
        words = ["sample", str(finished), "--labels", "0", "--out", str(path)]
        assert run(words) == 0
        before = path.read_bytes()
        fails(capsys, [*words, "--seed", "9"], 2, f"{path}: exists already; take another --out, or add --overwrite")
        assert path.read_bytes() == before
        assert run([*words, "--overwrite", "--seed", "9"]) == 0
        assert path.read_bytes() != before
    (tmp_path / "folder").mkdir()
    words = ["sample", str(finished), "--out", str(tmp_path / "folder"), "--overwrite"]
    fails(capsys, words, 2, "is an existing folder; take another --out")
    fails(capsys, ["sample", str(finished), "--out", str(tmp_path / "a.png" / "b.png")], 2, "a.png: is a file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seed -1", "--seed -1: "),
        (f"--seed {2**63}", f"--seed {2**63}: "),
        ("--labels ,", "--labels ,: there is no class ''; the classes are 0, 1, 2"),
        ("--schedule.kind discrete_beta --schedule.timesteps 2 --steps 3", "has only 2"),
        ("--rho 3 --schedule.kind flow", "--schedule.rho 3: needs --schedule.kind karras; here it is flow"),
        ("--options eta=1", "the sampler dpmpp_2m has no option 'eta'"),
        ("--interval 3", "--interval 3: "),
        ("--guide nowhere", "nowhere: no such file"),
        ("--out b.gif --per-label 26", "a GIF shows at most 256 images, not 260"),
        ("--out b.gif --per-label 1000000000", "a GIF shows at most 256 images, not 10,000,000,000"),
        ("--out b.gif --per-label 20 --zoom 32", "200 images need 6.0 GiB of memory in one file, over 2 GiB"),
        ("--out b.npz --per-label 1000000000", "--out b.npz: 10,000,000,000 images need 7,301.6 GiB of memory in one"),
        ("--out b.png --per-label 1000000000", "over 2 GiB; draw fewer, or into a folder, which needs none"),
    ],
)
def test_a_request_that_cannot_be_met_writes_nothing(words: str, message: str, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["sample", str(finished), *words.split()], 2, message)
    assert list(tmp_path.iterdir()) == []


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


def test_a_folder_of_any_number_of_images_is_begun_at_once(finished: Path, tmp_path, monkeypatch) -> None:
    """It is written chunk by chunk."""
    asked: list[tuple[list[int], range]] = []

    def stop(_model: object, labels: list[int], seeds: range) -> None:
        asked.append((labels, seeds))
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageModel, "__call__", stop)
    assert run(["sample", str(finished), "--per-label", str(10**9), "--out", str(tmp_path / "folder")]) == 130
    assert asked == [([i % 10 for i in range(256)], range(256))]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_found_before_drawing(finished: Path, tmp_path, monkeypatch, capsys):
    def refuse(dir: Path) -> None:  # noqa: A002
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pocketdiff.cli.console.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr(ImageModel, "__call__", lambda *_: pytest.fail("images were drawn"))
    for name in ("x.png", "folder", "new/folder"):
        words = ["sample", str(finished), "--out", str(tmp_path / name)]
        fails(capsys, words, 2, f"{tmp_path}: the folder cannot be written to (Read-only file system); take another")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has such a folder")
def test_a_folder_that_only_an_attempt_finds_unwritable_is_refused(finished: Path, capsys) -> None:
    """Where root asks, access is granted."""
    fails(capsys, ["sample", str(finished), "--out", "/proc/x.png"], 2, "/proc: the folder cannot be written to")


def test_a_gif_shows_about_twenty_frames_and_ends_with_the_images(finished: Path, tmp_path) -> None:
    words = ["sample", str(finished), "--labels", "0-2", "--out"]
    for steps, frames in ((5, 6), (60, 25)):
        assert run([*words, str(tmp_path / f"{steps}.gif"), "--steps", str(steps)]) == 0
        with Image.open(tmp_path / f"{steps}.gif") as gif:
            shown = [np.asarray(frame.convert("L"), dtype=int) for frame in ImageSequence.Iterator(gif)]
        assert len(shown) == frames
    assert run([*words, str(tmp_path / "a.png"), "--steps", "60"]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        drawn = np.asarray(picture, dtype=int)
    assert shown[-1].shape == (drawn.shape[0] + 20, drawn.shape[1])  # A line with the step and the noise level.
    assert shown[-1][:20].min() < 50
    assert abs(drawn - shown[-1][20:]).max() <= 9, "a GIF has fewer greys"


def test_guidance_settings_change_the_images_and_the_words(finished: Path, tmp_path, capsys) -> None:
    drawn = {}
    for name, words in {
        "plain": "",
        "everywhere": "--interval 0:1000",
        "interval": "--interval 0.1:1",
        "guide": f"--guide {finished}",
        "off": "--scale 1",
    }.items():
        out = tmp_path / f"{name}.npz"
        assert run(["sample", str(finished), "--labels", "3", "--steps", "6", "--out", str(out), *words.split()]) == 0
        drawn[name] = np.load(out)["images"].astype(int)
    said = capsys.readouterr().out
    assert "scale 1.5 (w = 0.5), guidance from 0.1 to 1, seeds" in said
    assert f"scale 1.5 (w = 0.5), guided by {finished}, seeds" in said
    assert np.array_equal(drawn["everywhere"], drawn["plain"])
    assert not np.array_equal(drawn["interval"], drawn["plain"])
    assert abs(drawn["guide"] - drawn["off"]).max() <= 1, "a model that guides itself changes nothing"
    assert not np.array_equal(drawn["off"], drawn["plain"])


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
    with pytest.raises(RequestError, match="no class '0-2'"):
        parse_labels("0-2", letters)


@pytest.mark.parametrize("text", ["", ",", "10", "-1", "0-10", "5-3", "cat", "1.5", "²"])
def test_labels_that_do_not_exist_are_named(text: str) -> None:
    with pytest.raises(RequestError, match=r"^there is no class"):
        parse_labels(text, tuple("0123456789"))


@given(st.text(alphabet="0123456789-,ab ", max_size=12))
def test_any_list_of_labels_gives_labels_or_a_sentence(text: str) -> None:
    classes = ("a", "b", "a-b", "c")
    try:
        labels = parse_labels(text, classes)
    except RequestError:
        return
    assert labels
    assert all(0 <= label < len(classes) for label in labels)


def test_info_shows_what_a_model_is(finished: Path, capsys) -> None:
    assert run(["info", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "\nclasses     10: 0, 1, 2" in out
    assert "draws by    dpmpp_2m, 2 steps, scale 1.5 (w = 0.5), 4 network evaluations per image" in out
    assert '"muon_lr": 0.015' in out
