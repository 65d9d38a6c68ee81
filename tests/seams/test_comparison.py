"""Comparisons: differences and their intervals, Pareto fronts, costs, and what is refused; then through the library."""

import base64
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from pocketdiff.checkpoint import load
from pocketdiff.config import SamplingConfig
from pocketdiff.data import Dataset, load_data
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation import Comparison, Sample, ScoreFile, classifiers, compare, evaluate
from pocketdiff.evaluation.classifiers import Classifiers, find_or_train_classifiers
from pocketdiff.evaluation.comparison import (
    Comparable,
    Entry,
    _common_scale,
    check_alike,
    difference,
    is_significant,
    pareto_front,
)
from pocketdiff.evaluation.distances import Estimate, share_estimate
from pocketdiff.evaluation.pages import Picture, image_grid
from pocketdiff.evaluation.records import ComparisonFile, metered
from pocketdiff.evaluation.score import METRICS, Metric
from pocketdiff.folder import RunFolder
from pocketdiff.methods import PRESETS
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.records import Summary
from pocketdiff.run import Run

HARDWARE = {"cpu": "a processor", "threads": 2, "device": "cpu", "system": "a system"}
VERSIONS = {"python": "3", "pocketdiff": "0", "torch": "2", "numpy": "2"}
PROVENANCE: dict[str, Any] = {
    "target": "a run", "n": 1000, "seed": 0, "data": "mnist", "data_sha256": "a" * 64, "train_images": 60000,
    "test_images": 10000, "feature_network": {"name": "features-b", "sha256": "b" * 64, "accuracy": 0.99},
    "label_network": {"name": "reader-c", "sha256": "c" * 64, "accuracy": 0.99}, "k": 5, "compared_with": 1000,
    "baseline_images": 1000, "seconds": 9.0, "hardware": HARDWARE, "versions": VERSIONS,
}  # fmt: skip
SUMMARY = Summary.model_validate({
    "steps": 9, "parameters": 5000, "training_seconds": 60.0, "other_seconds": 1.0, "images_seen": 900,
    "images_per_second": 15.0, "peak_memory_bytes": 5 * 10**8, "peak_gpu_memory_bytes": None, "hardware": HARDWARE,
    "versions": VERSIONS, "commit": None,
})  # fmt: skip


def entry(
    name: str, distance: float, seconds: float | None = 60.0, drawing: float | None = 1.0,
    accuracy: float | None = 0.9, device: str = "cpu", **changes: object,
) -> Entry:  # fmt: skip
    """An entry with made-up scores. ``drawing`` is the time for all images."""
    metrics = {
        "frechet_train": Estimate(distance, distance - 0.5, distance + 0.5),
        "frechet_classes": Estimate(2 * distance, 2 * distance - 0.5, 2 * distance + 0.5),
        "kernel_train": Estimate(distance / 100, distance / 100 - 1e-3, distance / 100 + 1e-3),
        "accuracy": None if accuracy is None else Estimate(accuracy, accuracy - 0.01, accuracy + 0.01),
        "precision": Estimate(0.8, 0.75, 0.85),
        "recall": Estimate(0.7, 0.65, 0.75),
        "memorized_share": Estimate(0.0, 0.0, 0.004),
    }
    machine = {**HARDWARE, "device": device}
    drawn = {"how": "euler, 2 steps", "sampling": {"nfe": 1}, "seconds": drawing, "hardware": machine}
    provenance = {**PROVENANCE, "drawing": None if drawing is None else drawn, **changes}
    score = ScoreFile.model_validate({
        **metered(metrics), "real_baseline": {"frechet_train": 0.1}, "controls": {}, "per_class": {},
        "provenance": provenance,
    })  # fmt: skip
    training = SUMMARY.model_copy(update={"training_seconds": seconds}) if seconds is not None else None
    return Entry(name, score, training)


def never(what: str, _done: int, _total: int) -> None:
    """A progress that no work may reach."""
    raise AssertionError(what)


# Differences


def test_a_difference_of_equal_intervals_is_wider_by_the_root_of_two() -> None:
    gap = difference(Estimate(5.0, 4.0, 6.0), Estimate(2.0, 1.0, 3.0))
    assert gap.value == 3.0
    assert gap.low == pytest.approx(3 - math.sqrt(2))
    assert gap.high == pytest.approx(3 + math.sqrt(2))


ESTIMATES = st.tuples(st.floats(-10, 10), st.floats(0, 3), st.floats(0, 3)).map(
    lambda x: Estimate(x[0], x[0] - x[1], x[0] + x[2])
)


@given(ESTIMATES, ESTIMATES)
def test_the_reverse_difference_is_the_mirror_image(a: Estimate, b: Estimate) -> None:
    there, back = difference(a, b), difference(b, a)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.low <= there.value <= there.high
    assert is_significant(there) == is_significant(back)


@given(ESTIMATES)
def test_nothing_differs_from_itself(a: Estimate) -> None:
    assert not is_significant(difference(a, a))


def test_five_percent_of_equal_pairs_seem_to_differ_and_nearly_all_unequal_ones() -> None:
    drawn = np.random.default_rng(0)

    def share(n: int, p: float) -> Estimate:
        return share_estimate(torch.from_numpy(drawn.random(n) < p))

    equal = np.mean([is_significant(difference(share(1000, 0.9), share(1000, 0.9))) for _ in range(2000)])
    unequal = np.mean([is_significant(difference(share(1000, 0.9), share(1000, 0.97))) for _ in range(200)])
    assert 0.03 < equal < 0.07
    assert unequal > 0.99


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8, unique=True))
def test_the_pareto_front_is_what_nothing_beats(places: list[tuple[int, int]]) -> None:
    points = {f"{x} {y}": (float(x), Estimate(float(y), 0.0, 9.0)) for x, y in places}
    beaten = {f"{x} {y}" for x, y in places if any(u <= x and v <= y and (u, v) != (x, y) for u, v in places)}
    assert set(pareto_front(points)) == points.keys() - beaten
    assert pareto_front(points) == pareto_front(dict(reversed(points.items())))


# Scores that were not made alike


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": 2000}, r"a and b differ in number of images \(n\): 1,000 and 2,000"),
        ({"data_sha256": "d" * 64}, "a and b differ in data: aaaaaaaa and dddddddd"),
        ({"feature_network": {"name": "f", "sha256": "d" * 64, "accuracy": 1}}, "differ in feature network"),
        ({"label_network": {"name": "r", "sha256": "d" * 64, "accuracy": 1}}, "differ in label network"),
        ({"k": 3}, "differ in neighbourhood size"),
    ],
)
def test_scores_that_were_not_made_alike_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EvaluationError, match=said) as caught:
        Comparison([entry("a", 1.0), entry("b", 2.0, **changes)])
    assert str(caught.value).endswith("were not made alike cannot be compared")


def test_only_known_conditions_are_compared() -> None:
    check_alike({"a": {"data": "x", "n": 5}, "b": {"data": "x"}, "c": {"data": "x", "n": 6}})
    with pytest.raises(EvaluationError, match="b and c differ in n: 5 and 6"):
        check_alike({"a": {}, "b": {"n": 5}, "c": {"n": 6}})


# Tables, notes, pages


def test_the_table_of_differences_marks_the_significant_ones() -> None:
    comparison = Comparison([entry("near", 1.0), entry("nearer", 0.8), entry("far", 9.0, accuracy=None)])
    rows = {(row.metric, row.runs): row for row in comparison.record.differences}
    distances = {runs: row for (metric, runs), row in rows.items() if metric == "frechet_train"}
    assert {runs: row.significant for runs, row in distances.items()} == {
        ("near", "nearer"): False, ("near", "far"): True, ("nearer", "far"): True
    }  # fmt: skip
    assert distances["near", "far"].difference == -8.0
    assert ("accuracy", ("near", "far")) not in rows
    table = comparison.table()
    assert "| Fréchet distance to the training split | near - far | -8 | -8.71 to -7.29 | * |" in table
    assert re.search(r"\| Fréchet distance to the training split \| near - nearer \| \+0.2 \| [^|]*\| \|\n", table)
    assert "| label accuracy | near - nearer | +0.00% | -1.41% to +1.41% | |" in table


def test_a_model_has_one_colour_in_all_plots_and_in_the_table() -> None:
    page = Comparison([entry("a", 9.0, 10.0, 5.0), entry("b", 1.0, 90.0, 1.0), entry("c", 5.0, None, 3.0)]).page()
    table, plots = page.split("<svg", 1)[0], page.split("<svg")[1:]
    assert re.findall(r'class="dot" style="background: (#\w+)"></span> (\w)<', table) == [
        ("#1f77b4", "a"), ("#ff7f0e", "b"), ("#2ca02c", "c")
    ]  # fmt: skip
    markers = [re.findall(r'<use [^>]*style="fill: (#\w+)[^>]*"/>', plot) for plot in plots]
    shown = [[colour for colour in found if colour in {"#1f77b4", "#ff7f0e", "#2ca02c"}] for found in markers]
    assert [list(dict.fromkeys(found)) for found in shown] == [
        ["#1f77b4", "#ff7f0e"],
        ["#1f77b4", "#ff7f0e", "#2ca02c"],
    ]


def test_every_metric_has_a_sentence_in_table_json_and_page() -> None:
    comparison = Comparison([entry("a", 1.0), entry("b", 9.0)])
    found = comparison.json()["how_to_read"]
    assert list(found) == [key for key, metric in METRICS.items() if metric.compared and key[:3] != "cas"]
    for key, sentence in found.items():
        assert sentence == METRICS[key].reading()
        assert f"- {sentence}\n" in comparison.table()
        assert METRICS[key].meaning in comparison.page()


def test_a_note_says_where_real_images_are_fewer() -> None:
    notes = Comparison([entry("a", 1.0, baseline_images=200), entry("b", 2.0)]).record.notes
    assert any(note.startswith("The test split has only 200 images") for note in notes)


def test_notes_name_the_pareto_fronts_and_different_machines() -> None:
    quick, good, poor = entry("quick", 9.0, 10.0), entry("good", 1.0, 100.0), entry("poor", 9.5, 200.0, drawing=0.1)
    comparison = Comparison([quick, good, poor])
    notes = comparison.record.notes
    assert "Pareto front of distance and seconds of training (no other run is better in both): quick, good." in notes
    assert comparison.json()["pareto_fronts"] == {
        "training_seconds": ["quick", "good"], "sampling_seconds": ["poor", "good"]
    }  # fmt: skip
    assert not any("different machines" in note for note in notes)
    gpu = SUMMARY.hardware.model_copy(update={"device": "a GPU"})
    elsewhere = replace(entry("x", 1.0), training=SUMMARY.model_copy(update={"hardware": gpu}))
    said = "The runs were trained on different machines, so these times say little: a GPU, 2 threads; a processor"
    assert any(note.startswith(said) for note in Comparison([quick, elsewhere]).record.notes)
    slower, faster = (
        replace(entry(name, 1.0), training=SUMMARY.model_copy(update={"fp32_peak_flops": peak}))
        for name, peak in (("slow", 2.0e11), ("fast", 2.4e11))
    )
    (said,) = (note for note in Comparison([slower, faster, elsewhere]).record.notes if "changed" in note)
    assert said == (
        "The speed of a processor, 2 threads changed between the runs, so compare their times with care: "
        "200 GFLOP/s at the end of slow, 240 at the end of fast."
    )
    nearly = replace(faster, training=SUMMARY.model_copy(update={"fp32_peak_flops": 2.2e11}))
    assert not any("changed" in note for note in Comparison([slower, nearly]).record.notes)
    drawn = Comparison([entry("a", 1.0), entry("b", 2.0, device="a GPU")])
    assert any(note.startswith("The runs were drawn on different machines") for note in drawn.record.notes)


def test_the_last_note_says_what_the_intervals_do_not_cover() -> None:
    assert "not another training seed" in Comparison([entry("a", 1.0), entry("b", 9.0)]).record.notes[-1]
    alone = Comparison([entry("a", 1.0)])
    assert alone.record.notes == []
    assert "<h2>Differences</h2>" not in alone.page()
    assert "significant" not in alone.table()


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_shown() -> None:
    comparison = Comparison([entry("a$b_$c", 0.0, drawing=0.0), entry("<b> & c", 2.0), entry("d|e", 3.0)])
    assert "a$b_$c" in comparison.page()
    assert "<b>" not in comparison.page()
    cells = [line for line in comparison.table().splitlines() if line.startswith("|")]
    assert cells[0] == r"| | a$b_$c | <b> & c | d\|e | real images |"
    assert not any("d|e" in line for line in cells)


def test_the_table_is_markdown_with_one_cell_per_run() -> None:
    text = Comparison([entry("a", 1.0), entry("b", 2.0, accuracy=None, seconds=None)]).table()
    rows = [line for line in text.partition("\n\n")[0].splitlines() if line]
    assert {line.count("|") for line in rows} == {5}
    assert rows[0] == "| | a | b | real images |"
    assert rows[1] == "|---|---|---|---|"
    assert "| label accuracy | 90.00% (89.00% to 91.00%) | - | |" in rows
    assert "| seconds to draw 1,000 images | 1 | 1 | |" in rows
    assert "| trained weights | 5,000 | | |" in rows
    assert "| peak memory of training | 500 MB | | |" in rows
    assert not any("GPU" in row for row in rows)


def test_the_json_has_every_score_cost_and_difference() -> None:
    comparison = Comparison([entry("a", 1.0, drawing=4.0, n=2000), entry("b", 2.0, n=2000)])
    found = json.loads(json.dumps(comparison.json(), allow_nan=False))
    assert ComparisonFile.model_validate(found) == comparison.record
    assert found["runs"]["a"]["metrics"]["frechet_train"] == 1.0
    assert found["runs"]["a"]["intervals"]["frechet_train"] == [0.5, 1.5]
    assert found["runs"]["a"]["costs"]["sampling_seconds"] == 2.0
    assert found["runs"]["a"]["costs"]["trained_on"] == "a processor, 2 threads"
    assert found["runs"]["a"]["training"]["images_seen"] == 900
    (gap,) = (row for row in found["differences"] if row["metric"] == "frechet_train")
    assert (gap["runs"], gap["difference"], gap["significant"]) == (["a", "b"], -1.0, True)


def test_the_page_is_self_contained_and_shows_pictures_of_equal_training(tiny_data: Dataset) -> None:
    grid = image_grid(Sample(tiny_data.train.pixels, tiny_data.train.labels), tiny_data.info, range(10), 1)
    pictures = {1000 * epoch: Picture(grid.data, "w = 0.5", 9) for epoch in range(1, 21)}
    first = replace(entry("<one>", 1.0, drawing=None), parameters=7, grid=grid, pictures=pictures)
    second = replace(first, name="two", pictures=dict.fromkeys((2600, 5000, 7000, 9000, 9900), pictures[1000]))
    third = entry("three", 3.0, seconds=None, drawing=None)
    page = Comparison([first, second, third], grid).page()
    assert re.findall("<h3>After about (.*) images</h3>", page) == ["2,600", "7,000", "9,900"]
    captions = re.findall("<figcaption>(.*), w = 0.5</figcaption>", page)
    assert captions == [
        "&lt;one&gt;, 3,000 images", "two, 2,600 images", "&lt;one&gt;, 7,000 images", "two, 7,000 images",
        "&lt;one&gt;, 10,000 images", "two, 9,900 images",
    ]  # fmt: skip
    assert "&lt;one&gt;" in page
    assert "<one>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 1  # The time for drawing is unknown.
    assert "real images</figcaption>" in page
    assert re.search(r"<dt>images seen</dt><dd>900</dd>", page)


@pytest.fixture
def contrast() -> Iterator[str]:
    """A metric from outside the package."""
    METRICS["contrast"] = Metric("contrast of the pixels", "their standard deviation", lambda m: None)
    yield "contrast"
    del METRICS["contrast"]


def test_a_metric_from_outside_is_compared(contrast: str) -> None:
    entries = []
    for name, value in (("a", 1.0), ("b", 5.0)):
        old = entry(name, 1.0)
        metrics, intervals = old.score.metrics | {contrast: value}, old.score.intervals | {contrast: (value, value)}
        entries.append(replace(old, score=old.score.model_copy(update={"metrics": metrics, "intervals": intervals})))
    comparison = Comparison(entries)
    assert "| contrast of the pixels | a - b | -4 | -4 to -4 | * |" in comparison.table()
    assert "contrast of the pixels" in comparison.page()
    assert comparison.json()["how_to_read"][contrast].startswith("Contrast of the pixels: their standard deviation")


# Through the library


@pytest.fixture(scope="module")
def file(mnist: Dataset, tmp_path_factory) -> Path:
    """A small data set with a test split."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    parts = {"images": mnist.train.pixels[:500, 0], "labels": mnist.train.labels[:500]}
    parts |= {"test_images": mnist.test.pixels[:200, 0], "test_labels": mnist.test.labels[:200]}
    np.savez(path, **{name: part.numpy() for name, part in parts.items()})  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def data(file: Path) -> Dataset:
    return load_data(str(file))


@pytest.fixture(scope="module")
def nets(mnist: Dataset) -> Classifiers:
    """MNIST's, which serve here for the small data set."""
    return find_or_train_classifiers(mnist)


@pytest.fixture(scope="module")
def runs(data: Dataset, tmp_path_factory) -> dict[str, Path]:
    """Finished runs of three methods."""
    folder = tmp_path_factory.mktemp("runs")
    small: dict[str, Any] = {"images": 300, "epochs": None, "batch": 20, "pictures_every": 1}
    net = {"kind": "unet", "widths": (8, 16), "blocks": 1, "embedding": 16}
    configs = {
        "tiny": DiffusionConfig.model_validate(
            small | {"net": net, "sampling": {"steps": 2, "scale": 2.4}, "guidance_strengths": (0.0, 0.5, 2.0)}
        ),
        "gan-conditional": PRESETS["gan-conditional"].model_copy(update=small),
        "gan": PRESETS["gan"].model_copy(update=small),
    }
    for name, config in configs.items():
        for _ in Run(config, data, folder / name):
            pass
    return {name: folder / name for name in configs}


def test_scores_are_those_of_evaluate_and_costs_those_of_the_run(
    runs: dict[str, Path], data: Dataset, nets: Classifiers
) -> None:
    comparison = compare(list(runs.values()), n=150, classifiers=nets)
    record = comparison.record
    assert list(record.runs) == list(runs)
    for name, path in runs.items():
        run, alone = record.runs[name], evaluate(load(path), data, n=150, classifiers=nets).record
        assert run.metrics == alone.metrics
        assert run.intervals == alone.intervals
        assert run.real_baseline == alone.real_baseline
        summary = Summary.model_validate_json(RunFolder(path).summary.read_bytes())
        assert run.training == summary
        for cost in ("parameters", "training_seconds", "images_seen", "images_per_second", "peak_memory_bytes"):
            assert run.costs[cost] == getattr(summary, cost)
        assert run.costs["nfe"] == alone.provenance.drawing.sampling.nfe
        assert run.provenance.target == str(path)
    assert record.runs["gan"].metrics["accuracy"] is None
    assert record.runs["gan"].costs["drawing_parameters"] == load(runs["gan"]).num_parameters
    assert comparison.page().count("<svg") == 2
    assert "<h3>After about 300 images</h3>" in comparison.page(), "the first epoch is incomplete"
    assert "<figcaption>tiny, 300 images, w = 2</figcaption>" in comparison.page()


def test_models_in_memory_scores_and_files_are_compared(
    runs: dict[str, Path], data: Dataset, nets: Classifiers, tmp_path: Path
) -> None:
    score = evaluate(load(runs["tiny"]), data, n=150, classifiers=nets).record
    (tmp_path / "a.json").write_text(score.model_dump_json())
    found = compare([tmp_path / "a.json", runs["gan"]], data, n=150, classifiers=nets).record
    assert list(found.runs) == ["a", "gan"]
    assert found.runs["a"].metrics == score.metrics
    assert found.runs["a"].costs["training_seconds"] is None
    assert isinstance(found.runs["a"].costs["sampling_seconds"], float)
    both: dict[str, Comparable] = {"score": score, "file": str(tmp_path / "a.json"), "memory": load(runs["tiny"])}
    same = compare(both, data, n=150, classifiers=nets).record
    assert same.runs["score"].metrics == same.runs["file"].metrics == same.runs["memory"].metrics
    assert same.runs["memory"].provenance.target == "memory"
    assert not any(row.significant for row in same.differences)
    assert list(compare([load(runs["tiny"]), tmp_path / "a.json"], data, n=150, classifiers=nets).record.runs) == [
        "model 1", "a"
    ]  # fmt: skip
    assert list(compare(str(tmp_path / "a.json")).record.runs) == ["a"]
    scores_alone = compare([tmp_path / "a.json"], progress=never).record
    assert scores_alone.runs["a"].metrics == score.metrics


def test_mismatches_are_refused_before_any_work(
    runs: dict[str, Path], data: Dataset, nets: Classifiers, tiny_data: Dataset
) -> None:
    score = evaluate(load(runs["gan"]), data, n=150, classifiers=nets).record
    models: dict[str, Comparable] = {"a": score, "b": load(runs["gan"])}
    with pytest.raises(EvaluationError, match=r"a and b differ in number of images \(n\): 150 and 160"):
        compare(models, data, n=160, classifiers=nets, progress=never)
    swapped = Classifiers(nets.reader, nets.features)
    with pytest.raises(EvaluationError, match="a and b differ in feature network"):
        compare(models, data, n=150, classifiers=swapped, progress=never)
    other = load(runs["gan"])
    other.info = data.info.model_copy(update={"sha256": "d" * 64})
    with pytest.raises(EvaluationError, match="tiny and other differ in data: "):
        compare({"tiny": load(runs["tiny"]), "other": other}, data, n=150, progress=never)
    with pytest.raises(EvaluationError, match="b: was not trained on these data"):
        compare({"b": load(runs["gan"])}, tiny_data, n=150, progress=never)


def test_runs_with_the_same_name_are_told_apart(
    runs: dict[str, Path], nets: Classifiers, tmp_path, monkeypatch
) -> None:
    for place, name in {"a": "gan", "b": "gan-conditional"}.items():
        shutil.copytree(runs[name], tmp_path / place / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("a/run")
    found = compare(["a/run", "b/run/model.safetensors"], n=150, classifiers=nets).record
    assert list(found.runs) == ["a/run", "b/run/model.safetensors"]
    assert found.runs["b/run/model.safetensors"].training is None
    with pytest.raises(EvaluationError, match="is named twice; name each run once"):
        compare(["a/run", "link"], n=150)
    assert list(compare(["b/run/model.safetensors"], n=150, classifiers=nets).record.runs) == ["run"]


def test_damaged_summaries_and_pictures_cost_nothing_else(
    runs: dict[str, Path], data: Dataset, nets: Classifiers, tmp_path: Path, caplog
) -> None:
    folder = RunFolder(tmp_path / "damaged")
    shutil.copytree(runs["gan"], folder.path)
    folder.image(0, "").write_bytes(b"not a picture")
    for content in (b"", b"[]", b'{"training_seconds": "soon"}', b'{"parameters": 1e999}', b'{"hardware": "x"}'):
        folder.summary.write_bytes(content)
        (found,) = compare([folder.path], data, n=150, classifiers=nets).entries
        assert found.costs["training_seconds"] is None
        assert found.costs["trained_on"] is None
        assert found.pictures == {}
    assert caplog.text.count("summary.json: is damaged") == 5


def test_pictures_are_those_of_the_strength_nearest_to_the_models_scale(
    runs: dict[str, Path], data: Dataset, nets: Classifiers
) -> None:
    assert load(runs["tiny"]).sampling.scale == 2.4
    (found,) = compare([runs["tiny"]], data, n=150, classifiers=nets).entries
    assert {picture.alt for picture in found.pictures.values()} == {"w = 2"}
    assert base64.b64decode(found.pictures[300].data) == RunFolder(runs["tiny"]).image(0, "_w2").read_bytes()


def test_pictures_have_a_strength_that_all_runs_have(runs: dict[str, Path]) -> None:
    models = {name: load(path) for name, path in runs.items()}
    assert _common_scale([models["gan"]]) == 1.0
    assert _common_scale([models["tiny"], models["gan"]]) == 3.0
    other = load(runs["tiny"])
    other.sampling = SamplingConfig(scale=1.4)
    other.config = other.config.model_copy(update={"guidance_strengths": (0.0, 0.5), "sampling": other.sampling})
    assert _common_scale([models["tiny"], other, models["gan"]]) == 1.5, (
        "w = 2 is nearer to one, but the other lacks it"
    )


def test_names_that_cannot_be_printed_are_cleaned(runs: dict[str, Path], data: Dataset, nets: Classifiers) -> None:
    found = compare({"a\x1b[2J\n": load(runs["gan"])}, data, n=150, classifiers=nets)
    assert list(found.record.runs) == ["a?[2J?"]


def test_nothing_to_compare_and_names_that_collide_are_refused(runs: dict[str, Path]) -> None:
    cases: list[Any] = [[], {}, {"a\x00": runs["gan"], "a\x01": runs["gan"]}]
    for bad in cases:
        with pytest.raises(EvaluationError, match="compare needs one run or more"):
            compare(bad, progress=never)


def test_progress_names_the_run(runs: dict[str, Path], data: Dataset, nets: Classifiers) -> None:
    calls: list[str] = []
    compare({"mine": load(runs["gan"])}, data, n=150, classifiers=nets, progress=lambda what, *_: calls.append(what))
    assert {"mine: drawing", "mine: features", "features of the training split"} <= set(calls)


def test_classifiers_are_found_in_the_cache(runs: dict[str, Path], data: Dataset, nets: Classifiers, tmp_path) -> None:
    for classifier in nets:
        own = classifiers.finished(classifier.kind, classifier.net, data)
        classifiers.save_classifier(tmp_path, own, data.info)
    found = compare([runs["gan"]], n=150, cache=tmp_path).record
    assert found.runs["gan"].provenance.data_sha256 == data.info.sha256
