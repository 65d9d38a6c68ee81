import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from pocketdiff.config import SamplingConfig
from pocketdiff.data import Dataset, Images
from pocketdiff.evaluate import EvaluationError, classifiers
from pocketdiff.evaluate.classifiers import SHIPPED, Classifiers, find_classifier
from pocketdiff.evaluate.reference import LEAST, Reference
from pocketdiff.evaluate.report import Evaluation, Sweep, Trial
from pocketdiff.evaluate.score import (
    METRICS,
    Sample,
    Score,
    controls,
    draw,
    floor,
    labels_like,
    score,
    some_of,
    train_on_synthetic,
)

TRAIN, TEST = 4000, 2000


def some(images: Images, n: int) -> Images:
    return Images(images.pixels[:n], images.labels[:n])


@pytest.fixture(scope="session")
def reference(mnist: Dataset) -> Reference:
    found = (find_classifier(kind, mnist.info, [SHIPPED]) for kind in ("features", "reader"))
    return Reference.of(
        Dataset(some(mnist.train, TRAIN), some(mnist.test, TEST), mnist.info), Classifiers(*filter(None, found))
    )


@pytest.fixture(scope="session")
def real(reference: Reference) -> Sample:
    return Sample(reference.data.test.pixels, reference.data.test.labels)


@pytest.fixture(scope="session")
def scored(reference: Reference, real: Sample) -> Score:
    return score(real, reference)


@pytest.fixture(scope="session")
def floored(reference: Reference) -> Score:
    found = floor(reference, TEST)
    assert found is not None
    return found


def few(sample: Sample, n: int = 400) -> Sample:
    return Sample(sample.pixels[:n], None if sample.labels is None else sample.labels[:n])


def quick(reference: Reference) -> Reference:
    return replace(reference, memory=None)


def test_the_test_split_scores_the_floor(scored: Score, floored: Score) -> None:
    for name in set(METRICS) - {"frechet_test"}:
        assert scored.metrics[name] == floored.metrics[name], name
    assert scored.metrics["frechet_test"].value < 1e-6 < floored.metrics["frechet_test"].value
    assert scored.classes == floored.classes


def test_every_figure_lies_in_its_interval(scored: Score) -> None:
    assert list(scored.metrics) == list(METRICS)
    for name, estimate in scored.metrics.items():
        assert estimate.low <= estimate.value <= estimate.high, name
        assert estimate.low < estimate.high, name


def test_the_order_of_the_images_changes_nothing(reference: Reference, real: Sample, scored: Score) -> None:
    order = torch.randperm(TEST, generator=torch.Generator().manual_seed(0))
    test = reference.data.test
    other = score(Sample(test.pixels[order], test.labels[order]), reference)
    assert other.metrics == scored.metrics
    assert other.classes == scored.classes
    assert other.confusion.tolist() == scored.confusion.tolist()
    assert torch.equal(other.realism, scored.realism[order])
    assert torch.equal(other.read, scored.read[order])
    assert torch.equal(other.nearest.distance, scored.nearest.distance[order])


def test_the_size_of_the_batches_changes_nothing(reference: Reference, real: Sample, monkeypatch) -> None:
    whole = score(few(real), quick(reference)).metrics
    monkeypatch.setattr(classifiers, "_CHUNK", 37)
    for name, estimate in score(few(real), quick(reference)).metrics.items():
        if estimate is not None:
            assert estimate.value == pytest.approx(whole[name].value, rel=1e-6, abs=1e-6), name


def test_controls_score_worse_each_where_it_must(reference: Reference, floored: Score) -> None:
    made = {name: score(sample, quick(reference)) for name, sample in controls(reference, TEST).items()}
    best = floored.metrics

    def values(metric: str) -> list[float]:
        return [made[name].metrics[metric].value for name in ("noise", "blurred")] + [best[metric].value]

    noise, blurred, floor_ = values("frechet_train")
    assert noise > 20 * blurred > 400 * floor_
    for metric in ("precision", "recall", "density", "coverage", "accuracy"):
        noise, blurred, floor_ = values(metric)
        assert noise <= blurred < floor_, metric
    shuffled = made["shuffled_labels"].metrics
    assert shuffled["frechet_train"].value == pytest.approx(best["frechet_train"].value)
    assert shuffled["accuracy"].value < 0.15
    assert shuffled["frechet_classes"].value > 10 * best["frechet_classes"].value


def test_rising_noise_scores_ever_worse(reference: Reference, real: Sample) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=tuple(real.pixels.shape))).float()
    rows = []
    for strength in (0, 5, 10, 20, 40, 80):
        pixels = (real.pixels + strength * noise).clamp(0, 255).to(torch.uint8)
        rows.append(score(Sample(pixels, real.labels), quick(reference)).metrics)
    distances = [row["frechet_train"].value for row in rows]
    assert all(worse > better for better, worse in pairwise(distances))
    kernels = [row["kernel_train"].value for row in rows]
    assert all(worse > better for better, worse in pairwise(kernels))


def test_planted_copies_are_found_and_real_images_keep_their_rate(
    reference: Reference, real: Sample, scored: Score
) -> None:
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


def test_thin_digits_are_not_taken_for_copies_because_they_are_thin(reference: Reference) -> None:
    near, labels = reference.memory.pixels, reference.data.test.labels
    by_class = torch.stack([near.near(near.test)[labels == label].double().mean() for label in range(10)])
    assert by_class.max() < 0.05  # Of the nearest by plain distance, all are ones, and they are 8%.
    assert int((by_class > 0).sum()) >= 5


def test_a_copy_of_any_class_is_told_from_real_images_even_with_noise(reference: Reference) -> None:
    train = reference.data.train
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 10, size=(600, 1, 28, 28)))
    copies = (train.pixels[:600] + noise).clamp(0, 255).round().to(torch.uint8)
    scored = score(Sample(copies, train.labels[:600]), reference)
    assert scored.nearest is not None
    near = reference.memory.pixels.near(scored.nearest)
    for label in range(10):
        assert near[train.labels[:600] == label].double().mean() > 0.95, label


def test_few_test_images_raise_no_false_alarm(reference: Reference, evaluation: Evaluation) -> None:
    test = reference.data.test
    for start in range(0, 1000, 200):
        held = Images(test.pixels[start : start + 150], test.labels[start : start + 150])
        small = Reference.of(Dataset(reference.data.train, held, reference.data.info), reference.classifiers)
        sample = Sample(test.pixels[1000:], test.labels[1000:])
        fewer = replace(evaluation, sample=sample, reference=small, score=score(sample, small))
        assert fewer.verdict() is None, start


def test_training_images_are_all_remembered(reference: Reference) -> None:
    train = reference.data.train
    metrics = score(Sample(train.pixels[::20], train.labels[::20]), reference).metrics
    assert metrics["memorized_share"].value == metrics["memorized_share_features"].value == 1.0


def test_one_class_alone_is_precise_but_not_varied(reference: Reference) -> None:
    test = reference.data.test
    ones = test.labels == 1
    metrics = score(Sample(test.pixels[ones], test.labels[ones]), quick(reference)).metrics
    assert metrics["precision"].value > 0.85
    assert metrics["recall"].value < 0.3
    assert metrics["coverage"].value < 0.2


def test_without_labels_what_needs_none_is_the_same(reference: Reference, real: Sample) -> None:
    known, unknown = (score(sample, quick(reference)) for sample in (few(real), Sample(few(real).pixels)))
    for name in METRICS:
        if name in {"accuracy", "frechet_classes"}:
            assert unknown.metrics[name] is None
        elif known.metrics[name] is not None:
            assert unknown.metrics[name].value == pytest.approx(known.metrics[name].value, rel=1e-9), name
    assert unknown.classes == []
    assert unknown.confusion is None


def test_a_class_of_few_images_has_no_distance(reference: Reference, real: Sample) -> None:
    row = score(few(real), quick(reference))
    assert all(each.images < LEAST and each.frechet_train is None for each in row.classes)
    assert row.metrics["frechet_classes"] is None
    assert sum(each.images for each in row.classes) == 400


def test_a_class_of_equal_training_images_has_no_distance(reference: Reference, real: Sample) -> None:
    pixels = reference.data.train.pixels.clone()
    pixels[reference.data.train.labels == 3] = 0
    data = Dataset(Images(pixels, reference.data.train.labels), reference.data.test, reference.data.info)
    rows = score(real, Reference.of(data, reference.classifiers, memorization=False)).classes
    assert [row.name for row in rows if row.frechet_train is None] == ["3"]


def test_a_small_test_split_gives_no_distance_to_it_and_no_floor(reference: Reference, real: Sample) -> None:
    data = Dataset(reference.data.train, some(reference.data.test, 50), reference.data.info)
    small = Reference.of(data, reference.classifiers, memorization=False)
    metrics = score(few(real), small).metrics
    assert metrics["frechet_test"] is None
    assert metrics["frechet_train"] is not None
    assert Reference.of(data, reference.classifiers).memory is None
    assert floor(small, 400) is None


@pytest.mark.parametrize(
    ("sample", "fault"),
    [
        (Sample(torch.zeros(LEAST - 1, 1, 28, 28, dtype=torch.uint8)), f"{LEAST - 1} images are too few"),
        (Sample(torch.full((200, 1, 28, 28), 7, dtype=torch.uint8)), "all alike"),
        (
            Sample(torch.zeros(200, 1, 32, 28, dtype=torch.uint8)),
            "32 x 28 pixels in grey, and those of the data 28 x 28",
        ),
        (Sample(torch.zeros(200, 3, 28, 28, dtype=torch.uint8)), "of 3 channels"),
        (Sample(torch.arange(200 * 784).reshape(200, 1, 28, 28).byte(), torch.full((200,), 10)), "10 to 10"),
        (Sample(torch.arange(200 * 784).reshape(200, 1, 28, 28).byte(), torch.full((200,), -1)), "-1 to -1"),
    ],
)
def test_what_cannot_be_scored_is_refused(sample: Sample, fault: str, reference: Reference) -> None:
    with pytest.raises(EvaluationError, match=fault) as caught:
        score(sample, reference)
    assert "\n" not in str(caught.value)


def test_too_few_training_images_are_refused(reference: Reference) -> None:
    data = Dataset(some(reference.data.train, 100), reference.data.test, reference.data.info)
    with pytest.raises(EvaluationError, match="100 images are too few"):
        Reference.of(data, reference.classifiers, memorization=False)


@pytest.mark.parametrize("n", [128, 1000, 9999])
def test_labels_are_as_frequent_as_in_training(n: int, mnist: Dataset) -> None:
    labels = labels_like(mnist.train.labels, n)
    shares = torch.bincount(torch.tensor(labels), minlength=10) / n
    wanted = torch.bincount(mnist.train.labels) / len(mnist.train)
    assert len(labels) == n
    assert (shares - wanted).abs().max() <= 1 / n


def test_a_classifier_learns_from_real_images_and_not_from_noise(reference: Reference, monkeypatch) -> None:
    monkeypatch.setattr(classifiers, "_LEAST", 3000)
    train = reference.data.train
    noise = controls(reference, 500)["noise"]
    shares = {
        name: train_on_synthetic(sample, reference.data)
        for name, sample in (("train", Sample(train.pixels[:500], train.labels[:500])), ("noise", noise))
    }
    assert shares["train"]["cas"].value > 0.75
    assert shares["noise"]["cas"].value < 0.35
    assert shares["train"]["cas_real"] == shares["noise"]["cas_real"]
    again = Sample(train.pixels[:500].flip(0), train.labels[:500].flip(0))
    assert train_on_synthetic(again, reference.data) == shares["train"], "the order changes nothing"
    with pytest.raises(EvaluationError, match="without labels"):
        train_on_synthetic(Sample(noise.pixels), reference.data)


@pytest.fixture(scope="session")
def evaluation(reference: Reference, real: Sample, scored: Score, floored: Score) -> Evaluation:
    frame = {
        "target": "<script>alert(1)</script>", "n": TEST, "seed": 0, "data": "mnist", "feature_network": "features-0",
        "label_network": "reader-0", "label_network_accuracy": 0.5, "floor_images": TEST, "k": 5,
    }  # fmt: skip
    others = {"shuffled_labels": score(few(controls(reference, TEST)["shuffled_labels"]), quick(reference))}
    return Evaluation(real, reference, scored, floored, others, frame)


def test_the_json_holds_numbers_under_the_names_that_were_promised(evaluation: Evaluation) -> None:
    figures = json.loads(json.dumps(evaluation.json(), allow_nan=False))
    assert set(figures) == {"metrics", "intervals", "floor", "controls", "per_class", "frame"}
    promised = {
        "frechet_train", "frechet_test", "kernel_train", "precision", "recall", "density", "coverage", "accuracy",
        "memorized_share",
    }  # fmt: skip
    for metrics in (figures["metrics"], figures["floor"]):
        assert promised <= set(metrics)
        assert all(isinstance(metrics[name], float) for name in promised)
    assert all(low <= figures["metrics"][name] <= high for name, (low, high) in figures["intervals"].items())
    assert set(figures["per_class"]) == set("0123456789")
    assert sum(row["images"] for row in figures["per_class"].values()) == TEST
    for name, row in figures["per_class"].items():
        assert row["read_as"][name] == max(row["read_as"].values())
        assert sum(row["read_as"].values()) == row["images"]


def outside(page: str) -> list[str]:
    """All that a browser would ask for."""
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import""", page)
    return [link for pair in links for link in pair if link and not link.startswith(("data:", "#", '"data:'))]


def test_the_page_is_whole_and_asks_for_nothing_outside_itself(evaluation: Evaluation) -> None:
    page = evaluation.page()
    assert outside(page) == []
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for part in ("Classes", "What they are read as", "The most and the least real", "Misread", "Drawn, or remembered?"):
        assert f"<h2>{part}</h2>" in page
    assert page.count("<svg") == 1
    assert "shuffled labels" in page
    assert page == evaluation.page()


def test_the_table_has_the_figures_of_the_json(evaluation: Evaluation) -> None:
    table, figures = evaluation.table(), evaluation.json()["metrics"]
    assert f"{figures['accuracy']:.2%}" in table
    assert f"{figures['frechet_train']:.3g}" in table
    assert "features-0" in table
    header, *rows = table.splitlines()[2:]
    end = header.index("figure") + len("figure")
    assert all(row[end - 1] != " " and row[end] == " " for row in rows), "columns must line up"


def test_copies_are_spoken_of_and_real_images_are_not(evaluation: Evaluation, reference: Reference) -> None:
    assert evaluation.verdict() is None
    train = reference.data.train
    copies = Sample(train.pixels[:200], train.labels[:200])
    verdict = replace(evaluation, sample=copies, score=score(copies, reference)).verdict()
    assert verdict.startswith("100.00% of the images")


def test_a_page_without_labels_or_floor_still_stands(
    evaluation: Evaluation, reference: Reference, real: Sample
) -> None:
    sample = Sample(few(real).pixels)
    page = replace(evaluation, sample=sample, score=score(sample, reference), floor=None, controls={}).page()
    assert "<h2>Images</h2>" in page
    assert "<h2>Classes</h2>" not in page
    assert "<h2>Misread</h2>" not in page


def test_a_page_shows_the_classes_that_there_are(evaluation: Evaluation, reference: Reference, real: Sample) -> None:
    info = reference.data.info.model_copy(update={"classes": tuple(f"class {i}" for i in range(25))})
    data = Dataset(reference.data.train, reference.data.test, info)
    sample = Sample(few(real).pixels, 20 + reference.data.test.labels[:400] % 5)
    scored = score(sample, quick(replace(reference, data=data)))
    page = replace(evaluation, sample=sample, reference=replace(reference, data=data), score=scored).page()
    width = re.search(r'alt="images of each class" width="(\d+)"', page)
    assert width.group(1) == str(2 * (5 * 30 + 2)), "a column for each of five"


def test_fewer_real_images_than_images_are_spoken_of(evaluation: Evaluation) -> None:
    assert f"{TEST:,} real images" in evaluation.table()
    assert "for a fair comparison" not in evaluation.table() + evaluation.page()
    fewer = replace(evaluation, frame={**evaluation.frame, "floor_images": 300})
    assert "300 real images" in fewer.table()
    assert "for a fair comparison take --n 300" in fewer.table()
    assert "for a fair comparison take --n 300" in fewer.page()


def test_which_of_many_are_taken_does_not_depend_on_their_order(real: Sample) -> None:
    one = some_of(real, 300, 0)
    other = some_of(Sample(real.pixels.flip(0), real.labels.flip(0)), 300, 0)

    def rows(sample: Sample) -> list[bytes]:
        return sorted(pixels.numpy().tobytes() for pixels in sample.pixels)

    assert len(one) == 300
    assert rows(one) == rows(other) != rows(some_of(real, 300, 1))
    assert some_of(real, TEST, 0) is real


def test_a_model_that_knows_no_labels_gives_images_without(reference: Reference) -> None:
    from pocketdiff.config import GAN_PRESETS
    from pocketdiff.generate import GanModel, build_gan

    for preset, config in GAN_PRESETS.items():
        model = GanModel(build_gan(config, reference.data.info).generator, config, reference.data.info)
        sample, seeds = draw(model, reference, 30, 2), range(2 << 32, (2 << 32) + 30)
        if preset == "gan":
            assert sample.labels is None
            assert torch.equal(sample.pixels, model([10] * 30, seeds))
        else:
            labels = labels_like(reference.data.train.labels, 30)
            assert sample.labels.tolist() == labels
            assert torch.equal(sample.pixels, model(labels, seeds))


def trial(reference: Reference, distance: float, accuracy: float, **sampling) -> Trial:
    way = SamplingConfig(**sampling)
    metrics = score(few(Sample(reference.data.test.pixels, reference.data.test.labels)), quick(reference)).metrics
    metrics["frechet_train"] = metrics["frechet_train"]._replace(value=distance)
    metrics["accuracy"] = metrics["accuracy"]._replace(value=accuracy)
    drawn = {"steps": way.steps, "sampler": way.sampler, "scale": way.scale, "network_evaluations": 2.0}
    return Trial(drawn, metrics, reference.data.test.pixels[:10])


def test_a_sweep_names_the_nearest_that_is_accurate_enough(evaluation: Evaluation, reference: Reference) -> None:
    trials = [
        trial(reference, 0.3, 0.984, scale=1.0, steps=4),
        trial(reference, 0.5, 0.986, scale=1.5, steps=4),
        trial(reference, 0.4, 0.99, scale=1.5, steps=10),
    ]
    sweep = Sweep(reference, trials, evaluation.floor, evaluation.frame)
    assert sweep.best() == trials[2]
    assert "dpmpp_2m, 10 steps, scale 1.5" in sweep.table().splitlines()[-1]
    assert replace(sweep, trials=trials[:1]).best() is None
    figures = json.loads(json.dumps(sweep.json(), allow_nan=False))
    assert [row["metrics"]["frechet_train"] for row in figures["trials"]] == [0.3, 0.5, 0.4]
    page = sweep.page()
    assert outside(page) == []
    assert page.count("<svg") == 1
    assert page.count("some of its images") == 3
