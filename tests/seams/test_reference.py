"""The cache of a data set's reference: features, and the nearest training images of the test images."""

from pathlib import Path

import pytest
import torch

from pocketdiff.data import Dataset, Images
from pocketdiff.evaluation import Sample, evaluate, reference as module
from pocketdiff.evaluation.classifiers import Classifiers, find_or_train_classifiers
from pocketdiff.evaluation.memorization import NearestImages
from pocketdiff.evaluation.reference import Reference


def part(images: Images, start: int, end: int) -> Images:
    return Images(images.pixels[start:end], images.labels[start:end])


@pytest.fixture(scope="module")
def nets(mnist: Dataset) -> Classifiers:
    return find_or_train_classifiers(mnist)


@pytest.fixture(scope="module")
def data(mnist: Dataset) -> Dataset:
    train, test = mnist.train, mnist.test
    return Dataset.from_arrays(train.pixels[:300], train.labels[:300], test.pixels[:150], test.labels[:150])


def never(*_: object) -> None:
    raise AssertionError("computed again")


def equal(one: Reference, other: Reference) -> bool:
    assert one.memory is not None
    assert other.memory is not None
    pairs = [(one.train_features, other.train_features), (one.test.mean, other.test.mean)]
    for mine, theirs in ((one.memory.pixels, other.memory.pixels), (one.memory.features, other.memory.features)):
        pairs += [*zip(mine.test, theirs.test, strict=True), (mine.typical, theirs.typical)]
        assert mine.threshold == theirs.threshold
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_second_reference_computes_nothing(data: Dataset, nets: Classifiers, tmp_path: Path, monkeypatch) -> None:
    first = Reference.of(data, nets, cache=tmp_path / "new" / "folder")
    monkeypatch.setattr(module, "features", never)
    monkeypatch.setattr(module, "nearest_features", never)
    monkeypatch.setattr(NearestImages, "of", never)
    calls: list[str] = []
    second = Reference.of(data, nets, cache=tmp_path / "new" / "folder", progress=lambda what, *_: calls.append(what))
    assert equal(first, second)
    assert calls == []
    assert not {"bounds", "energy"} & vars(second.memory.images).keys(), "only a query prepares the search"


def test_a_second_evaluation_scores_the_same(data: Dataset, nets: Classifiers, tmp_path: Path) -> None:
    sample, whats = Sample(data.test.pixels, data.test.labels), list[str]()
    alone = evaluate(sample, data, classifiers=nets)
    evaluations = [
        evaluate(sample, data, classifiers=nets, cache=tmp_path, progress=lambda what, *_: whats.append(what))
        for _ in range(2)
    ]
    assert alone.record.metrics == evaluations[0].record.metrics == evaluations[1].record.metrics
    assert alone.record.intervals == evaluations[1].record.intervals
    once = whats.index("features")
    assert set(whats[:once]) >= {"features of the training split", "nearest training image of each test image"}
    assert not any("split" in what or "each test" in what for what in whats[once:])


def test_a_sweeps_features_serve_an_evaluation(data: Dataset, nets: Classifiers, tmp_path: Path) -> None:
    Reference.of(data, nets, memorization=False, cache=tmp_path)
    calls: list[str] = []
    made = Reference.of(data, nets, cache=tmp_path, progress=lambda what, *_: calls.append(what))
    assert set(calls) == {"nearest training image of each test image"}
    assert equal(made, Reference.of(data, nets, cache=tmp_path))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "other data", "text"])
def test_a_damaged_or_foreign_file_is_made_anew(
    damage: str, data: Dataset, nets: Classifiers, mnist: Dataset, tmp_path: Path
) -> None:
    first = Reference.of(data, nets, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    if damage == "other data":
        other = Dataset.from_arrays(mnist.train.pixels[600:900], mnist.train.labels[600:900])
        Reference.of(other, nets, cache=tmp_path / "other")
        (foreign,) = (tmp_path / "other").iterdir()
        foreign.rename(path)
    else:
        flipped = raw[:-9] + bytes([raw[-9] ^ 16]) + raw[-8:]
        path.write_bytes({"cut": raw[:-1], "flipped": flipped, "text": b"hello"}[damage])
    assert equal(Reference.of(data, nets, cache=tmp_path), first)
    assert path.read_bytes() == raw


def test_features_of_another_network_or_of_fewer_images_are_not_used(
    data: Dataset, nets: Classifiers, tmp_path: Path
) -> None:
    Reference.of(data, nets, cache=tmp_path)
    other = nets._replace(features=nets.features._replace(sha256="0" * 64))
    Reference.of(data, other, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    fewer = Dataset(part(data.train, 0, 200), data.test, data.info)
    assert len(Reference.of(fewer, nets, cache=tmp_path).train_features) == 200


def test_a_cache_that_cannot_be_written_is_a_warning(data: Dataset, nets: Classifiers, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    Reference.of(data, nets, cache=tmp_path / "file" / "cache")
    assert "cannot be written" in caplog.text
    assert "next time the features of the real images are computed again" in caplog.text
