"""``metrics.jsonl``: one line for each interval of training, and one for each score."""

import json
import math
from typing import Any

from pocketdiff.files import write_file
from pocketdiff.folder import RunFolder
from pocketdiff.methods.loop import StepReport


class MetricsLog:
    """The log of a run, with a line for every ``every`` images."""

    def __init__(self, folder: RunFolder, every: int) -> None:
        self.path, self.every = folder.metrics, every
        self._begin(0, 0.0)

    def resume(self, step: int, seen: int, seconds: float) -> None:
        """Continues from a step. Lines of later steps are removed, because those steps run again."""
        if self.path.exists():
            write_file(self.path, "".join(f"{line}\n" for line in self._lines() if _step(line) <= step))
        self._begin(seen, seconds)

    def add(self, report: StepReport, seconds: float, last: bool) -> None:
        """Adds a step, after ``seconds`` of training; at the end of an interval or of the run, writes a line."""
        for name, loss in report.losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(loss)
        self._steps += 1
        if last or report.seen - self._seen >= self.every:
            speed = (report.seen - self._seen) / max(seconds - self._seconds, 1e-9)
            means = {name: total / self._steps for name, total in self._sums.items()}
            line = {"step": report.step, "seen": report.seen, "epoch": report.epoch, **means, "lr": report.lr}
            self.write({**line, "images_per_second": speed, "seconds": seconds})
            self._begin(report.seen, seconds)

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line: an interval, or a score (``step``, ``seen``, ``evaluation``, ``real_baseline``)."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def scores(self) -> list[dict[str, Any]]:
        """The lines with scores."""
        return [json.loads(line) for line in self._lines() if '"evaluation"' in line and _step(line) < math.inf]

    def _lines(self) -> list[str]:
        return self.path.read_text(errors="replace").splitlines() if self.path.exists() else []

    def _begin(self, seen: int, seconds: float) -> None:
        self._seen, self._seconds, self._steps = seen, seconds, 0
        self._sums: dict[str, float] = {}


def _step(line: str) -> float:
    """The step of a line; infinite if a power cut damaged the line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return math.inf
