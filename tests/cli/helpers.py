"""Helpers of the command line's tests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from pocketdiff.cli import run

TINY = "--images 92 --batch 7 --widths 8 16 --blocks 1 --embedding 16 --steps 2 --checkpoint-every 16 --log-every 16"
SMALL = "--images 300 --batch 20 --widths 8 16 --blocks 1 --embedding 16 --steps 2"
DDPM = "--preset ddpm --n-feat 8 --timesteps 10 --batch 16 --checkpoint-every 16 --log-every 16"


def train_words(data: Path, out: Path, *more: str) -> list[str]:
    """A run of a second."""
    return ["train", "--preset", "quick", "--data", str(data), "--out", str(out), *TINY.split(), *more]


def ddpm_words(data: Path, out: Path, *more: str) -> list[str]:
    """A small run of the original experiment."""
    return ["train", "--data", str(data), "--out", str(out), *DDPM.split(), *more]


def fails(capsys: Any, words: list[str], status: int, message: str) -> None:
    """The command gives this status and one sentence on standard error, which contains the message."""
    capsys.readouterr()
    assert run(words) == status
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("pocketdiff: ")]
    assert len(lines) == 1, error
    assert message in lines[0], lines[0]
    assert "Traceback" not in error


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log of a run."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def scored(target: Path, file: Path, out: Path, *more: str) -> dict[str, Any]:
    """The scores that ``evaluate --json`` writes."""
    words = ["evaluate", str(target), "--data", str(file), "--json", str(out / "score.json"), "--overwrite", *more]
    assert run(words) == 0
    found: dict[str, Any] = json.loads((out / "score.json").read_text())
    return found


def spawn(words: list[str], **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pocketdiff.cli", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def examples(text: str) -> list[str]:
    """The commands in the examples of a help text."""
    return re.findall(r"^  (pocketdiff .*)", text[text.rindex("example") :], re.MULTILINE)
