"""The benchmarks explain themselves before they do anything."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_an_answer_without_any_work(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    assert left.value.code == 0
    summary = str(ast.get_docstring(ast.parse((BENCHMARKS / name).read_text()))).splitlines()[0]
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name} ")
    assert summary in text
    assert list(tmp_path.iterdir()) == []


def test_there_are_benchmarks() -> None:
    assert {"equal_time.py", "judge.py", "on_gpu.py", "presets.py", "throughput.py"} <= set(SCRIPTS)
