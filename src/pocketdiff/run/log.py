"""``metrics.jsonl``: one line for each interval of training, and one for each score."""

import json
import math
from typing import Any

from pocketdiff.files import write_file
from pocketdiff.folder import RunFolder
from pocketdiff.methods.loop import StepReport
from pocketdiff.records import Interval


class MetricsLog:
    """The log of a run: a line after the step that reaches each multiple of ``every`` images, or the end of a part.

    Args:
        folder: Of the run.
        every: Images between two lines.
        ends: Images seen at the end of each part of the run.
    """

    def __init__(self, folder: RunFolder, every: int, ends: tuple[int, ...]) -> None:
        self.path, self.every, self.ends = folder.metrics, every, ends
        self.interval = Interval()
        """The steps that are in no line yet."""

    def resume(self, step: int, interval: Interval) -> None:
        """Continues from a step, inside an interval. Lines of later steps are removed: those steps run again."""
        if self.path.exists():
            write_file(self.path, "".join(f"{line}\n" for line in self._lines() if _step(line) <= step))
        self.interval = interval

    def add(self, report: StepReport, before: int, seconds: float) -> None:
        """Adds a step that began with ``before`` images seen, after ``seconds`` of training; writes a line if due."""
        begun = self.interval
        sums = {name: begun.sums.get(name, 0.0) + float(loss) for name, loss in report.losses.items()}
        steps = begun.steps + 1
        if report.seen not in self.ends and before // self.every == report.seen // self.every:
            self.interval = begun.replace(steps=steps, sums=sums)
            return
        speed = (report.seen - begun.seen) / max(seconds - begun.seconds, 1e-9)
        means = {name: total / steps for name, total in sums.items()}
        line = {"step": report.step, "seen": report.seen, "epoch": report.epoch, **means, "lr": report.lr}
        self.write({**line, "images_per_second": speed, "seconds": seconds})
        self.interval = Interval(seen=report.seen, seconds=seconds)

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line: an interval, or a score (``step``, ``seen``, ``evaluation``, ``real_baseline``)."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def scores(self) -> list[dict[str, Any]]:
        """The lines with scores."""
        return [json.loads(line) for line in self._lines() if '"evaluation"' in line and _step(line) < math.inf]

    def _lines(self) -> list[str]:
        return self.path.read_text(errors="replace").splitlines() if self.path.exists() else []


def _step(line: str) -> float:
    """The step of a line; infinite if a power cut damaged the line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return math.inf
