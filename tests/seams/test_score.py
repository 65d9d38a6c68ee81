"""Scores: what each metric detects, what does not matter, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from pocketdiff.data import Dataset, Images
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation import classifiers
from pocketdiff.evaluation.classifiers import MIN_IMAGES, find_or_train_classifiers
from pocketdiff.evaluation.distances import Estimate
from pocketdiff.evaluation.reference import Reference
from pocketdiff.evaluation.report import Evaluation, evaluate, measured
from pocketdiff.evaluation.sample import Sample, check_request, control_samples, draw, labels_like
from pocketdiff.evaluation.score import METRICS, Measurements, Metric, Score, real_baseline, score, train_on_synthetic
from pocketdiff.methods import PRESETS
from tests.helpers import model_of, new_state

TRAIN, TEST = 4000, 2000


def some(images: Images, n: int) -> Images:
    return Images(images.pixels[:n], images.labels[:n])


@pytest.fixture(scope="session")
def reference(mnist: Dataset) -> Reference:
    data = replace(mnist, train=some(mnist.train, TRAIN), test=some(mnist.test, TEST))
    return Reference.of(data, find_or_train_classifiers(mnist))


@pytest.fixture(scope="session")
def real(reference: Reference) -> Sample:
    return Sample(reference.data.test.pixels, reference.data.test.labels)


@pytest.fixture(scope="session")
def scored(reference: Reference, real: Sample) -> Score:
    return score(real, reference)


@pytest.fixture(scope="session")
def baseline(reference: Reference) -> Score:
    found = real_baseline(reference, TEST)
    assert found is not None
    return found


def few(sample: Sample, n: int = 400) -> Sample:
    return Sample(sample.pixels[:n], None if sample.labels is None else sample.labels[:n])


def quick(reference: Reference) -> Reference:
    """Without the search for copies."""
    return replace(reference, memory=None)


def test_the_test_split_scores_the_real_baseline(scored: Score, baseline: Score, reference: Reference) -> None:
    for name in set(METRICS) - {"frechet_test"}:
        assert scored.metrics[name] == baseline.metrics[name], name
    assert scored.metrics["frechet_test"].value < 1e-6 < baseline.metrics["frechet_test"].value
    assert scored.classes == baseline.classes
    assert torch.equal(scored.nearest.which[reference.test_part(TEST)], baseline.nearest.which)


def test_every_value_lies_in_its_interval(scored: Score) -> None:
    assert list(scored.metrics) == list(METRICS)
    for name in set(METRICS) - {"cas", "cas_real"}:
        estimate = scored.metrics[name]
        assert estimate.low <= estimate.value <= estimate.high, name
        assert estimate.low < estimate.high, name


def test_the_order_of_the_images_does_not_matter(reference: Reference, real: Sample, scored: Score) -> None:
    order = torch.randperm(TEST, generator=torch.Generator().manual_seed(0))
    test = reference.data.test
    other = score(Sample(test.pixels[order], test.labels[order]), reference)
    assert other.metrics == scored.metrics
    assert other.classes == scored.classes
    assert torch.equal(other.realism, scored.realism[order])
    assert torch.equal(other.read, scored.read[order])
    assert torch.equal(other.nearest.distance, scored.nearest.distance[order])


def test_the_batch_size_does_not_matter(reference: Reference, real: Sample, monkeypatch) -> None:
    whole = score(few(real), quick(reference)).metrics
    monkeypatch.setattr(classifiers, "_CHUNK", 37)
    for name, estimate in score(few(real), quick(reference)).metrics.items():
        if estimate is not None:
            assert estimate.value == pytest.approx(whole[name].value, rel=1e-6, abs=1e-6), name


def test_controls_score_worse(reference: Reference, baseline: Score) -> None:
    made = {name: score(sample, quick(reference)) for name, sample in control_samples(reference, TEST).items()}
    best = baseline.metrics

    def values(metric: str) -> list[float]:
        return [made[name].metrics[metric].value for name in ("noise", "blurred")] + [best[metric].value]

    noise, blurred, real = values("frechet_train")
    assert noise > 20 * blurred > 400 * real
    for metric in ("precision", "recall", "density", "coverage", "accuracy"):
        noise, blurred, real = values(metric)
        assert noise <= blurred < real, metric
    shuffled = made["shuffled_labels"].metrics
    assert shuffled["frechet_train"].value == pytest.approx(best["frechet_train"].value)
    assert shuffled["accuracy"].value < 0.15
    assert shuffled["frechet_classes"].value > 10 * best["frechet_classes"].value


def test_more_noise_scores_worse(reference: Reference, real: Sample) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=tuple(real.pixels.shape))).float()
    noisy = []
    for strength in (0, 5, 10, 20, 40, 80):
        pixels = (real.pixels + strength * noise).clamp(0, 255).to(torch.uint8)
        noisy.append(Measurements(Sample(pixels, real.labels), reference))
    for key in ("frechet_train", "kernel_train"):
        values = [METRICS[key].compute(measurements).value for measurements in noisy]
        assert all(worse > better for better, worse in pairwise(values)), key


def test_planted_copies_are_found(reference: Reference, real: Sample, scored: Score) -> None:
    planted = TEST // 100
    pixels = real.pixels.clone()
    where, which = torch.arange(planted) * 90, torch.arange(planted) * 111
    pixels[where] = reference.data.train.pixels[which].roll((1, -2), (2, 3))
    found = score(Sample(pixels, real.labels), reference)
    closest = found.nearest.distance.argsort()[:planted]
    assert set(closest.tolist()) == set(where.tolist())
    assert torch.equal(found.nearest.which[where], which)
    assert found.nearest.distance[where].max() < 0.1
    assert found.metrics["memorized_share"].low > 0.01 > scored.metrics["memorized_share"].low
    assert scored.metrics["memorized_share"].value == pytest.approx(0.01, abs=1.5 / TEST)


def test_thin_digits_do_not_count_as_copies(reference: Reference) -> None:
    near, labels = reference.memory.pixels, reference.data.test.labels
    by_class = torch.stack([near.near(near.test)[labels == label].double().mean() for label in range(10)])
    assert by_class.max() < 0.05  # By plain distance, the nearest would all be ones, 8% of them.
    assert int((by_class > 0).sum()) >= 5


def test_noisy_copies_of_every_class_are_found(reference: Reference) -> None:
    train = reference.data.train
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 10, size=(600, 1, 28, 28)))
    copies = (train.pixels[:600] + noise).clamp(0, 255).round().to(torch.uint8)
    scored = score(Sample(copies, train.labels[:600]), reference)
    assert scored.nearest is not None
    near = reference.memory.pixels.near(scored.nearest)
    for label in range(10):
        assert near[train.labels[:600] == label].double().mean() > 0.95, label


def test_few_test_images_give_no_false_alarm(reference: Reference, evaluation: Evaluation) -> None:
    test = reference.data.test
    for start in range(0, 1000, 200):
        held = Images(test.pixels[start : start + 150], test.labels[start : start + 150])
        small = Reference.of(replace(reference.data, test=held), reference.classifiers)
        sample = Sample(test.pixels[1000:], test.labels[1000:])
        share = METRICS["memorized_share"].compute(Measurements(sample, small))
        few_images = replace(evaluation.score, metrics=evaluation.score.metrics | {"memorized_share": share})
        assert replace(evaluation, sample=sample, reference=small, score=few_images).warning() is None, start


def test_training_images_count_as_copies(reference: Reference) -> None:
    train = reference.data.train
    metrics = score(Sample(train.pixels[::20], train.labels[::20]), reference).metrics
    assert metrics["memorized_share"].value == metrics["memorized_share_features"].value == 1.0


def test_a_single_class_has_high_precision_and_low_recall(reference: Reference) -> None:
    test = reference.data.test
    ones = test.labels == 1
    metrics = score(Sample(test.pixels[ones], test.labels[ones]), quick(reference)).metrics
    assert metrics["precision"].value > 0.85
    assert metrics["recall"].value < 0.3
    assert metrics["coverage"].value < 0.2


def test_without_labels_the_other_metrics_are_the_same(reference: Reference, real: Sample) -> None:
    known, unknown = (score(sample, quick(reference)) for sample in (few(real), Sample(few(real).pixels)))
    for name in METRICS:
        if name in {"accuracy", "frechet_classes"}:
            assert unknown.metrics[name] is None
        elif known.metrics[name] is not None:
            assert unknown.metrics[name].value == pytest.approx(known.metrics[name].value, rel=1e-9), name
    assert unknown.classes == {}


def test_a_class_with_few_images_has_no_distance(reference: Reference, real: Sample) -> None:
    row = score(few(real), quick(reference))
    classes = row.classes.values()
    assert all(each.images < MIN_IMAGES and each.metrics["frechet_train"] is None for each in classes)
    assert row.metrics["frechet_classes"] is None
    assert sum(each.images for each in classes) == 400


def test_a_class_with_equal_training_images_has_no_distance(reference: Reference, real: Sample) -> None:
    pixels = reference.data.train.pixels.clone()
    pixels[reference.data.train.labels == 3] = 0
    data = replace(reference.data, train=Images(pixels, reference.data.train.labels))
    rows = score(real, Reference.of(data, reference.classifiers, memorization=False)).classes
    assert [name for name, row in rows.items() if row.metrics["frechet_train"] is None] == ["3"]


def test_a_small_test_split_gives_no_real_baseline(reference: Reference, real: Sample) -> None:
    data = replace(reference.data, test=some(reference.data.test, 50))
    small = Reference.of(data, reference.classifiers, memorization=False)
    metrics = score(few(real), small).metrics
    assert metrics["frechet_test"] is None
    assert metrics["frechet_train"] is not None
    assert Reference.of(data, reference.classifiers).memory is None
    assert real_baseline(small, 400) is None


@pytest.mark.parametrize(
    ("sample", "fault"),
    [
        (Sample(torch.zeros(MIN_IMAGES - 1, 1, 28, 28, dtype=torch.uint8)), f"{MIN_IMAGES - 1} images are too few"),
        (Sample(torch.full((200, 1, 28, 28), 7, dtype=torch.uint8)), "all equal"),
        (
            Sample(torch.zeros(200, 1, 32, 28, dtype=torch.uint8)),
            "32 x 28 pixels in grey, but those of the data 28 x 28",
        ),
        (Sample(torch.zeros(200, 3, 28, 28, dtype=torch.uint8)), "with 3 channels"),
        (Sample(torch.arange(200 * 784).reshape(200, 1, 28, 28).byte(), torch.full((200,), 10)), "10 to 10"),
        (Sample(torch.arange(200 * 784).reshape(200, 1, 28, 28).byte(), torch.full((200,), -1)), "-1 to -1"),
    ],
)
def test_bad_images_are_refused(sample: Sample, fault: str, reference: Reference) -> None:
    with pytest.raises(EvaluationError, match=fault) as caught:
        score(sample, reference)
    assert "\n" not in str(caught.value)


def test_too_few_training_images_are_refused(reference: Reference) -> None:
    data = replace(reference.data, train=some(reference.data.train, 100))
    with pytest.raises(EvaluationError, match="100 images are too few"):
        Reference.of(data, reference.classifiers, memorization=False)


@pytest.mark.parametrize("n", [128, 1000, 9999])
def test_labels_have_the_class_frequencies_of_training(n: int, mnist: Dataset) -> None:
    labels = labels_like(mnist.train.labels, n)
    shares = torch.bincount(torch.tensor(labels), minlength=10) / n
    wanted = torch.bincount(mnist.train.labels) / len(mnist.train)
    assert len(labels) == n
    assert (shares - wanted).abs().max() <= 1 / n


def test_a_classifier_learns_from_real_images_but_not_from_noise(reference: Reference, monkeypatch) -> None:
    monkeypatch.setattr(classifiers, "_MIN_LENGTH", 3000)
    train = reference.data.train
    noise = control_samples(reference, 500)["noise"]
    shares = {
        name: train_on_synthetic(sample, reference.data)
        for name, sample in (("train", Sample(train.pixels[:500], train.labels[:500])), ("noise", noise))
    }
    assert shares["train"]["cas"].value > 0.75
    assert shares["noise"]["cas"].value < 0.35
    assert shares["train"]["cas_real"] == shares["noise"]["cas_real"]
    again = Sample(train.pixels[:500].flip(0), train.labels[:500].flip(0))
    assert train_on_synthetic(again, reference.data) == shares["train"], "the order does not matter"
    with pytest.raises(EvaluationError, match="without labels"):
        train_on_synthetic(Sample(noise.pixels), reference.data)


@pytest.fixture(scope="session")
def evaluation(reference: Reference, real: Sample) -> Evaluation:
    return measured(real, reference, TEST, 0, "real images")


def test_the_real_baseline_is_computed_once(reference: Reference, baseline: Score) -> None:
    def never(what: str, _done: int, _total: int) -> None:
        raise AssertionError(what)

    assert real_baseline(reference, TEST, progress=never) is baseline
    assert real_baseline(reference, TEST, 1).metrics["frechet_train"] != baseline.metrics["frechet_train"]


def test_copies_cause_a_warning(evaluation: Evaluation, reference: Reference) -> None:
    assert evaluation.warning() is None
    train = reference.data.train
    copies = Sample(train.pixels[:200], train.labels[:200])
    warning = replace(evaluation, sample=copies, score=score(copies, reference)).warning()
    assert warning.startswith("100.00% of the images")


def test_a_random_subset_does_not_depend_on_the_order(real: Sample) -> None:
    one = real.some(300, 0)
    other = Sample(real.pixels.flip(0), real.labels.flip(0)).some(300, 0)

    def rows(sample: Sample) -> list[bytes]:
        return sorted(pixels.numpy().tobytes() for pixels in sample.pixels)

    assert len(one) == 300
    assert rows(one) == rows(other) != rows(real.some(300, 1))
    assert real.some(TEST, 0) is real


def test_a_model_that_knows_no_labels_gives_images_without(reference: Reference) -> None:
    for preset in ("gan", "gan-conditional"):
        config = PRESETS[preset]
        model = model_of(new_state(config, reference.data), config, reference.data)
        sample, seeds = draw(model, reference, 30, 2), range(2 << 32, (2 << 32) + 30)
        if preset == "gan":
            assert sample.labels is None
            assert torch.equal(sample.pixels, model([10] * 30, seeds))
        else:
            labels = labels_like(reference.data.train.labels, 30)
            assert sample.labels.tolist() == labels
            assert torch.equal(sample.pixels, model(labels, seeds))


# The table of metrics


@pytest.fixture
def contrast() -> Iterator[Metric]:
    """A metric from outside the package."""

    def compute(m: Measurements) -> Estimate:
        value = float(m.sample.pixels.double().std())
        return Estimate(value, value - 1, value + 1)

    METRICS["contrast"] = Metric("contrast of the pixels", "their standard deviation", compute, lower_is_better=None)
    yield METRICS["contrast"]
    del METRICS["contrast"]


def test_a_metric_from_outside_appears_everywhere(contrast: Metric, reference: Reference, real: Sample) -> None:
    data = replace(reference.data, test=some(reference.data.test, 200))
    evaluation = evaluate(few(real, 150), data, classifiers=reference.classifiers)
    value = evaluation.json()["metrics"]["contrast"]
    assert evaluation.json()["intervals"]["contrast"] == [value - 1, value + 1]
    assert evaluation.json()["real_baseline"]["contrast"] == pytest.approx(value, rel=0.1)
    for text in (evaluation.table(), evaluation.page()):
        assert "contrast of the pixels" in text
        assert f"{value:.3g}" in text
        assert f"{value - 1:.3g} to {value + 1:.3g}" in text


def test_a_metric_without_a_valid_estimate_is_refused(contrast: Metric, reference: Reference, real: Sample) -> None:
    for bad in (Estimate(1.0, 2.0, 3.0), Estimate(float("nan"), 0.0, 1.0), Estimate(0.0, float("-inf"), 1.0)):

        def compute(_m: Measurements, bad: Estimate = bad) -> Estimate:
            return bad

        METRICS["contrast"] = replace(contrast, compute=compute)
        with pytest.raises(EvaluationError, match="the metric contrast gives"):
            score(few(real), quick(reference))


@pytest.mark.parametrize(
    ("key", "value", "text", "signed"),
    [
        ("frechet_train", 1234.5, "1234", "+1234"), ("frechet_train", 0.65432, "0.654", "+0.654"),
        ("kernel_train", -0.00123, "-0.0012", "-0.0012"), ("accuracy", 0.98761, "98.76%", "+98.76%"),
    ],
)  # fmt: skip
def test_values_have_three_digits_or_are_in_percent(key: str, value: float, text: str, signed: str) -> None:
    assert METRICS[key].text(value) == text
    assert METRICS[key].text(value, "+") == signed
    assert METRICS[key].text(None) == ""
    assert METRICS[key].interval(Estimate(value, value, value)) == f"{text} to {text}"


def test_every_metric_says_how_to_read_it() -> None:
    for metric in METRICS.values():
        assert metric.reading().endswith(
            {True: "lower is better.", False: "higher is better.", None: "."}[metric.lower_is_better]
        )
        assert metric.name.lower() in metric.reading().lower()


# Requests


@pytest.mark.parametrize(
    ("n", "seed", "cas", "fault"),
    [
        (127, 0, False, "n = 127: a score needs 128 images or more"),
        (10**12, 0, False, "n = 1000000000000: a score takes at most 1,000,000 images"),
        (128, -1, False, "seed = -1: must be from 0"),
        (128, 2**31, False, "must be from 0 to 2.31 - 1"),
        (128, 0, True, "cas: the images has no labels for a classifier to learn from"),
    ],
)
def test_bad_requests_are_refused_before_any_work(reference: Reference, real: Sample, n, seed, cas, fault) -> None:
    with pytest.raises(EvaluationError, match=fault):
        check_request(Sample(real.pixels), reference.data, n, seed, "the images", cas)


def test_a_model_of_other_data_is_refused(reference: Reference, tiny_data: Dataset) -> None:
    config = PRESETS["gan"]
    model = model_of(new_state(config, tiny_data), config, tiny_data)
    check_request(model, tiny_data, 128, 0)
    with pytest.raises(EvaluationError, match="mine: was not trained on these data"):
        check_request(model, reference.data, 128, 0, "mine")
    with pytest.raises(EvaluationError, match="cas: mine has no labels"):
        check_request(model, tiny_data, 128, 0, "mine", cas=True)
