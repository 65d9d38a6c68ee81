"""The verdict on a score: close to real, recognisable, or far from real; why, and what to try.

The rule compares a score with that of real images, so it is the same for every data set and number of images:

- **close to real**: the Fréchet distance to the training split is at most `NEAR` above theirs (each feature has a
  variance near 1), precision and recall are at least `MOST` of theirs, and the label accuracy is at most `LOSS` below;
- **recognisable**: precision is at least `HALF` of theirs, and the label accuracy at least half way from chance to
  theirs;
- **far from real**: everything else.

Images without labels are judged by the other figures.
"""

from collections.abc import Mapping

from pocketdiff.evaluation.classifiers import MIN_IMAGES
from pocketdiff.evaluation.records import ScoreFile
from pocketdiff.evaluation.score import METRICS

NEAR, MOST, LOSS, HALF = 1.0, 0.8, 0.02, 0.5


def verdict(record: ScoreFile, classes: int, copies: bool) -> str:
    """The verdict in a few sentences. ``classes`` is the number of classes, so guessing has an accuracy of 1 / classes;
    ``copies`` says whether some of the images seem to be copies of training images.
    """
    real = {key: value for key, value in record.real_baseline.items() if value is not None}
    if not real:
        few = record.provenance.baseline_images
        return f"None: it needs {MIN_IMAGES} real test images to compare with, and the data set has {few}."
    close = {
        "frechet_train": real["frechet_train"] + NEAR, "accuracy": real["accuracy"] - LOSS,
        "precision": MOST * real["precision"], "recall": MOST * real["recall"],
    }  # fmt: skip
    recognisable = {"precision": HALF * real["precision"], "accuracy": (1 / classes + real["accuracy"]) / 2}
    doubt = " Some of the images may be copies of training images: look at the closest pairs." * copies
    if not (missed := _missed(record, close)):
        return f"Close to real.{doubt}"
    far = _missed(record, recognisable)
    level = "Far from real" if far else "Recognisable, but not close to real"
    figures = [
        f"{(m := METRICS[key]).name} {m.text(record.metrics[key])} (real images: {m.text(real[key])})"
        for key in far or missed
    ]
    return f"{level}: {', '.join(figures)}.{_tips(record, missed, bool(far))}{doubt}"


def _missed(record: ScoreFile, limits: Mapping[str, float]) -> list[str]:
    """The metrics that are worse than their limits."""
    missed = []
    for key, limit in limits.items():
        value = record.metrics.get(key)
        if value is not None and (value > limit if METRICS[key].lower_is_better else value < limit):
            missed.append(key)
    return missed


def _tips(record: ScoreFile, missed: list[str], far: bool) -> str:
    """What to try with a model: guidance raises the accuracy and lowers the recall."""
    if (drawing := record.provenance.drawing) is None:
        return ""
    if far:
        return " Train longer (--images), and look at the training images."
    higher, lower = "accuracy" in missed, "recall" in missed
    if drawing.sampling.scale is None or higher == lower:
        return " Train longer (--images)."
    return f" Try a {'higher' if higher else 'lower'} guidance scale (--scale), or train longer (--images)."
