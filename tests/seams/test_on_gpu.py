"""The benchmark of the original experiment, shrunk: what it leaves, and what a stop costs."""

import importlib
import itertools
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pocketdiff.methods.gan import GanMethod

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STOPS = ["training ddpm", "drawing epoch 0, w = 0.5", "scoring ddpm-epoch1_w0", "training gpu"]
"""Work in which a signal comes, each in a call of its own; one more comes inside a step of a GAN."""


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("on_gpu")


def call(on_gpu: Any, monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    """The exit status of the script."""
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--tiny", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        on_gpu.main()
    return int(left.value.code or 0)


@pytest.mark.timeout(900)
def test_stops_lose_nothing_and_what_is_done_is_skipped(on_gpu: Any, tmp_path: Path, monkeypatch, capsys) -> None:
    stops, trained = list(STOPS), list[tuple[str, int]]()
    tick, backward, gan_steps = on_gpu.Bench.tick, GanMethod.backward, itertools.count()

    def inside(*words: Any) -> Any:
        if next(gan_steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return backward(*words)

    def stopping(bench: Any, what: str, done: int, total: int) -> None:
        if what.startswith("training "):
            trained.append((what, done))
        if stops and done and what.startswith(stops[0]):
            stops.pop(0)
            signal.raise_signal(signal.SIGINT)
        tick(bench, what, done, total)

    monkeypatch.setattr(on_gpu.Bench, "tick", stopping)
    monkeypatch.setattr(GanMethod, "backward", inside)
    for _ in range(len(STOPS) + 1):
        assert call(on_gpu, monkeypatch, "--out", tmp_path) == 130
        not_run = json.loads((tmp_path / "results.json").read_text())["not_run"]
        assert not_run == list(on_gpu.PARTS)[-len(not_run) :]
        assert (tmp_path / "report.md").read_text().count("Not run, or not run to its end") == len(not_run)
    assert stops == []
    assert call(on_gpu, monkeypatch, "--out", tmp_path) == 0
    assert len(trained) == len(set(trained))  # No step was taken twice.

    found = json.loads((tmp_path / "results.json").read_text())
    results, scores = found["results"], found["scores"]
    assert found["not_run"] == []
    for part in on_gpu.PARTS:
        assert results[part]["hardware"]["cpu"]
        assert results[part]["versions"]["torch"]
        assert "commit" in results[part]
    assert set(scores) == {
        *(f"ddpm-epoch{epoch}_w{w}" for epoch in (0, 1) for w in ("0", "0.5")), "gan-1-epochs",
        "gan-conditional-1-epochs", "gpu-point1", "gpu-point2", "equal-gan", "equal-gan-conditional", "equal-laptop",
    }  # fmt: skip
    assert {score["provenance"]["n"] for score in scores.values()} == {128}
    report = (tmp_path / "report.md").read_text()
    assert "Not run" not in report
    pictures = [part.partition(")")[0] for part in report.split("](pictures/")[1:]]
    assert len(pictures) == 2 * 2 + 2 + 2
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == set(pictures)
    reached = results["gpu"]["seconds_to_ddpm_distance"]
    distances = {name: score["metrics"]["frechet_train"] for name, score in scores.items()}
    goal = distances["ddpm-epoch1_w0.5"]
    times = [results[f"gpu-point{i}"]["training_seconds"] for i in (1, 2) if distances[f"gpu-point{i}"] <= goal]
    assert reached == min(times, default=None)

    kept, before = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()}, len(trained)
    capsys.readouterr()
    assert call(on_gpu, monkeypatch, "--out", tmp_path) == 0
    assert len(trained) == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()} == kept
    assert capsys.readouterr().out.startswith("wrote ")


def test_parts_that_do_not_fit_into_the_time_are_left_out_and_named(
    on_gpu: Any, tmp_path: Path, monkeypatch, capsys
) -> None:
    size = on_gpu.tiny(on_gpu.GPU)
    slow = on_gpu.replace(size, minutes={**dict.fromkeys(size.minutes, 2.0), "throughput": 0.5})
    monkeypatch.setattr(on_gpu, "tiny", lambda _: slow)
    assert call(on_gpu, monkeypatch, "--out", tmp_path, "--minutes", 1) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["not_run"] == [name for name in size.minutes if name != "throughput"]
    assert (tmp_path / "report.md").read_text().count("Not run, or not run to its end") == len(size.minutes) - 1
    text = capsys.readouterr().out
    assert "ddpm takes about 2 minutes" in text
    assert "scores needs ddpm, and is left out" in text
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_part_ends_when_no_time_is_left(on_gpu: Any, tmp_path: Path, monkeypatch, capsys) -> None:
    assert call(on_gpu, monkeypatch, "--out", tmp_path, "--minutes", 1e-9) == 0
    assert (tmp_path / "report.md").read_text().count("Not run, or not run to its end") == len(on_gpu.PARTS)


def test_a_folder_of_another_size_is_refused(on_gpu: Any, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "size.txt").write_text("cpu\n")
    assert call(on_gpu, monkeypatch, "--out", tmp_path) == 2
    assert "holds results of the size cpu; use another --out folder" in capsys.readouterr().err
