"""Fixtures of the command line's tests."""

from pathlib import Path

import pytest

from pocketdiff.cli import run
from tests.cli.helpers import train_words


@pytest.fixture(scope="session")
def finished(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny diffusion model, which no test changes."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert run(train_words(tiny_file, out)) == 0
    return out
