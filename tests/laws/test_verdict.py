"""The verdict on scores: the published figures, what is missing, and what to try."""

import pytest

from pocketdiff.evaluation.records import ScoreFile
from pocketdiff.evaluation.verdict import verdict
from tests.laws.test_score_records import HARDWARE, SCORE

KEYS = ("frechet_train", "precision", "recall", "accuracy")
REAL = (0.0938, 0.921, 0.9084, 0.996)


def record(figures: tuple[float | None, ...], real: tuple[float, ...] = REAL, scale: float | None = 1.4) -> ScoreFile:
    """A score with these figures, in the order of `KEYS`; a negative scale: not drawn by a model."""
    metrics = dict(zip(KEYS, figures, strict=True))
    sampling = {"nfe": 1.0, "scale": scale}
    drawing = {"how": "euler", "sampling": sampling, "seconds": 3.0, "hardware": HARDWARE}
    provenance = SCORE["provenance"] | {"drawing": None if scale is not None and scale < 0 else drawing}
    intervals = {key: (value, value) for key, value in metrics.items() if value is not None}
    baseline = dict(zip(KEYS, real, strict=True)) if real else {}
    return ScoreFile.model_validate(
        SCORE | {"metrics": metrics, "intervals": intervals, "real_baseline": baseline, "provenance": provenance}
    )


@pytest.mark.parametrize(
    ("name", "figures", "level"),
    [
        ("real", REAL, "Close"),
        ("laptop", (0.672, 0.8245, 0.8549, 0.9909), "Close"),
        ("laptop, one run", (0.654, 0.8119, 0.8590, 0.9876), "Close"),
        ("gan-conditional", (0.553, 0.7839, 0.7627, 0.9889), "Close"),
        ("quick", (2.837, 0.7302, 0.6589, 0.9916), "Recognisable"),
        ("gan", (48.6, 0.0627, 0.0022, None), "Far"),
        ("noise", (3323.0, 0.0, 0.0, 0.097), "Far"),
        ("blurred", (43.1, 0.0065, 0.0008, 0.985), "Far"),
        ("shuffled labels", (0.0938, 0.921, 0.908, 0.1), "Far"),
    ],
)
def test_the_published_figures_have_the_expected_verdicts(
    name: str, figures: tuple[float | None, ...], level: str
) -> None:
    assert verdict(record(figures), 10, copies=False).startswith(level), name


def test_a_verdict_names_what_is_missing_and_what_to_try() -> None:
    def said(*figures: float | None, scale: float | None = 1.4) -> str:
        return verdict(record(figures, scale=scale), 10, copies=False)

    assert said(0.5, 0.9, 0.5, 0.99) == (
        "Recognisable, but not close to real: recall 50.00% (real images: 90.84%). "
        "Try a lower guidance scale (--scale), or train longer (--images)."
    )
    assert said(0.5, 0.9, 0.9, 0.9).endswith("Try a higher guidance scale (--scale), or train longer (--images).")
    assert said(0.5, 0.9, 0.5, 0.9).endswith("(real images: 90.84%). Train longer (--images).")
    assert said(0.5, 0.9, 0.5, 0.99, scale=None).endswith("(real images: 90.84%). Train longer (--images).")
    assert said(99.0, 0.1, 0.0, 0.2).endswith(" Train longer (--images), and look at the training images.")
    assert said(99.0, 0.1, 0.0, 0.2, scale=-1).endswith("(real images: 99.60%).")
    assert said(0.5, 0.9, 0.9, None) == "Close to real."


def test_copies_are_named_whatever_the_level() -> None:
    words = " Some of the images may be copies of training images: look at the closest pairs."
    assert verdict(record(REAL), 10, copies=True) == f"Close to real.{words}"
    assert verdict(record((99.0, 0.1, 0.0, 0.2)), 10, copies=True).endswith(words)


def test_chance_counts_as_no_accuracy_at_all() -> None:
    figures = (0.5, 0.9, 0.9, 0.7)
    assert verdict(record(figures), 10, copies=False).startswith("Recognisable")
    assert verdict(record(figures), 2, copies=False).startswith("Far"), "half way from 50% to 99.6% is 74.8%"


def test_without_real_images_there_is_no_verdict() -> None:
    few = record(REAL, real=())
    few = few.model_copy(update={"provenance": few.provenance.model_copy(update={"baseline_images": 50})})
    assert verdict(few, 10, copies=False) == (
        "None: it needs 128 real test images to compare with, and the data set has 50."
    )


def test_files_without_a_verdict_can_be_read() -> None:
    assert ScoreFile.model_validate(SCORE).verdict == ""
