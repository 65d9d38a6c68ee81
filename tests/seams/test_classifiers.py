"""The two classifiers: the shipped ones, features and labels, files, and training."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from pocketdiff.data import DataInfo, Dataset, Images, to_data_units
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation import classifiers
from pocketdiff.evaluation.classifiers import (
    KINDS,
    NUM_FEATURES,
    SHIPPED,
    Classifier,
    build,
    features,
    find_classifier,
    find_or_train_classifiers,
    finished,
    read,
    save_classifier,
    train_classifier,
    training_length,
)
from pocketdiff.optim import learning_rate


@pytest.fixture(scope="module")
def shipped(mnist: Dataset) -> dict[str, Classifier]:
    found = {kind: find_classifier(kind, mnist.info, [SHIPPED]) for kind in KINDS}
    return {kind: classifier for kind, classifier in found.items() if classifier is not None}


@pytest.fixture(scope="module")
def readings(mnist: Dataset, shipped: dict[str, Classifier]) -> dict[str, Tensor]:
    """The class that each reads in every test image."""
    return {kind: torch.cat(list(read(classifier.net, mnist.test.pixels))) for kind, classifier in shipped.items()}


def info(channels: int, height: int, width: int, classes: int) -> DataInfo:
    names = tuple(str(label) for label in range(classes))
    return DataInfo(
        channels=channels, height=height, width=width, classes=names, ink=False, train_images=10, test_images=10,
        sha256="0123456789abcdef" * 4,
    )  # fmt: skip


def seen(net: classifiers.FeatureNet | classifiers.Reader, pixels: Tensor) -> Tensor:
    return torch.cat(list(features(net, pixels)))


# The shipped ones


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_classifiers_are_accurate(
    kind: str, mnist: Dataset, shipped: dict[str, Classifier], readings: dict[str, Tensor]
) -> None:
    share = (readings[kind] == mnist.test.labels).double().mean().item()
    assert share >= 0.995
    assert share == pytest.approx(
        shipped[kind].accuracy, abs=1.5e-4
    )  # Rounding on another machine may change one image.
    assert not shipped[kind].net.training
    assert not any(parameter.requires_grad for parameter in shipped[kind].net.parameters())


def test_the_shipped_classifiers_are_small() -> None:
    paths = sorted(SHIPPED.glob("*.safetensors"))
    assert [path.name.partition("-")[0] for path in paths] == ["features", "reader"]
    assert all(path.stat().st_size < 1_500_000 for path in paths)


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_is_the_kind_and_the_start_of_the_hash(kind: str, shipped: dict[str, Classifier]) -> None:
    assert shipped[kind].name == f"{kind}-{shipped[kind].sha256[:8]}"
    assert len(bytes.fromhex(shipped[kind].sha256)) == 32


def test_the_two_classifiers_have_different_architectures(shipped: dict[str, Classifier]) -> None:
    shapes = [
        {tuple(weight.shape) for weight in shipped[kind].net.parameters() if weight.ndim > 1}
        for kind in ("features", "reader")
    ]
    assert shapes[0].isdisjoint(shapes[1])


def test_the_two_classifiers_misread_different_images(mnist: Dataset, readings: dict[str, Tensor]) -> None:
    wrong = {kind: reading != mnist.test.labels for kind, reading in readings.items()}
    shared = int((wrong["features"] & wrong["reader"]).sum())
    assert shared < 0.75 * min(int(errors.sum()) for errors in wrong.values())


def test_the_shipped_classifiers_are_not_used_for_other_data(tiny_data: Dataset) -> None:
    assert [find_classifier(kind, tiny_data.info, [SHIPPED]) for kind in KINDS] == [None, None]


# Features


@pytest.mark.parametrize("kind", KINDS)
def test_the_features_of_an_image_do_not_depend_on_other_images(
    kind: str, mnist: Dataset, shipped: dict[str, Classifier]
) -> None:
    net, pixels = shipped[kind].net, mnist.test.pixels[:503]
    whole = seen(net, pixels)
    order = torch.randperm(503, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seen(net, pixels[:1]), whole[:1])
    assert torch.equal(seen(net, pixels[[7, 7, 502]]), whole[[7, 7, 502]])
    assert torch.equal(seen(net, pixels[order]), whole[order])


@pytest.mark.parametrize("kind", KINDS)
def test_the_label_of_an_image_does_not_depend_on_other_images(
    kind: str, mnist: Dataset, shipped: dict[str, Classifier], readings: dict[str, Tensor]
) -> None:
    chosen = torch.tensor([9999, 3, 4500])
    assert torch.equal(torch.cat(list(read(shipped[kind].net, mnist.test.pixels[chosen]))), readings[kind][chosen])


def test_features_have_mean_0_and_variance_1(mnist: Dataset, shipped: dict[str, Classifier]) -> None:
    found = seen(shipped["features"].net, mnist.train.pixels[:4000])
    assert found.shape == (4000, NUM_FEATURES)
    assert found.isfinite().all()
    assert found.mean(0).abs().max() < 0.5
    assert found.var(0).min() > 0.5
    assert found.var(0).max() < 2


def test_features_are_not_redundant(mnist: Dataset, shipped: dict[str, Classifier]) -> None:
    correlations = seen(shipped["features"].net, mnist.test.pixels[:1000]).T.corrcoef() - torch.eye(NUM_FEATURES)
    assert correlations.abs().max() < 0.98


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "classes"), [(16, 16, 2), (17, 22, 10), (27, 33, 3), (64, 64, 37), (16, 64, 5)]
)
def test_classifiers_take_any_image_shape(kind: str, channels: int, height: int, width: int, classes: int) -> None:
    net = build(kind, info(channels, height, width, classes)).eval()
    x = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits = net(x)
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])
    torch.testing.assert_close(net.head(net.features(x)), logits)
    assert net.train()(x).isfinite().all()


def test_the_last_row_and_column_of_odd_sizes_matter() -> None:
    net = build("features", info(1, 17, 19, 2)).eval()
    x = torch.zeros(1, 1, 17, 19)
    for edge in ((..., 16, slice(None)), (..., slice(None), 18)):
        other = x.clone()
        other[edge] = 1
        assert not torch.equal(net.features(x), net.features(other))


# Files


@pytest.fixture
def kept(tiny_data: Dataset, tmp_path: Path) -> tuple[Path, Classifier]:
    """An untrained classifier in a folder."""
    classifier = finished("features", build("features", tiny_data.info), tiny_data)
    return save_classifier(tmp_path / "first", classifier, tiny_data.info), classifier


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_classifier_is_found(kind: str, tiny_data: Dataset, tmp_path: Path) -> None:
    net = build(kind, tiny_data.info)
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    made = finished(kind, net, tiny_data)
    save_classifier(tmp_path / "new" / "folder", made, tiny_data.info)
    found = find_classifier(kind, tiny_data.info, [tmp_path / "new" / "folder"])
    assert found is not None
    assert (found.kind, found.name, found.accuracy, found.sha256) == (kind, made.name, made.accuracy, made.sha256)
    assert found.net.state_dict().keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(found.net.state_dict()[name], tensor)
    assert torch.equal(seen(found.net, tiny_data.test.pixels), seen(made.net, tiny_data.test.pixels))


def test_accuracy_is_the_share_of_correct_test_images(tiny_data: Dataset) -> None:
    net = build("features", tiny_data.info)
    nn.init.zeros_(net.head.weight)
    with torch.no_grad():
        net.head.bias.copy_(torch.arange(10) == 3)
    assert finished("features", net, tiny_data).accuracy == 1 / 10


def test_the_hash_covers_every_weight(tiny_data: Dataset) -> None:
    net = build("features", tiny_data.info)
    first = finished("features", net, tiny_data)
    assert finished("features", build("features", tiny_data.info), tiny_data).sha256 == first.sha256
    net.get_buffer("deep.2.1.running_var")[5] += 1e-6
    other = finished("features", net, tiny_data)
    assert other.accuracy == first.accuracy
    assert other.sha256 != first.sha256


def with_metadata(**changed: object) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        about = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["pocketdiff"])
        return save(load(raw), {"pocketdiff": json.dumps(about | changed)})

    return change


def with_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[bytes], bytes]:
    def changed(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        tensors, metadata = load(raw), json.loads(raw[8 : 8 + length])["__metadata__"]
        change(tensors)
        return save(tensors, metadata)

    return changed


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut in its header": lambda raw: raw[:100],
    "cut by a byte": lambda raw: raw[:-1],
    "longer by a byte": lambda raw: raw + b"\0",
    "noise": lambda raw: bytes(range(256)) * 40,
    "all zeros": lambda raw: bytes(len(raw)),
    "another accuracy": with_metadata(accuracy=0.999),
    "an accuracy that is not a number": with_metadata(accuracy="high"),
    "no accuracy": with_metadata(accuracy=None),
    "an accuracy that is too large": with_metadata(accuracy=10**400),
    "another hash": with_metadata(sha256="0" * 64),
    "no metadata": lambda raw: save(load(raw)),
    "metadata of another kind": lambda raw: save(load(raw), {"pocketdiff": "[1, 2]"}),
    "metadata that is not JSON": lambda raw: save(load(raw), {"pocketdiff": "{"}),
    "a tensor too few": with_tensors(lambda tensors: tensors.pop("head.bias")),
    "a tensor too many": with_tensors(lambda tensors: tensors.update(more=torch.zeros(3))),
    "a tensor of another type": with_tensors(lambda tensors: tensors.update({"head.bias": torch.zeros(10).half()})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_ignored(damage: str, kept: tuple[Path, Classifier], tiny_data: Dataset) -> None:
    path, classifier = kept
    raw = path.read_bytes()
    path.write_bytes(DAMAGE[damage](raw))
    assert find_classifier("features", tiny_data.info, [path.parent]) is None
    path.write_bytes(with_metadata()(raw))
    whole = find_classifier("features", tiny_data.info, [path.parent])
    assert whole is not None
    assert whole.sha256 == classifier.sha256


def test_a_flipped_bit_in_the_weights_is_detected(kept: tuple[Path, Classifier], tiny_data: Dataset) -> None:
    path, _ = kept
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for at in [start, len(raw) - 1, *torch.linspace(start, len(raw) - 1, 60).int().tolist()]:
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        assert find_classifier("features", tiny_data.info, [path.parent]) is None, f"bit {at % 8} of byte {at}"


def test_a_flipped_bit_in_the_header_is_detected_or_harmless(kept: tuple[Path, Classifier], tiny_data: Dataset) -> None:
    path, classifier = kept
    raw = path.read_bytes()
    taken = 0
    for at in range(0, 8 + int.from_bytes(raw[:8], "little"), 37):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 7
        path.write_bytes(flipped)
        if found := find_classifier("features", tiny_data.info, [path.parent]):
            taken += 1
            assert (found.sha256, found.accuracy) == (classifier.sha256, classifier.accuracy)
    assert taken < 10


def test_the_next_folder_is_used_if_a_file_is_missing_or_damaged(
    kept: tuple[Path, Classifier], tiny_data: Dataset
) -> None:
    path, classifier = kept
    folders = [path.parent.parent / name for name in ("missing", "damaged", "changed", "folder", "first")]
    for folder, damage in zip(folders[1:3], ("cut by a byte", "another accuracy"), strict=True):
        folder.mkdir()
        (folder / path.name).write_bytes(DAMAGE[damage](path.read_bytes()))
    (folders[3] / path.name).mkdir(parents=True)
    assert find_classifier("features", tiny_data.info, folders[:4]) is None
    found = find_classifier("features", tiny_data.info, folders)
    assert found is not None
    assert found.sha256 == classifier.sha256
    assert find_classifier("features", tiny_data.info, []) is None


def test_the_first_folder_has_priority(kept: tuple[Path, Classifier], tiny_data: Dataset) -> None:
    path, first = kept
    net = build("features", tiny_data.info)
    nn.init.ones_(net.head.bias)
    second = finished("features", net, tiny_data)
    other = save_classifier(path.parent.parent / "second", second, tiny_data.info).parent
    assert first.sha256 != second.sha256
    for folders, expected in [([path.parent, other], first), ([other, path.parent], second)]:
        found = find_classifier("features", tiny_data.info, folders)
        assert found is not None
        assert found.sha256 == expected.sha256


def test_a_file_of_another_kind_or_other_data_is_ignored(kept: tuple[Path, Classifier], tiny_data: Dataset) -> None:
    path, _ = kept
    (path.parent / path.name.replace("features", "reader")).write_bytes(path.read_bytes())
    assert find_classifier("reader", tiny_data.info, [path.parent]) is None
    other = tiny_data.info.model_copy(update={"sha256": "0" * 64})
    (path.parent / f"features-of-{'0' * 16}.safetensors").write_bytes(path.read_bytes())
    assert find_classifier("features", other, [path.parent]) is None


# Training


class Spy(nn.Module):
    """A small classifier that records its inputs."""

    adam_only = ()

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(28 * 28, 10)
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return self.head(x.flatten(1))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training of three epochs, with batches that cross from one epoch to the next."""
    monkeypatch.setattr(classifiers, "_MIN_LENGTH", 1)
    monkeypatch.setattr(classifiers, "_EPOCHS", 3)
    monkeypatch.setattr(classifiers, "_BATCH", 16)
    monkeypatch.setattr(classifiers, "_MEASURED", 0.0)


def weights_after(net: nn.Module, data: Images, seed: int) -> Tensor:
    list(train_classifier(net, data, seed))
    return torch.cat([tensor.flatten().double() for tensor in net.state_dict().values()])


@pytest.mark.usefixtures("short")
def test_training_sees_each_image_once_per_epoch(tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    batch = Images.batch

    def noted(images: Images, indices: Tensor) -> tuple[Tensor, Tensor]:
        taken.extend(indices.tolist())
        return batch(images, indices)

    monkeypatch.setattr(Images, "batch", noted)
    counts = list(train_classifier(Spy(), tiny_data.train, seed=0))
    assert counts == [(seen, 120) for seen in (16, 32, 48, 64, 80, 96, 112, 120)]
    epochs = [taken[start : start + 40] for start in (0, 40, 80)]
    assert [sorted(order) for order in epochs] == [list(range(40))] * 3
    list(train_classifier(Spy(), tiny_data.train, seed=1))
    assert len({tuple(order) for order in [*epochs, taken[120:160]]}) == 4  # All in different orders.


@pytest.mark.parametrize("n", [1, 40, 12_500, 60_000])
def test_the_length_of_training(n: int) -> None:
    assert training_length(n) in {100_000, 8 * n}
    assert training_length(n) >= 100_000
    assert training_length(n) >= 8 * n


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_training(kind: str, tiny_data: Dataset) -> None:
    torch.manual_seed(1)
    net = build(kind, tiny_data.info)
    once = weights_after(net, tiny_data.train, 0)
    assert not net.training
    torch.manual_seed(2)
    assert torch.equal(weights_after(build(kind, tiny_data.info), tiny_data.train, 0), once)
    assert not torch.equal(weights_after(build(kind, tiny_data.info), tiny_data.train, 1), once)


@pytest.mark.parametrize("kind", KINDS)
def test_building_does_not_change_torchs_generator(kind: str) -> None:
    before = torch.random.get_rng_state()
    build(kind, info(1, 16, 16, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_digits(kind: str, mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "_MIN_LENGTH", 1)
    monkeypatch.setattr(classifiers, "_BATCH", 64)
    few = Images(mnist.train.pixels[:500], mnist.train.labels[:500])
    data = Dataset(few, Images(mnist.test.pixels[:1000], mnist.test.labels[:1000]), mnist.info)
    net = build(kind, data.info)
    *_, last = train_classifier(net, few, seed=0)
    assert last == (4000, 4000)
    assert finished(kind, net, data).accuracy > 0.8


def accuracies(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """The checks during training give these accuracies, then always the last."""
    given = iter(values)
    monkeypatch.setattr(classifiers, "_accuracy", lambda *_: next(given, values[-1]))


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate at each of 100 steps, with 20 checks; two checks without a better accuracy are a plateau."""
    found: list[float] = []
    monkeypatch.setattr(classifiers, "_BATCH", 4)
    monkeypatch.setattr(classifiers, "_CHECKS", 20)
    monkeypatch.setattr(classifiers, "_PATIENCE", 2)
    monkeypatch.setattr(classifiers, "take_step", lambda _, rate: found.append(rate))
    return found


def test_training_ends_soon_after_a_plateau(tiny_data: Dataset, rates: list[float], monkeypatch) -> None:
    accuracies(monkeypatch, 0.5, 0.6, 0.7, 0.7, 0.6)
    steps = list(train_classifier(Spy(), tiny_data.train, 0, length=400, plateau=True))
    assert steps[23] == (96, 400)
    assert steps[24] == (100, 148)  # After five checks, two of them not better; the last third begins.
    assert len(steps) == len(rates) == 37
    assert rates[5:26] == [1.0] * 21
    assert all(later < before for before, later in pairwise(rates[25:]))
    assert rates[-1] == pytest.approx(1 / 12)


def test_training_is_never_longer_than_planned(tiny_data: Dataset, rates: list[float], monkeypatch) -> None:
    accuracies(monkeypatch, *torch.linspace(0, 1, 20).tolist())
    *_, last = train_classifier(Spy(), tiny_data.train, 0, length=400, plateau=True)
    assert last == (400, 400)
    assert rates[68:72] == pytest.approx([1, 1, 1, 1 - 4 / 120])


@pytest.mark.usefixtures("rates")
def test_held_out_images_are_not_learned_before_the_plateau(tiny_data: Dataset, monkeypatch) -> None:
    taken: list[list[int]] = []
    batch = Images.batch

    def noted(images: Images, indices: Tensor) -> tuple[Tensor, Tensor]:
        taken.append(indices.tolist())
        return batch(images, indices)

    monkeypatch.setattr(Images, "batch", noted)
    accuracies(monkeypatch, *torch.linspace(0, 1, 20).tolist())
    list(train_classifier(Spy(), tiny_data.train, 0, length=800, plateau=True))
    before, after = ({index for some in part for index in some} for part in (taken[:140], taken[140:]))
    assert len(before) == 36
    assert len(after) == 40


def test_a_fixed_length_has_no_checks_and_a_linear_fall(tiny_data: Dataset, rates: list[float], monkeypatch) -> None:
    monkeypatch.setattr(classifiers, "_accuracy", None)
    list(train_classifier(Spy(), tiny_data.train, 0, length=400))
    assert rates == [learning_rate(seen / 400, 0.05) for seen in range(0, 400, 4)], "as the shipped ones were trained"


def test_without_jitter_the_images_are_unchanged(tiny_data: Dataset) -> None:
    net = Spy()
    list(train_classifier(net, tiny_data.train, 0, length=64, jitter=False))
    apart = torch.cdist(torch.cat(net.shown).flatten(1), to_data_units(tiny_data.train.pixels).flatten(1))
    assert apart.min(1).values.max() < 0.05


@pytest.mark.usefixtures("short")
def test_training_images_are_jittered_and_in_data_units(tiny_data: Dataset) -> None:
    net = Spy()
    list(train_classifier(net, tiny_data.train, seed=0))
    shown = torch.cat(net.shown)
    assert shown.shape == (120, 1, 28, 28)
    assert shown.min().item() == pytest.approx(-1, abs=1e-5)
    assert 0.9 < shown.max() < 1 + 1e-5
    assert torch.cdist(shown.flatten(1), to_data_units(tiny_data.train.pixels).flatten(1)).min() > 0.1


def test_jitter_shifts_by_up_to_two_pixels() -> None:
    rows, columns = torch.arange(28.0)[:, None] - 13.5, torch.arange(32.0) - 15.5
    blob = torch.exp(-(rows.square() + columns.square()) / 8)[None, None]
    moved = classifiers._jittered(blob.repeat(1000, 1, 1, 1), 0, 0)[:, 0]
    weight = moved.sum((1, 2))
    for along in (rows, columns):
        centres = (moved * along).sum((1, 2)) / weight
        assert 1.9 < centres.max() < 2.6  # Two pixels, then scaled and turned.
        assert -2.6 < centres.min() < -1.9
        assert centres.std() == pytest.approx(2 / 3**0.5, rel=0.1)


def test_jitter_differs_between_images_steps_and_seeds() -> None:
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1, 1)
    first = classifiers._jittered(x, 0, 0)
    assert torch.equal(first, classifiers._jittered(x, 0, 0))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, classifiers._jittered(x, 0, 1))
    assert not torch.equal(first, classifiers._jittered(x, 1, 0))
    assert F.mse_loss(first, x) > 0


# Found, or trained and kept


def never(what: str, _done: int, _total: int) -> None:
    """A progress that no work may reach."""
    raise AssertionError(what)


@pytest.fixture
def digits(mnist: Dataset) -> Dataset:
    """A small data set without classifiers."""
    return Dataset.from_arrays(mnist.train.pixels[1000:1300], mnist.train.labels[1000:1300])


def test_mnists_classifiers_are_the_shipped_ones(mnist: Dataset, shipped: dict[str, Classifier], tmp_path) -> None:
    found = find_or_train_classifiers(mnist, tmp_path)
    assert [classifier.sha256 for classifier in found] == [shipped[kind].sha256 for kind in KINDS]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short")
def test_missing_classifiers_are_trained_once_and_kept(digits: Dataset, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    calls: list[tuple[str, int, int]] = []
    first = find_or_train_classifiers(digits, tmp_path / "cache", lambda *call: calls.append(call))
    assert {what for what, *_ in calls} == {"training both classifiers"}
    assert all(b[1] > a[1] and b[2] <= a[2] for a, b in pairwise(calls)), "one bar, whose total never grows"
    assert calls[-1][1] == calls[-1][2]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert re.fullmatch(
        r"training both classifiers of these data takes at most about \d+ (s|min), once for all evaluations",
        caplog.messages[0],
    )
    second = find_or_train_classifiers(digits, tmp_path / "cache", never)
    assert [classifier.sha256 for classifier in second] == [classifier.sha256 for classifier in first]


@pytest.mark.usefixtures("short")
def test_a_cache_that_cannot_be_written_is_a_warning(digits: Dataset, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    found = find_or_train_classifiers(digits, tmp_path / "file" / "cache")
    assert len(found) == 2
    assert "the classifier cannot be saved there" in caplog.text


def test_too_few_training_images_are_refused_before_training(tiny_data: Dataset) -> None:
    with pytest.raises(EvaluationError, match="the data have 40 training images, but a score needs 128 or more"):
        find_or_train_classifiers(tiny_data, progress=never)
