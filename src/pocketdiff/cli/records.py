"""What a run writes down about itself: ``metrics.jsonl`` while it trains, ``summary.json`` at its end."""

import json
import math
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pocketdiff.files import write_file
from pocketdiff.loop import Metrics, TrainState

_SMOOTHING = 0.95
"""How much of the shown loss stays at a step."""


class MetricsLog:
    """``metrics.jsonl``: a line for each interval, with the mean loss and the speed in it.

    Args:
        path: The file.
        every: Images in an interval.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.note = ""
        """The losses as moving averages and the speed of the interval so far, for a progress bar."""
        self._shown: dict[str, float] = {}
        self._begin(0, 0.0)

    def resume(self, step: int, seen: int, seconds: float) -> None:
        """Goes on from a step; lines of later steps are dropped, for they come again."""
        if self.path.exists():
            lines = self.path.read_text(errors="replace").splitlines()
            write_file(self.path, "".join(f"{line}\n" for line in lines if _step(line) <= step))
        self._begin(seen, seconds)

    def add(self, metrics: Metrics, seconds: float, last: bool) -> None:
        """Takes a step's metrics, the time spent on training so far, and whether this step is the last."""
        losses = {name: float(loss) for name, loss in metrics.losses.items()}
        for name, loss in losses.items():
            self._shown[name] = _SMOOTHING * self._shown.get(name, loss) + (1 - _SMOOTHING) * loss
            self._sums[name] = self._sums.get(name, 0.0) + loss
        self._steps += 1
        speed = (metrics.seen - self._seen) / max(seconds - self._seconds, 1e-9)
        shown = (f"{name.replace('_', ' ')} {loss:.4f}" for name, loss in self._shown.items())
        self.note = f"{', '.join(shown)}, {speed:.0f} img/s"
        if last or metrics.seen - self._seen >= self.every:
            line = {
                "step": metrics.step, "seen": metrics.seen, "epoch": metrics.epoch,
                **{name: total / self._steps for name, total in self._sums.items()},
                "lr": metrics.lr, "images_per_second": speed, "seconds": seconds,
            }  # fmt: skip
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._begin(metrics.seen, seconds)

    def add_score(self, line: dict[str, Any]) -> None:
        """Writes a score down: a line of its own, with the step and the key ``evaluation``."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def scores(self) -> list[dict[str, Any]]:
        """The lines that hold scores."""
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines if '"evaluation"' in line and _step(line) < math.inf]

    def _begin(self, seen: int, seconds: float) -> None:
        self._seen, self._seconds = seen, seconds
        self._sums: dict[str, float] = {}
        self._steps = 0


def _step(line: str) -> float:
    """The step that a line tells of; beyond all steps where a power cut has spoilt it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def summarize(state: TrainState[Any], training_seconds: float, other_seconds: float) -> dict[str, object]:
    """What a finished run took, and on what."""
    weights = list(state.net.parameters())
    return {
        "steps": state.step,
        "images_seen": state.seen,
        "parameters": sum(weight.numel() for weight in weights),
        "training_seconds": training_seconds,
        "other_seconds": other_seconds,
        "images_per_second": state.seen / max(training_seconds, 1e-9),
        "peak_memory_bytes": peak_memory(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if weights[0].is_cuda else None,
        "hardware": hardware(weights[0].device),
        "versions": versions(),
        "commit": commit(),
    }


def peak_memory() -> int | None:
    """The most memory this process ever held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def hardware(device: torch.device) -> dict[str, object]:
    """The machine, in the words that its system has for it."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and of what the figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("pocketdiff", "torch", "numpy")}}


def commit() -> str | None:
    """The commit of the package's own checkout, with ``+`` if its files were changed; None if it was installed."""
    source = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(source), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", __file__) is None:
        return None
    head = git("rev-parse", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--", str(source)) else "")
