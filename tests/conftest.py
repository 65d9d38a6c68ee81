"""Fixtures. Every test runs the package with its shapes and types checked: the hook must be installed first."""

import os
import pkgutil
from pathlib import Path

from jaxtyping import install_import_hook

import pocketdiff

# All modules but samplers: torch.no_grad must recognize their generators, and the hook would hide them.
checked = [f"pocketdiff.{module.name}" for module in pkgutil.iter_modules(pocketdiff.__path__)]
install_import_hook([name for name in checked if name != "pocketdiff.samplers"], "beartype.beartype")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from pocketdiff.checkpoint import RunConfig  # noqa: E402
from pocketdiff.config import SamplingConfig  # noqa: E402
from pocketdiff.data import Dataset, load_data  # noqa: E402
from pocketdiff.methods.diffusion import DiffusionConfig  # noqa: E402
from pocketdiff.nets.unet import UNetConfig  # noqa: E402

torch.set_num_threads(1)  # pytest-xdist runs a worker on each core.
# The same examples in every run; `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    return load_data("mnist")


@pytest.fixture(scope="session")
def tiny_file(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty real digits, five of each class, in a file."""
    whole = mnist.train
    chosen = torch.cat([(whole.labels == digit).nonzero()[:5, 0] for digit in range(10)])
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, images=whole.pixels[chosen, 0].numpy(), labels=whole.labels[chosen].numpy())
    return path


@pytest.fixture(scope="session")
def tiny_data(tiny_file: Path) -> Dataset:
    """The same digits from the file: 40 to train on, 10 held out."""
    return load_data(str(tiny_file))


@pytest.fixture
def tiny_config() -> DiffusionConfig:
    """A run of a second or two: 12 steps, the last one smaller, over a little more than two epochs."""
    return DiffusionConfig(
        images=92,
        batch=8,
        net=UNetConfig(widths=(8, 16), blocks=1, embedding=16),
        sampling=SamplingConfig(steps=3),
    )


@pytest.fixture
def tiny_run(tiny_config: DiffusionConfig, tiny_data: Dataset) -> RunConfig:
    return RunConfig(train=tiny_config, data=tiny_data.info)


@pytest.fixture(autouse=True)
def quick_summaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement of the machine's peak takes a second; one test of its own is enough."""
    import sys

    if "pocketdiff.run.run" in sys.modules:
        monkeypatch.setattr("pocketdiff.run.run.fp32_peak", lambda device: 1e11)
