"""Records of evaluations: what is written is read back, and anything else is one error sentence."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation.comparison import compare
from pocketdiff.evaluation.distances import Estimate
from pocketdiff.evaluation.records import Metered, Metrics, ScoreFile, metered, printable, values_of

HARDWARE = {"cpu": "a processor", "threads": 2, "device": "cpu", "system": "a system"}
NETWORK = {"name": "features-b", "sha256": "b" * 64, "accuracy": 0.99}
SCORE: dict[str, Any] = {
    "metrics": {"frechet_train": 1.0, "accuracy": None},
    "intervals": {"frechet_train": [0.5, 1.5]},
    "real_baseline": {"frechet_train": 0.1},
    "controls": {"noise": {"frechet_train": 99.0}},
    "per_class": {
        "3": {
            "images": 9, "metrics": {"frechet_train": None, "accuracy": 0.5}, "intervals": {"accuracy": [0.1, 0.9]},
            "read_as": {"3": 5, "4": 4}, "real_baseline": {},
        }
    },
    "provenance": {
        "target": "a run", "n": 1000, "seed": 0, "data": "mnist", "data_sha256": "a" * 64, "train_images": 60000,
        "test_images": 10000, "feature_network": NETWORK, "label_network": NETWORK, "k": 5, "compared_with": 1000,
        "baseline_images": 1000, "seconds": 9.0, "hardware": HARDWARE,
        "versions": {"python": "3", "pocketdiff": "0", "torch": "2", "numpy": "2"},
        "drawing": {"how": "euler", "sampling": {"nfe": 1.0, "steps": 2}, "seconds": 3.0, "hardware": HARDWARE},
    },
}  # fmt: skip


def read(content: bytes | str) -> ScoreFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "score.json")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return ScoreFile.read(path)


def changed(place: str, value: object) -> dict[str, Any]:
    """The score with another value at a place such as ``provenance.n``."""
    score = json.loads(json.dumps(SCORE))
    *parents, last = place.split(".")
    part = score
    for key in parents:
        part = part[key]
    part[last] = value
    return score


def test_a_score_file_is_read_as_it_was_written() -> None:
    score = ScoreFile.model_validate(SCORE)
    assert read(score.model_dump_json()) == score
    assert read(json.dumps(score.model_dump(mode="json"), allow_nan=False)) == score
    assert score.estimate("frechet_train") == Estimate(1.0, 0.5, 1.5)
    assert score.estimate("accuracy") is None
    assert score.estimate("unknown") is None
    assert score.per_class["3"].estimate("accuracy") == Estimate(0.5, 0.1, 0.9)


NUMBERS = st.floats(-1e6, 1e6)


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L"]), min_size=1), st.none() | st.lists(NUMBERS, min_size=3, max_size=3)
    )
)
def test_estimates_survive_the_record(values: dict[str, list[float] | None]) -> None:
    metrics: Metrics = dict.fromkeys(values)
    for key, three in values.items():
        if three is not None:
            low, value, high = sorted(three)
            metrics[key] = Estimate(value, low, high)
    record = Metered.model_validate_json(Metered(**metered(metrics)).model_dump_json())
    assert {key: record.estimate(key) for key in metrics} == metrics
    assert values_of(metrics) == record.metrics


HOSTILE = {
    "metrics.frechet_train": [float("nan"), float("inf"), 10**400, 2.0, 0.4, "near", [1.0], {}],
    "metrics.recall": [0.5],
    "metrics": [[], None, {"a\x1b[2J": None}],
    "intervals.frechet_train": [[0.5], [1.5, 0.5], [0.5, 1.5, 2.5], [float("-inf"), 1.5], ["a", "b"], None, 1.0],
    "intervals": [{}, None],
    "real_baseline.frechet_train": [float("nan"), "x"],
    "controls": [{"a\nb": {}}, {"noise": 3}],
    "per_class.3.images": [-1, 1.5, "many"],
    "per_class.3.metrics.accuracy": [0.95],
    "per_class.3.read_as": [{"3\u202e": 1}, {"3": -1}],
    "provenance.n": [0, -5, 1.5, None, 10**400, float("inf")],
    "provenance.seed": [-1, None],
    "provenance.target": ["a\x1b[31mrun", "two\nlines", 7, None],
    "provenance.data": ["\x00"],
    "provenance.data_sha256": ["a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n", None],
    "provenance.feature_network": [{}, None, {**NETWORK, "sha256": "short"}, {**NETWORK, "name": "\x1b"}],
    "provenance.baseline_images": [-1, 0.5],
    "provenance.seconds": [-1.0, float("inf")],
    "provenance.hardware.cpu": ["\x07", None],
    "provenance.drawing.how": ["\x1b]0;title\x07"],
    "provenance.drawing.seconds": [-1.0, float("nan")],
    "provenance.drawing.sampling.nfe": [float("inf"), float("nan"), "many"],
    "provenance.drawing.sampling.scale": [float("inf")],
    "frame": [{}],
    "provenance.more": [1],
}


@pytest.mark.parametrize("place", HOSTILE)
def test_a_hostile_score_file_is_one_error_sentence(place: str) -> None:
    for value in HOSTILE[place]:  # type: ignore[attr-defined]
        with pytest.raises(
            EvaluationError, match=r"score.json: is not what evaluate --json writes for one model"
        ) as caught:
            read(json.dumps(changed(place, value)))
        assert str(caught.value).isprintable(), (place, value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("gone", [*SCORE, *(f"provenance.{key}" for key in SCORE["provenance"])])
def test_a_missing_field_is_named(gone: str) -> None:
    score = json.loads(json.dumps(SCORE))
    *parents, last = gone.split(".")
    (score[parents[0]] if parents else score).pop(last)
    with pytest.raises(EvaluationError, match=f"{gone}: Field required"):
        read(json.dumps(score))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metrics", "intervals", "real_baseline", "provenance", "n", "accuracy"]), inner, max_size=5
        )
    ),
    max_leaves=8,
)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_score_or_one_error_sentence(content: bytes) -> None:
    with pytest.raises(EvaluationError, match=r"score.json: is not what evaluate --json writes") as caught:
        read(content)
    assert str(caught.value).isprintable()


PLACES = [
    tuple(place.split("."))
    for place in [
        *HOSTILE, *SCORE, "metrics.accuracy", "intervals.accuracy", "per_class.3", "per_class.3.intervals", "verdict",
        "provenance.k", "provenance.train_images", "provenance.drawing", "provenance.drawing.sampling",
        "provenance.drawing.sampling.steps", "provenance.label_network.accuracy", "provenance.label_network.name",
    ]
]  # fmt: skip
HUGE = st.sampled_from([1e300, -1e300, 1.7e308, 5e-324, 1e15, 10**30, 2**63, 0, -1, 0.5, "\x1b[2J", "<b>|$x_$", [], {}])
VALUES = HUGE | JSON | st.lists(st.floats(allow_nan=True), min_size=2, max_size=2) | st.just("delete")


TRIPLES = st.lists(st.floats(-1e308, 1e308) | HUGE.filter(lambda x: isinstance(x, float)), min_size=3, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), max_size=3), st.none() | TRIPLES)
def test_scores_with_any_changes_are_compared_or_refused_in_one_sentence(
    changes: list[tuple[tuple[str, ...], Any]], estimate: list[float] | None
) -> None:
    score = json.loads(json.dumps(SCORE))
    if estimate is not None:
        low, value, high = sorted(estimate)
        score["metrics"]["frechet_train"] = value
        score["intervals"]["frechet_train"] = [low, high]
    for (*parents, last), value in changes:
        part: Any = score
        for key in parents:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[last] = value
            if value == "delete":
                del part[last]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, "first.json"), Path(folder, "changed.json")]
        for path, content in zip(paths, (SCORE, score), strict=True):
            path.write_text(json.dumps(content))
        try:
            found = compare(paths)
        except EvaluationError as error:
            said = str(error)
            found = None
    if found is None:
        assert said.isprintable()
        return
    json.dumps(found.json(), allow_nan=False)
    text, page = found.table(), found.page()
    assert all(line.isprintable() for line in text.splitlines())
    assert not re.search(r"\b(nan|inf)\b", page + text)
    assert "</html>" in page


def test_nested_json_is_refused() -> None:
    with pytest.raises(EvaluationError, match="is not what evaluate"):
        read(b"[" * 100_000)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none.json: no such file; give a run"):
        ScoreFile.read(tmp_path / "none.json")
    with pytest.raises(EvaluationError, match="cannot be read"):
        ScoreFile.read(tmp_path)


def test_a_value_needs_an_interval_that_contains_it() -> None:
    for low, high in ((0.0, 0.5), (1.5, 2.0), (2.0, 1.0)):
        with pytest.raises(ValidationError, match="the value of x is not inside an interval"):
            Metered(metrics={"x": 1.0}, intervals={"x": (low, high)})
    with pytest.raises(ValidationError, match="is not inside an interval"):
        Metered(metrics={"x": 1.0}, intervals={})
    with pytest.raises(ValidationError, match="is not inside an interval"):
        Metered(metrics={"x": 0.5}, intervals={})


@given(st.text())
def test_cleaned_text_is_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)
    assert printable(text) == text or not text.isprintable()
