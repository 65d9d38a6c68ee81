"""Does generated data help a classifier: ``evaluate --augment``."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from pocketdiff.data import DataInfo, Dataset
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation import Sample, classifiers, evaluate, usefulness as module
from pocketdiff.evaluation.records import ScoreFile
from pocketdiff.evaluation.usefulness import usefulness


class Linear(nn.Sequential):
    """A classifier that learns in a moment."""

    adam_only = ()

    def __init__(self, info: DataInfo) -> None:
        linear = nn.Linear(28 * 28, len(info.classes), bias=False)
        nn.init.zeros_(linear.weight)
        super().__init__(nn.Flatten(), linear)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "build", lambda _, info: Linear(info))
    monkeypatch.setattr(module, "SIZES", (2, 5, 100))
    monkeypatch.setattr(module, "REPEATS", 2)
    monkeypatch.setattr(module, "_PASSES", 1)
    monkeypatch.setattr(module, "_MIN_LENGTH", 640)
    monkeypatch.setattr(classifiers, "_BATCH", 32)
    monkeypatch.setattr(classifiers, "_MEASURED", 0.0)


@pytest.fixture(scope="module")
def data(mnist: Dataset) -> Dataset:
    train, test = mnist.train, mnist.test
    return Dataset.from_arrays(train.pixels[:200], train.labels[:200], test.pixels[:150], test.labels[:150])


@pytest.fixture(scope="module")
def drawn(mnist: Dataset) -> Sample:
    """Real digits in place of generated ones."""
    return Sample(mnist.train.pixels[1000:1400], mnist.train.labels[1000:1400])


def test_the_table_has_a_row_for_each_size_with_intervals(
    mnist: Dataset, data: Dataset, drawn: Sample, tmp_path, caplog
) -> None:
    caplog.set_level("INFO")
    calls: list[tuple[int, int]] = []

    def note(what: str, done: int, total: int) -> None:
        if "help" in what:
            calls.append((done, total))

    nets = classifiers.find_or_train_classifiers(mnist)
    evaluation = evaluate(drawn, data, augment=True, classifiers=nets, progress=note)
    found = evaluation.record.usefulness
    assert [(row.per_class, row.images, row.subsets) for row in found.rows] == [(2, 20, 2), (5, 50, 2), (None, 200, 1)]
    assert found.left_out == (100,)
    assert found.generated == 400
    for row in found.rows:
        assert list(row.metrics) == ["real", "jittered", "generated"]
        assert all(row.estimate(key).low < row.estimate(key).value < row.estimate(key).high for key in row.metrics)
    first = found.rows[0]
    assert first.estimate("generated").value > first.estimate("real").value + 0.05, (
        "400 more digits help more than 20 alone"
    )
    assert len({total for _, total in calls}) == 1
    assert all(later > before for (before, _), (later, _) in pairwise(calls))
    assert calls[-1] == (calls[0][1], calls[0][1])
    assert "training 15 classifiers will take about" in caplog.text
    table = evaluation.table()
    assert all(words in table for words in ("2 per class", "5 per class", "all 200", "with 400 generated"))
    assert "Not tried: 100 per class" in table
    assert "Does it help a classifier?" in evaluation.page()
    path = tmp_path / "score.json"
    path.write_text(evaluation.record.model_dump_json())
    assert ScoreFile.read(path).usefulness == found
    older = evaluation.record.model_dump(mode="json")
    del older["usefulness"]
    assert ScoreFile.model_validate(older).usefulness is None


def test_the_intervals_cover_all_subsets(data: Dataset, drawn: Sample, monkeypatch) -> None:
    monkeypatch.setattr(module, "SIZES", (5,))
    both = usefulness(drawn, data).rows[0]
    monkeypatch.setattr(module, "REPEATS", 1)
    one = usefulness(drawn, data).rows[0]
    assert both.estimate("real").low <= one.estimate("real").low
    assert both.estimate("real").high >= one.estimate("real").high


def test_subsets_are_balanced_and_differ(data: Dataset) -> None:
    labels = data.train.labels
    subsets = [module._subset(labels, 5, seed, repeat) for seed, repeat in ((0, 0), (0, 1), (1, 0))]
    assert all(labels[part].bincount().tolist() == [5] * 10 for part in subsets)
    assert len({tuple(part.sort().values.tolist()) for part in subsets}) == 3


def test_the_order_of_the_images_does_not_matter(data: Dataset, drawn: Sample, monkeypatch) -> None:
    monkeypatch.setattr(module, "SIZES", ())
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    assert usefulness(drawn, data) == usefulness(drawn.at(order), data)


def test_images_without_labels_are_refused_before_any_work(data: Dataset, drawn: Sample) -> None:
    def never(what: str, _done: int, _total: int) -> None:
        raise AssertionError(what)

    with pytest.raises(EvaluationError, match="augment: mine has no labels"):
        evaluate(Sample(drawn.pixels), data, augment=True, name="mine", progress=never)
    with pytest.raises(EvaluationError, match="without labels"):
        usefulness(Sample(drawn.pixels), data, progress=never)
