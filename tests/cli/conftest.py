"""Fixtures of the command line's tests."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pocketdiff.cli import run
from pocketdiff.data import Dataset, load_data
from pocketdiff.evaluation import classifiers
from tests.cli.helpers import SMALL, train_words


@pytest.fixture(scope="session", autouse=True)
def quick_summaries_of_shared_runs() -> Iterator[None]:
    """The measurement of the machine's peak takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketdiff.run.run.fp32_peak", lambda device: 1e11)
        yield


@pytest.fixture(scope="session")
def finished(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny diffusion model, which no test changes."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert run(train_words(tiny_file, out)) == 0
    return out


@pytest.fixture(scope="session")
def file(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set with a test split, as a file."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    parts = {"images": mnist.train.pixels[:500, 0], "labels": mnist.train.labels[:500]}
    parts |= {"test_images": mnist.test.pixels[:200, 0], "test_labels": mnist.test.labels[:200]}
    np.savez(path, **{name: part.numpy() for name, part in parts.items()})  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="session")
def digits(file: Path) -> Dataset:
    """The data set of `file`."""
    return load_data(str(file))


@pytest.fixture(scope="session")
def cache(digits: Dataset, mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder in which MNIST's classifiers stand in for those of the small data set."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for kind in classifiers.KINDS:
            shipped = classifiers.find_classifier(kind, mnist.info, [classifiers.SHIPPED])
            found = classifiers.finished(kind, shipped.net, digits)
            classifiers.save_classifier(folder / "pocketdiff" / "classifiers", found, digits.info)
        yield folder


@pytest.fixture(scope="session")
def trained(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the small data set."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert run(["train", "--preset", "quick", "--data", str(file), "--out", str(out), *SMALL.split()]) == 0
    return out


@pytest.fixture(scope="session")
def images(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split as a file of images."""
    path = tmp_path_factory.mktemp("images") / "test.npz"
    np.savez(path, images=digits.test.pixels[:, 0].numpy(), labels=digits.test.labels.numpy())
    return path


@pytest.fixture(scope="session")
def unlabelled(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GAN that learned no labels."""
    out = tmp_path_factory.mktemp("runs") / "gan"
    words = "train --preset gan --generator 16 --discriminator 16 --images 40 --batch 20"
    assert run([*words.split(), "--data", str(file), "--out", str(out)]) == 0
    return out
