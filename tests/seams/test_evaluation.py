"""Evaluations and sweeps through the library: tables, pages, JSON and what they say."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from pocketdiff.checkpoint import with_sampling
from pocketdiff.data import Dataset, Images
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation import Evaluation, Sample, ScoreFile, Sweep, classifiers, evaluate, sweep
from pocketdiff.evaluation.classifiers import Classifiers, find_or_train_classifiers
from pocketdiff.evaluation.records import SweepFile, TrialRecord
from pocketdiff.evaluation.sample import labels_like
from pocketdiff.methods import PRESETS
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.model import ImageModel
from tests.helpers import model_of, trained

TEST = 200


@pytest.fixture(scope="module")
def nets(mnist: Dataset) -> Classifiers:
    return find_or_train_classifiers(mnist)


@pytest.fixture(scope="module")
def data(mnist: Dataset) -> Dataset:
    """Some of MNIST."""
    train, test = mnist.train, mnist.test
    return replace(
        mnist,
        train=Images(train.pixels[:500], train.labels[:500]),
        test=Images(test.pixels[:TEST], test.labels[:TEST]),
    )


@pytest.fixture(scope="module")
def model(data: Dataset) -> ImageModel:
    """A diffusion model after a few steps."""
    config = DiffusionConfig.model_validate({
        "images": 300, "batch": 20, "net": {"kind": "unet", "widths": (8, 16), "blocks": 1, "embedding": 16},
        "sampling": {"steps": 2},
    })  # fmt: skip
    return model_of(trained(config, data)[0], config, data)


@pytest.fixture(scope="module")
def gan(data: Dataset) -> ImageModel:
    """A plain GAN, which knows no labels, after a few steps."""
    config = PRESETS["gan"].model_copy(update={"images": 200, "epochs": None, "batch": 20})
    return model_of(trained(config, data)[0], config, data)


@pytest.fixture(scope="module")
def real(data: Dataset, nets: Classifiers) -> Evaluation:
    """The test split as images of unknown origin."""
    test = data.test
    return evaluate(
        Sample(test.pixels, test.labels), data, controls=True, name="<script>alert(1)</script>", classifiers=nets
    )


@pytest.fixture(scope="module")
def drawn(model: ImageModel, data: Dataset, nets: Classifiers) -> Evaluation:
    return evaluate(model, data, n=150, seed=3, name="a run", classifiers=nets)


def never(what: str, _done: int, _total: int) -> None:
    """A progress that no work may reach."""
    raise AssertionError(what)


def outside(page: str) -> list[str]:
    """Everything that a browser would load."""
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import""", page)
    return [link for pair in links for link in pair if link and not link.startswith(("data:", "#", '"data:'))]


def test_the_test_split_scores_the_real_baseline(real: Evaluation) -> None:
    record = real.record
    for name, value in record.metrics.items():
        if name != "frechet_test":
            assert value == record.real_baseline[name], name
    assert record.metrics["frechet_test"] == pytest.approx(0, abs=1e-6)
    assert set(record.controls) == {"noise", "blurred", "shuffled_labels"}
    for row in record.per_class.values():
        assert row.metrics == row.real_baseline


@pytest.mark.slow
def test_the_real_baseline_of_mnist_is_as_documented(mnist: Dataset, nets: Classifiers) -> None:
    metrics = evaluate(Sample(mnist.test.pixels, mnist.test.labels), mnist, classifiers=nets).record.metrics
    assert metrics["frechet_train"] == pytest.approx(0.0938, rel=0.02)
    assert metrics["accuracy"] == pytest.approx(0.9975, abs=0.0025)
    assert metrics["memorized_share"] == pytest.approx(0.01, abs=2e-4)


def test_the_images_of_a_model_are_those_that_it_draws(
    drawn: Evaluation, model: ImageModel, data: Dataset, nets: Classifiers
) -> None:
    labels = labels_like(data.train.labels, 150)
    images = model.generate(labels, range(3 << 32, (3 << 32) + 150))
    assert torch.equal(drawn.sample.pixels, images)
    again = evaluate(Sample(images, torch.tensor(labels)), data, seed=3, classifiers=nets).record
    assert again.metrics == drawn.record.metrics
    assert again.intervals == drawn.record.intervals
    assert again.provenance.drawing is None


def test_the_provenance_reproduces_a_score(
    drawn: Evaluation, model: ImageModel, data: Dataset, nets: Classifiers
) -> None:
    p = drawn.record.provenance
    assert (p.target, p.n, p.seed, p.data, p.data_sha256) == ("a run", 150, 3, "mnist", data.info.sha256)
    assert (p.drawing.how, p.drawing.sampling) == (model.how(), model.sampling_facts())
    assert (p.drawing.sampling.steps, p.drawing.sampling.nfe) == (2, 4)
    assert (p.feature_network.name, p.label_network.sha256) == (nets.features.name, nets.reader.sha256)
    assert (p.k, p.compared_with, p.baseline_images) == (5, 150, 150)
    assert 0 < p.drawing.seconds < p.seconds


def test_the_seed_chooses_a_subset_of_more_images(data: Dataset, nets: Classifiers) -> None:
    sample = Sample(data.test.pixels, data.test.labels)
    one, other, again = (
        evaluate(sample, data, n=130, seed=seed, classifiers=nets).record.metrics for seed in (0, 1, 0)
    )
    assert one == again != other


def test_a_model_without_labels_has_no_accuracy_and_no_classes(
    gan: ImageModel, data: Dataset, nets: Classifiers
) -> None:
    evaluation = evaluate(gan, data, n=128, seed=3, classifiers=nets)
    assert evaluation.record.metrics["accuracy"] is None
    assert evaluation.record.metrics["frechet_classes"] is None
    assert evaluation.record.per_class == {}
    facts = evaluation.record.provenance.drawing.sampling
    assert (facts.sampler, facts.steps, facts.scale, facts.nfe) == (None, None, None, 1)
    for text in ("<h2>Classes</h2>", "<h2>Misread</h2>", "Confusion matrix", "label accuracy"):
        assert text not in evaluation.page()
    assert "label accuracy" not in evaluation.table()


def test_the_classification_accuracy_score(data: Dataset, nets: Classifiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "_MIN_LENGTH", 2500)
    sample = Sample(data.test.pixels, data.test.labels)
    evaluation = evaluate(sample, data, cas=True, classifiers=nets)
    for key in ("cas", "cas_real"):
        assert evaluation.record.metrics[key] == pytest.approx(0.65, abs=0.35)
    assert "train on these, test on real" in evaluation.table()


def test_a_small_test_split_gives_no_baseline(data: Dataset, nets: Classifiers) -> None:
    few = replace(data, test=Images(data.test.pixels[:50], data.test.labels[:50]))
    evaluation = evaluate(Sample(data.test.pixels), few, controls=True, classifiers=nets)
    record = evaluation.record
    assert (record.real_baseline, record.controls, record.metrics["frechet_test"]) == ({}, {}, None)
    assert "<h2>Scores</h2>" in evaluation.page()
    for text in (evaluation.table(), evaluation.page(), record.verdict):
        assert "None: it needs 128 real test images to compare with, and the data set has 50." in text
    assert "<h2>Memorization</h2>" not in evaluation.page()
    labelled = evaluate(Sample(data.test.pixels, data.test.labels), few, classifiers=nets)
    assert "<h2>Classes</h2>" in labelled.page()


def test_copies_and_blank_images_cause_a_warning(data: Dataset, nets: Classifiers, caplog) -> None:
    evaluate(Sample(data.train.pixels[:150], data.train.labels[:150]), data, classifiers=nets)
    assert "100.00% of the images are as near to a training image" in caplog.text


def test_progress_is_reported_and_can_stop_the_work(data: Dataset, nets: Classifiers) -> None:
    calls: list[tuple[str, int, int]] = []

    def interrupt(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))
        if what == "reading labels":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Sample(data.test.pixels), data, classifiers=nets, progress=interrupt)
    assert {what for what, *_ in calls} >= {"features of the training split", "features", "reading labels"}
    assert all(0 <= done <= total for _, done, total in calls)


def test_bad_requests_are_refused(model: ImageModel, data: Dataset, nets: Classifiers) -> None:
    with pytest.raises(EvaluationError, match="n = 5: a score needs 128"):
        evaluate(model, data, n=5, classifiers=nets)
    with pytest.raises(EvaluationError, match="all equal"):
        evaluate(Sample(torch.zeros(200, 1, 28, 28, dtype=torch.uint8)), data, progress=never)


# Tables, pages, JSON


def test_the_json_is_the_record(real: Evaluation, drawn: Evaluation) -> None:
    for evaluation in (real, drawn):
        text = json.dumps(evaluation.json(), allow_nan=False)
        assert ScoreFile.model_validate_json(text) == evaluation.record
    record = real.record
    assert set(record.per_class) == set("0123456789")
    assert sum(row.images for row in record.per_class.values()) == TEST
    for name, row in record.per_class.items():
        assert row.read_as[name] == max(row.read_as.values())
        assert sum(row.read_as.values()) == row.images


def test_the_table_has_the_values_of_the_json(real: Evaluation) -> None:
    table, metrics = real.table(), real.record.metrics
    assert f"{metrics['accuracy']:.2%}" in table
    assert f"{metrics['frechet_train']:.3g}" in table
    verdict, _, headline, _, header, *rows = table.splitlines()
    assert verdict == f"Verdict: {real.record.verdict}" == "Verdict: Close to real."
    assert "features-7852666c" in headline
    rows = rows[: rows.index("")]
    assert re.split(" {2,}", header.strip()) == [
        "value", "95% interval", "200 real images", "noise", "blurred", "shuffled labels"
    ]  # fmt: skip
    end = header.index("value") + len("value")
    assert all(row[end - 1] != " " and row[end : end + 1] in {" ", ""} for row in rows), "columns must be aligned"


def test_classes_of_few_images_have_a_reason_in_place_of_a_distance(real: Evaluation) -> None:
    assert real.record.metrics["frechet_classes"] is None
    why = "10 of 10 classes have fewer than 128 images, here or in the training split"
    table, page = real.table(), real.page()
    assert re.search(r"^Fréchet distance within classes, mean +-$", table, re.MULTILINE)
    assert f"Fréchet distance within classes, mean: {why}." in table
    assert why in page
    header = re.search(r"<thead><tr><th>class</th>.*", page)
    assert "Fréchet distance" not in header.group(), "a column without values is left out"
    assert header.group().count("<th") == 5


def test_real_images_stand_beside_the_images_in_the_same_layout(drawn: Evaluation) -> None:
    page = drawn.page()
    grids = re.findall(r'<img src="([^"]*)" alt="images of each class" width="(\d+)">', page)
    assert len(grids) == 2
    (_, width), (_, real_width) = grids
    assert width == real_width
    assert grids[0][0] != grids[1][0]
    assert page.index("real images of the training split</figcaption>") < page.index("<h2>Scores</h2>")


def test_every_figure_has_a_label_for_narrow_screens(real: Evaluation, swept: Sweep) -> None:
    for page in (real.page(), swept.page()):
        figures = re.findall(r"<td[^>]*class=\"figure\"[^>]*>", page)
        assert figures
        assert all('data-label="' in figure for figure in figures)
    controls = real.page().split("label accuracy", 1)[1].partition("</tr>")[0]
    labels = re.findall(r'data-label="([^"]*)"', controls)
    assert labels == ["these images", "200 real images", "noise", "blurred", "shuffled labels"]


class Balance(HTMLParser):
    """Checks that every element is closed."""

    VOID = ("meta", "img", "br", "path", "use")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_every_element_is_closed(real: Evaluation, drawn: Evaluation, swept: Sweep) -> None:
    for page in (real.page(), drawn.page(), swept.page()):
        parser = Balance()
        parser.feed(re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))
        assert parser.open == []


def test_the_page_is_self_contained(real: Evaluation, drawn: Evaluation) -> None:
    assert outside(drawn.page()) == []
    assert "<h2>Misread</h2>" in drawn.page()
    page = real.page()
    assert outside(page) == []
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for part in ("Classes", "Confusion matrix", "Most and least realistic", "Memorization", "Provenance"):
        assert f"<h2>{part}</h2>" in page
    assert page.count("<svg") == 1
    assert "shuffled labels" in page
    assert page == real.page()


def test_the_confusion_matrix_counts_every_image(real: Evaluation) -> None:
    cells = re.findall(r'<td class="(right|wrong)[^>]*>(\d*)</td>', real.page())
    assert len(cells) == 100
    assert sum(int(count or 0) for _, count in cells) == TEST
    right = sum(int(count or 0) for kind, count in cells if kind == "right")
    assert right / TEST == real.record.metrics["accuracy"]


def test_fewer_real_images_than_images_cause_a_note(real: Evaluation) -> None:
    assert "for a fair comparison" not in real.table() + real.page()
    provenance = real.record.provenance.model_copy(update={"baseline_images": 130})
    fewer = replace(real, record=real.record.model_copy(update={"provenance": provenance}))
    for text in (fewer.table(), fewer.page()):
        assert "130 real images" in text
        assert "for a fair comparison use n = 130" in text


def test_a_page_shows_the_classes_that_occur(data: Dataset, nets: Classifiers) -> None:
    info = data.info.model_copy(update={"classes": tuple(f"class {i}" for i in range(25))})
    sample = Sample(data.test.pixels, 20 + data.test.labels % 5)
    page = evaluate(sample, replace(data, info=info), classifiers=nets).page()
    widths = re.findall(r'alt="images of each class" width="(\d+)"', page)
    assert widths == [str(2 * (5 * 30 + 2))] * 2, "one column for each of five classes, here and for real images"


# Sweeps


@pytest.fixture(scope="module")
def swept(model: ImageModel, data: Dataset, nets: Classifiers) -> Sweep:
    settings: list[dict[str, object]] = [{"steps": steps, "scale": scale} for steps in (2, 3) for scale in (1.0, 1.5)]
    settings.append({"scale": 1.5, "interval": (0.3, 3.0)})
    return sweep(ways(model, settings), data, n=128, classifiers=nets)


def ways(model: ImageModel, settings: Sequence[dict[str, object]]) -> list[ImageModel]:
    """The model with each of the settings."""
    return [with_sampling(model, model.sampling.model_copy(update=way)) for way in settings]


def test_a_sweep_scores_each_way_as_evaluate_does(
    swept: Sweep, model: ImageModel, data: Dataset, nets: Classifiers
) -> None:
    trials = swept.record.trials
    assert [(t.drawing.sampling.steps, t.drawing.sampling.scale) for t in trials[:4]] == [
        (2, 1.0), (2, 1.5), (3, 1.0), (3, 1.5)
    ]  # fmt: skip
    assert [t.drawing.sampling.nfe for t in trials[:4]] == [2, 4, 3, 6]
    (way,) = ways(model, [{"steps": 3, "scale": 1.5}])
    alone = evaluate(way, data, n=128, classifiers=nets).record
    for key, value in alone.metrics.items():
        assert trials[3].metrics[key] == (None if key.startswith("memorized") else value), key
    assert swept.record.real_baseline["frechet_train"] == alone.real_baseline["frechet_train"]


def test_a_sweep_logs_each_trial_and_numbers_its_progress(
    model: ImageModel, data: Dataset, nets: Classifiers, caplog
) -> None:
    caplog.set_level("INFO")
    calls: list[str] = []
    models = ways(model, [{"scale": 1.0}, {"scale": 2.0}])
    sweep(models, data, n=128, classifiers=nets, progress=lambda what, *_: calls.append(what))
    assert {"1 of 2, drawing", "2 of 2, drawing"} <= set(calls)
    for way in models:
        assert f"{way.how()}: Fréchet distance to the training split " in caplog.text


def test_a_sweeps_table_page_and_plot_name_every_setting(swept: Sweep) -> None:
    table, page = swept.table(), swept.page()
    assert SweepFile.model_validate_json(json.dumps(swept.json(), allow_nan=False)) == swept.record
    for trial in swept.record.trials:
        assert trial.drawing.how in table
        assert trial.drawing.how in page
    assert outside(page) == []
    assert page.count("<svg") == 1
    assert page.count("some of its images") == 5
    labels = {line.get_label() for axis in swept.plot().axes for line in axis.lines}
    assert {"dpmpp_2m, scale 1 (w = 0)", "real images"} <= labels
    assert any("guidance from 0.3 to 3" in str(label) for label in labels)
    assert all("steps" not in str(label) for label in labels)


def test_a_guide_stays_in_the_legend_whatever_its_path(swept: Sweep) -> None:
    trials = []
    for trial in swept.record.trials[:4]:
        how = f"{trial.drawing.how}, guided by runs/few steps"
        trials.append(trial.model_copy(update={"drawing": trial.drawing.model_copy(update={"how": how})}))
    plot = replace(swept, record=swept.record.model_copy(update={"trials": trials})).plot()
    assert plot.axes[0].lines[0].get_label() == "dpmpp_2m, scale 1 (w = 0), guided by runs/few steps"


def test_a_sweep_over_scales_alone_has_scales_on_its_axis(swept: Sweep) -> None:
    record = swept.record.model_copy(update={"trials": swept.record.trials[:2]})
    plot = replace(swept, record=record).plot()
    assert plot.axes[0].get_xlabel() == "guidance scale"
    assert plot.axes[0].lines[0].get_xdata().tolist() == [1.0, 1.5]


def test_a_sweep_names_the_nearest_trial_that_is_accurate_enough(swept: Sweep) -> None:
    def trial(number: int, distance: float, accuracy: float) -> TrialRecord:
        old = swept.record.trials[number]
        metrics = old.metrics | {"frechet_train": distance, "accuracy": accuracy}
        return old.model_copy(update={"metrics": metrics})

    def of(trials: Sequence[TrialRecord], accuracy: float = 0.996) -> Sweep:
        p = swept.record.provenance
        network = p.label_network.model_copy(update={"accuracy": accuracy})
        provenance = p.model_copy(update={"label_network": network})
        return replace(swept, record=swept.record.model_copy(update={"trials": trials, "provenance": provenance}))

    trials = [trial(0, 0.3, 0.984), trial(1, 0.5, 0.986), trial(2, 0.4, 0.99)]
    assert of(trials).best() == trials[2]
    said = f"The smallest distance with a label accuracy of 98.5% or more: {trials[2].drawing.how}."
    assert of(trials).table().splitlines()[0] == f"Verdict: {said}"
    assert said in of(trials).page()
    none = of(trials[:1])
    assert none.best() is None
    said = f"No setting has a label accuracy of 98.5% or more: the highest is 98.4%, with {trials[0].drawing.how}."
    assert none.table().startswith(f"Verdict: {said} Try a higher guidance scale, or train longer.\n")
    assert said in none.page()
    assert of(trials, accuracy=0.9).best() == trials[0], "the bar follows the accuracy of real images"
    bare = [one.model_copy(update={"metrics": one.metrics | {"accuracy": None}}) for one in trials]
    assert of(bare).best() == bare[0]
    assert of(bare).verdict() == f"The smallest distance: {bare[0].drawing.how}."


def test_a_gan_cannot_be_swept(gan: ImageModel, data: Dataset, nets: Classifiers) -> None:
    for models in ([gan, gan], []):
        with pytest.raises(EvaluationError, match="a sweep needs models with sampling settings"):
            sweep(models, data, n=128, classifiers=nets)


def test_a_single_model_and_a_single_step_can_be_swept(model: ImageModel, data: Dataset, nets: Classifiers) -> None:
    (way,) = ways(model, [{"steps": 1}])
    (trial,) = sweep(way, data, n=128, classifiers=nets).record.trials
    assert ", 1 step, " in trial.drawing.how


def test_a_file_is_scored_against_its_own_data(
    model: ImageModel, data: Dataset, nets: Classifiers, tmp_path, monkeypatch
) -> None:
    model.save(tmp_path / "m.safetensors")
    monkeypatch.setattr("pocketdiff.evaluation.report.own_data", lambda _: data)
    found = evaluate(str(tmp_path / "m.safetensors"), n=128, classifiers=nets).record
    assert found.provenance.target == str(tmp_path / "m.safetensors")
    assert found.metrics == evaluate(model, data, n=128, classifiers=nets).record.metrics
    with pytest.raises(EvaluationError, match="images are scored against a data set: give one"):
        evaluate(Sample(data.test.pixels), classifiers=nets, progress=never)
