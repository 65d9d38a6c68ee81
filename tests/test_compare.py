import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdiff.checkpoint import load
from pocketdiff.cli import compare, run
from pocketdiff.cli.flags import UsageError
from pocketdiff.data import Dataset
from tests.test_evaluate import cache, data, fails, file, scored, trained

__all__ = ["cache", "data", "file", "trained"]  # fixtures

GAN = "--images 300 --batch 20 --pictures-every 1"


@pytest.fixture(scope="module")
def gans(file: Path, tmp_path_factory) -> list[Path]:
    """A GAN that knows labels, and one that does not."""
    folder = tmp_path_factory.mktemp("gans")
    for preset, words in {"gan-conditional": "--widths 8 16", "gan": "--generator 16 32 --discriminator 32 16"}.items():
        out = str(folder / preset)
        assert run(["train", "--preset", preset, "--data", str(file), "--out", out, *GAN.split(), *words.split()]) == 0
    return [folder / "gan-conditional", folder / "gan"]


def compared(out: Path, *words: str) -> dict[str, Any]:
    assert run(["compare", *words, "--n", "150", "--out", str(out)]) == 0
    return json.loads((out / "comparison.json").read_text())


def test_figures_are_those_of_evaluate_and_costs_those_of_the_run(
    trained: Path, gans: list[Path], file: Path, tmp_path, capsys
) -> None:
    found = compared(tmp_path / "report", str(trained), *map(str, gans))
    said = capsys.readouterr().out
    assert list(found["runs"]) == ["tiny", "gan-conditional", "gan"]
    for path in (trained, *gans):
        alone = scored(path, file, tmp_path, "--n", "150")
        entry = found["runs"][path.name]
        for part in ("metrics", "intervals"):
            assert entry[part] == alone[part]
        assert found["floor"] == alone["floor"]
        summary = json.loads((path / "summary.json").read_text())
        for cost in ("parameters", "training_seconds", "images_seen", "images_per_second", "peak_memory_bytes"):
            assert entry["costs"][cost] == summary[cost]
        assert entry["costs"]["network_evaluations"] == alone["frame"]["network_evaluations"]
    assert found["runs"]["gan"]["metrics"]["accuracy"] is None
    assert found["runs"]["gan"]["costs"]["drawing_parameters"] < found["runs"]["gan"]["costs"]["parameters"]
    table = (tmp_path / "report" / "table.md").read_text()
    assert table in said
    assert "| label accuracy | " in table
    assert all(f"- {sentence}" in table for sentence in found["words"])
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<svg") == 2
    assert "<h3>Epoch 1</h3>" in page
    assert f"wrote {tmp_path / 'report' / 'index.html'}" in said


def test_scores_of_evaluate_can_be_compared_where_they_were_made_alike(
    trained: Path, gans: list[Path], file: Path, tmp_path, capsys
) -> None:
    for name, target, n in (("a", trained, "150"), ("b", gans[0], "150"), ("c", gans[0], "140")):
        (tmp_path / name).mkdir()
        scored(target, file, tmp_path / name, "--n", n)
        (tmp_path / name / "score.json").rename(tmp_path / f"{name}.json")
    a, b, c = (str(tmp_path / f"{name}.json") for name in "abc")
    found = compared(tmp_path / "report", a, b)
    assert list(found["runs"]) == ["a", "b"]
    assert found["runs"]["a"]["costs"]["training_seconds"] is None
    assert found["runs"]["a"]["costs"]["sampling_seconds"] > 0
    both = compared(tmp_path / "both", a, str(gans[0]))
    assert both["runs"]["gan-conditional"]["metrics"] == found["runs"]["b"]["metrics"]
    fails(capsys, ["compare", a, c], 2, "a and c differ in number of images (--n): 150 and 140")
    fails(capsys, ["compare", a, str(gans[0]), "--n", "160"], 2, "a and gan-conditional differ in number of images")
    fails(capsys, ["compare", a, str(gans[0]), "--n", "160", "--out", str(tmp_path / "none")], 2, "differ in")
    assert not (tmp_path / "none").exists()


def test_models_of_other_data_are_refused_by_name(trained: Path, data: Dataset, tmp_path, capsys) -> None:
    np.savez(tmp_path / "other.npz", images=data.train.pixels[:400, 0].numpy(), labels=data.train.labels[:400].numpy())
    other = str(tmp_path / "other")
    words = "--images 20 --batch 20 --widths 8 --preset gan-conditional"
    assert run(["train", "--data", str(tmp_path / "other.npz"), "--out", other, *words.split()]) == 0
    fails(capsys, ["compare", str(trained), other, "--n", "150"], 2, "tiny and other differ in data: ")


def test_runs_of_one_name_are_told_apart(gans: list[Path], tmp_path, monkeypatch, capsys) -> None:
    for place, run_folder in zip("ab", gans, strict=True):
        shutil.copytree(run_folder, tmp_path / place / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("a/run")
    found = compared(tmp_path / "report", "a/run", "b/run/model.safetensors")
    assert list(found["runs"]) == ["a/run", "b/run/model.safetensors"]
    assert found["runs"]["b/run/model.safetensors"]["training"] == {}
    fails(capsys, ["compare", "a/run", "link"], 2, "is named twice")
    assert compared(tmp_path / "one", "b/run/model.safetensors")["runs"].keys() == {"run"}


def test_spoilt_summaries_and_pictures_cost_nothing_but_themselves(gans: list[Path], tmp_path, capsys) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(gans[0], spoilt)
    (spoilt / "pictures" / "image_ep0.png").write_bytes(b"no picture")
    for content in (b"", b"[]", b'{"training_seconds": "soon"}', b'{"parameters": 1e999}', b'{"hardware": "x"}'):
        (spoilt / "summary.json").write_bytes(content)
        found = compared(tmp_path / f"report{len(content)}", str(spoilt))
        assert found["runs"]["spoilt"]["costs"]["training_seconds"] is None
        assert found["runs"]["spoilt"]["costs"]["trained_on"] is None
    assert "summary.json: is spoilt" in capsys.readouterr().err


def test_of_several_strengths_the_one_next_to_the_models_scale_is_shown(trained: Path) -> None:
    model = load(trained)
    assert model.config.sampling.scale == 2.4
    shown = compare._pictures(trained, model)
    assert {picture.alt for picture in shown.values()} == {"w = 2"}
    assert base64.b64decode(shown[0].data) == (trained / "pictures" / "image_ep0_w2.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare", "the following arguments are required: RUN"),
        ("compare {run} {run}/", "is named twice"),
        ("compare {run} nowhere", "nowhere: no such file"),
        ("compare nowhere.json", "nowhere.json: no such file"),
        ("compare {run}/metrics.jsonl.json", "no such file"),
        ("compare {run}/config.json", "config.json: is not what evaluate --json wrote"),
        ("compare {run} --n 5", "--n 5: a sound score needs 128 images or more"),
        ("compare {run} --seed -1", "--seed -1: must be from 0"),
        ("compare {run} --out {run}/summary.json", "is a file; take another --out"),
        ("compare {run} --data nowhere", "nowhere"),
        ("compare {run} --scales 1", "there is no '--scales'"),
    ],
)
def test_each_fault_is_one_sentence(words: str, message: str, gans: list[Path], capsys) -> None:
    fails(capsys, [word.format(run=gans[0]) for word in words.split()], 2, message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metrics", "intervals", "floor", "frame", "n", "accuracy"]), inner, max_size=5
        )
    ),
    max_leaves=8,
)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_score_or_one_sentence(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "score.json")
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"score.json: is not what evaluate --json wrote"):
            compare._read("score", path)


def test_what_is_there_is_not_replaced_unasked(gans: list[Path], tmp_path, capsys) -> None:
    (tmp_path / "table.md").write_text("mine")
    fails(capsys, ["compare", str(gans[0]), "--n", "150", "--out", str(tmp_path)], 2, "table.md: is there already")
    assert (tmp_path / "table.md").read_text() == "mine"
    assert run(["compare", str(gans[0]), "--n", "150", "--out", str(tmp_path), "--overwrite"]) == 0
    assert "mine" not in (tmp_path / "table.md").read_text()
