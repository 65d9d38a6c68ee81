import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketdiff.evaluate.comparison import COMPARED, Comparison, Entry, check_alike, difference, exceeds, front
from pocketdiff.evaluate.distances import Estimate, EvaluationError, share_estimate
from pocketdiff.evaluate.report import Picture, grid
from pocketdiff.evaluate.score import Sample

FRAME = {
    "n": 1000, "k": 5, "data": "mnist", "data_sha256": "a" * 64, "feature_network": "features-1",
    "label_network": "reader-1", "feature_network_sha256": "b" * 64, "label_network_sha256": "c" * 64,
    "network_evaluations": 1, "floor_images": 1000,
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "parameters": 5000, "training_seconds": 60.0, "images_seen": 900, "images_per_second": 15.0,
    "peak_memory_bytes": 5 * 10**8, "peak_gpu_memory_bytes": None,
    "hardware": {"cpu": "a processor", "threads": 2, "device": "cpu", "system": "a system"},
}  # fmt: skip


def entry(
    name: str,
    distance: float,
    seconds: float = 60.0,
    drawing: float = 1.0,
    accuracy: float | None = 0.9,
    **changes: object,
) -> Entry:
    metrics = {
        "frechet_train": Estimate(distance, distance - 0.5, distance + 0.5),
        "frechet_classes": Estimate(2 * distance, 2 * distance - 0.5, 2 * distance + 0.5),
        "kernel_train": Estimate(distance / 100, distance / 100 - 1e-3, distance / 100 + 1e-3),
        "accuracy": None if accuracy is None else Estimate(accuracy, accuracy - 0.01, accuracy + 0.01),
        "precision": Estimate(0.8, 0.75, 0.85),
        "recall": Estimate(0.7, 0.65, 0.75),
        "memorized_share": Estimate(0.0, 0.0, 0.004),
    }
    floor: dict[str, Estimate | None] = {"frechet_train": Estimate(0.1, 0.1, 0.1)}
    frame = {**FRAME, "drawing_seconds": drawing, **changes}
    return Entry(name, metrics, floor, frame, {**SUMMARY, "training_seconds": seconds})


def test_a_difference_of_equal_intervals_is_wider_by_the_root_of_two() -> None:
    gap = difference(Estimate(5.0, 4.0, 6.0), Estimate(2.0, 1.0, 3.0))
    assert gap.value == 3.0
    assert gap.low == pytest.approx(3 - math.sqrt(2))
    assert gap.high == pytest.approx(3 + math.sqrt(2))


ENDS = st.tuples(st.floats(-10, 10), st.floats(0, 3), st.floats(0, 3)).map(
    lambda x: Estimate(x[0], x[0] - x[1], x[0] + x[2])
)


@given(ENDS, ENDS)
def test_a_difference_the_other_way_round_is_its_mirror_image(a: Estimate, b: Estimate) -> None:
    there, back = difference(a, b), difference(b, a)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.low <= there.value <= there.high
    assert exceeds(there) == exceeds(back)


@given(ENDS)
def test_nothing_differs_from_itself(a: Estimate) -> None:
    assert not exceeds(difference(a, a))


def test_of_equal_models_one_pair_in_twenty_seems_to_differ_and_of_unequal_ones_nearly_all_do() -> None:
    drawn = np.random.default_rng(0)

    def share(n: int, p: float) -> Estimate:
        return share_estimate(torch.from_numpy(drawn.random(n) < p))

    equal = np.mean([exceeds(difference(share(1000, 0.9), share(1000, 0.9))) for _ in range(2000)])
    unequal = np.mean([exceeds(difference(share(1000, 0.9), share(1000, 0.97))) for _ in range(200)])
    assert 0.03 < equal < 0.07
    assert unequal > 0.99


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8, unique=True))
def test_the_front_is_what_nothing_surpasses(places: list[tuple[int, int]]) -> None:
    points = [(entry(f"{x} {y}", float(y)), float(x), Estimate(float(y), 0.0, 9.0)) for x, y in places]
    surpassed = {f"{x} {y}" for x, y in places if any(u <= x and v <= y and (u, v) != (x, y) for u, v in places)}
    assert {found.name for found in front(points)} == {f"{x} {y}" for x, y in places} - surpassed
    assert [found.name for found in front(points)] == [found.name for found in front(points[::-1])]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": 2000}, r"a and b differ in number of images \(--n\): 1,000 and 2,000"),
        ({"data_sha256": "d" * 64}, "a and b differ in data: aaaaaaaa and dddddddd"),
        ({"feature_network_sha256": "d" * 64}, "differ in feature network"),
        ({"label_network_sha256": "d" * 64}, "differ in label network"),
        ({"k": 3}, "differ in neighbourhood size"),
    ],
)
def test_what_was_not_made_alike_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        Comparison([entry("a", 1.0), entry("b", 2.0, **changes)])
    with pytest.raises(EvaluationError, match="figures that were not made alike"):
        check_alike({"a": FRAME, "b": {**FRAME, **changes}})
    check_alike({"a": FRAME, "b": dict(FRAME)})


def test_words_tell_which_differences_are_more_than_chance() -> None:
    words = Comparison([entry("near", 1.0), entry("nearer", 0.8), entry("far", 9.0, accuracy=None)]).words()
    by_figure = {sentence.partition(",")[0]: sentence for sentence in words}
    distance = by_figure["Fréchet distance to the training split"]
    assert "lowest first: nearer 0.8, near 1, far 9" in distance
    assert "between nearer and near does not exceed its interval" in distance
    assert distance.endswith("; every other does.")
    assert "far" not in by_figure["Label accuracy"]
    assert by_figure["Precision"].endswith("no difference exceeds its interval.")
    apart = Comparison([entry("a", 1.0), entry("b", 9.0)]).words()[0]
    assert apart.endswith("; the difference exceeds its interval.")


def test_words_warn_where_real_images_are_fewer() -> None:
    words = Comparison([entry("a", 1.0, floor_images=200), entry("b", 2.0)]).words()
    assert any(sentence.startswith("The test split holds 200 images") for sentence in words)


def test_words_name_the_fronts_and_different_machines() -> None:
    quick, good, poor = entry("quick", 9.0, 10.0), entry("good", 1.0, 100.0), entry("poor", 9.5, 200.0, drawing=0.1)
    comparison = Comparison([quick, good, poor])
    said = "Distance against seconds of training: none is both nearer and faster than any of quick and good"
    assert f"{said}, intervals aside." in comparison.words()
    assert comparison.json()["fronts"] == {
        "training_seconds": ["quick", "good"], "sampling_seconds": ["poor", "good"]
    }  # fmt: skip
    assert not any("same machine" in sentence for sentence in comparison.words())
    gpu = {**SUMMARY["hardware"], "device": "a GPU"}
    elsewhere = Entry("x", good.metrics, {}, good.frame, {**SUMMARY, "hardware": gpu})
    assert any(
        sentence.startswith("Not all were trained on the same machine (a GPU, 2 threads; a processor, 2 threads)")
        for sentence in Comparison([quick, elsewhere]).words()
    )
    drawn = [entry("a", 1.0, drawn_on=SUMMARY["hardware"]), entry("b", 2.0, drawn_on=gpu)]
    assert any("drawn on the same machine" in sentence for sentence in Comparison(drawn).words())


def test_words_end_with_what_the_intervals_leave_out_and_one_model_is_compared_with_nothing() -> None:
    assert "another training seed" in Comparison([entry("a", 1.0), entry("b", 9.0)]).words()[-1]
    assert Comparison([entry("a", 1.0)]).words() == []
    assert "What the figures say" not in Comparison([entry("a", 1.0)]).page()


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn() -> None:
    page = Comparison([entry("a$b_$c", 0.0, drawing=0.0), entry("<b> & c", 2.0)]).page()
    assert "a$b_$c" in page
    assert "<b>" not in page


def test_the_table_is_markdown_with_a_cell_for_each() -> None:
    text = Comparison([entry("a", 1.0), entry("b", 2.0, accuracy=None)]).table()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}
    assert rows[0] == "| | a | b | real images |"
    assert "| label accuracy | 90.00% (89.00% to 91.00%) | none | |" in rows
    assert "| seconds to draw 1,000 images | 1 | 1 | |" in rows
    assert "| weights that are trained | 5,000 | 5,000 | |" in rows


def test_json_holds_every_figure_cost_and_difference() -> None:
    found = Comparison([entry("a", 1.0, drawing=4.0, n=2000), entry("b", 2.0, n=2000)]).json()
    assert found["runs"]["a"]["metrics"]["frechet_train"] == 1.0
    assert found["runs"]["a"]["intervals"]["frechet_train"] == [0.5, 1.5]
    assert found["runs"]["a"]["costs"]["sampling_seconds"] == 2.0
    assert found["runs"]["a"]["costs"]["trained_on"] == "a processor, 2 threads"
    assert {row["figure"] for row in found["differences"]} == set(COMPARED)
    (gap,) = (row for row in found["differences"] if row["figure"] == "frechet_train")
    assert (gap["runs"], gap["difference"], gap["exceeds_its_interval"]) == (["a", "b"], -1.0, True)


def test_the_page_shows_the_epochs_that_all_have_and_asks_for_nothing_outside(tiny_data) -> None:
    shown = grid(Sample(tiny_data.train.pixels, tiny_data.train.labels), tiny_data.info, zoom=1)
    pictures = {epoch: Picture(shown.data, f"epoch {epoch}", 9) for epoch in range(20)}
    first = Entry("<one>", entry("", 1.0).metrics, {}, FRAME, SUMMARY, 7, shown, pictures)
    second = Entry(
        "two", entry("", 2.0).metrics, {}, FRAME, SUMMARY, 7, shown, {e: pictures[e] for e in range(0, 20, 2)}
    )
    third = Entry("three", entry("", 3.0).metrics, {}, FRAME, {}, None)
    page = Comparison([first, second, third], shown).page()
    assert [f"<h3>Epoch {epoch + 1}</h3>" in page for epoch in range(20)] == [
        epoch in (0, 6, 12, 18) for epoch in range(20)
    ]
    assert "&lt;one&gt;" in page
    assert "<one>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 1  # nothing is known of how long drawing took
    assert "sampler" not in page
    assert re.search(r"<dt>training</dt><dd>[^<]*images seen 900", page.replace("_", " "))
