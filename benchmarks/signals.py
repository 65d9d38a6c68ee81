"""Signals and broken outputs: real processes, and what they leave.

    python benchmarks/signals.py            about a hundred processes, ten minutes on two idle cores
    python benchmarks/signals.py --quick    a third of them: both streams broken in the same way

A tiny run is interrupted while it trains, with each signal and with standard output and standard error each a terminal,
a pipe, a pipe without a reader, closed, or a terminal that is gone. The status must be 130. The same command must then
continue from where the signal came and leave the model of an uninterrupted run, bit for bit. Other cases: `tee`,
`head`, `nohup`, the closing of the terminal, ASCII, and `sample`, `evaluate`, `compare` and `info`, whose files must be
there. Prints a table, and exits with 1 if a case failed. It needs Linux with bash.
"""

import argparse
import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from functools import partial
from pathlib import Path
from termios import TIOCSCTTY

import numpy as np
import torch

from pocketdiff.cli import run
from pocketdiff.data import load_data
from pocketdiff.evaluation import classifiers

TERMINAL, PIPE, BROKEN, CLOSED, LOST = KINDS = ("terminal", "pipe", "broken pipe", "closed", "lost terminal")
TINY = "--images 400 --batch 7 --widths 8 16 --blocks 1 --embedding 16 --steps 2 --gif-steps 2 --log-every 16"
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
TIMEOUT = 300.0
PROGRAM = [sys.executable, "-m", "pocketdiff.cli"]


class CaseError(Exception):
    """A promise that was not kept."""


class Outlet:
    """What a stream of a process leads to."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ours, self.theirs = (-1, -1) if kind == CLOSED else os.openpty() if "terminal" in kind else os.pipe()
        if kind in {TERMINAL, PIPE}:
            threading.Thread(target=self._read, daemon=True).start()

    def lose(self) -> None:
        """Takes the reader or the terminal away, if it is one of those kinds."""
        if self.kind in {BROKEN, LOST} and self.ours >= 0:
            os.close(self.ours)
            self.ours = -1

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self.ours, 1 << 16):
                pass


class Bench:
    """The data, the commands and the uninterrupted model, in a folder of their own."""

    def __init__(self, place: Path) -> None:
        self.place, whole = place, load_data("mnist")
        self.data, self.digits, self.cache = place / "tiny.npz", place / "digits.npz", place / "cache"
        five = torch.cat([(whole.train.labels == digit).nonzero()[:5, 0] for digit in range(10)])
        train, test = whole.train, whole.test
        np.savez(self.data, images=train.pixels[five, 0].numpy(), labels=train.labels[five].numpy())
        np.savez(
            self.digits, images=train.pixels[:500, 0].numpy(), labels=train.labels[:500].numpy(),
            test_images=test.pixels[:200, 0].numpy(), test_labels=test.labels[:200].numpy(),
        )  # fmt: skip
        digits = load_data(str(self.digits))
        for kind in classifiers.KINDS:  # Those of MNIST stand in for new ones, whose training takes minutes.
            shipped = classifiers.find_classifier(kind, whole.info, [classifiers.SHIPPED])
            if shipped is None:
                raise SystemExit(f"the package has no {kind} classifier for MNIST; install it again")
            found = classifiers.finished(kind, shipped.net, digits)
            classifiers.save_classifier(self.cache / "pocketdiff" / "classifiers", found, digits.info)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.cache)}
        for name, data in (("whole", self.data), ("model", self.digits)):
            self.check(self.start(self.train(name, data), PIPE, PIPE)[0], 0)
        self.model = (place / "whole/model.safetensors").read_bytes()

    def train(self, name: str, data: Path | None = None) -> list[str]:
        """The words of a tiny run."""
        out = str(self.place / name)
        return ["train", "--preset", "quick", "--data", str(data or self.data), "--out", out, *TINY.split()]

    def start(
        self, words: list[str], stdout: str, stderr: str, environment: dict[str, str] | None = None,
        before: tuple[str, ...] = (),
    ) -> tuple[subprocess.Popen[bytes], list[Outlet]]:  # fmt: skip
        """Starts a command, with ``before`` in front of it, in a session of its own without a controlling terminal."""
        outlets = [Outlet(stdout), Outlet(stderr)]

        def prepare() -> None:
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for number, outlet in enumerate(outlets, 1):
                if outlet.kind == CLOSED:
                    os.close(number)

        process = subprocess.Popen(
            [*before, *PROGRAM, *words], preexec_fn=prepare, stdin=subprocess.DEVNULL,  # noqa: PLW1509
            stdout=None if stdout == CLOSED else outlets[0].theirs,
            stderr=None if stderr == CLOSED else outlets[1].theirs,
            env=self.environment | (environment or {}),
        )  # fmt: skip
        for outlet in outlets:
            if outlet.theirs >= 0:
                os.close(outlet.theirs)
        return process, outlets

    def shell(self, script: str) -> subprocess.Popen[bytes]:
        """Starts a bash script in a process group of its own; ``$POCKETDIFF`` is the program."""
        environment = {**self.environment, "POCKETDIFF": shlex.join(PROGRAM)}
        command, nothing = ["bash", "-c", script], subprocess.DEVNULL
        return subprocess.Popen(
            command, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing, env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )  # fmt: skip

    def trains(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Waits until a run is in the middle of its training."""
        log, end = self.place / name / "metrics.jsonl", time.monotonic() + TIMEOUT
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None or time.monotonic() > end:
                raise CaseError(f"it did not train (status {process.poll()})")
            time.sleep(0.005)

    def check(self, process: subprocess.Popen[bytes], status: int) -> None:
        """Waits for the end of a process, which must have this status."""
        try:
            found = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise CaseError("it did not end") from error
        if found != status:
            raise CaseError(f"the status is {found}, not {status}")

    def continues(self, name: str) -> None:
        """The run was saved where it was interrupted, and the same command leaves the model of a whole run."""
        folder = self.place / name
        if not list((folder / "checkpoints").glob("step-*.safetensors")):
            raise CaseError("there is no checkpoint")
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = run(self.train(name))
        if status or "continuing from" not in said.getvalue():
            raise CaseError(f"it does not continue: {said.getvalue()}")
        self.finished(name)

    def finished(self, name: str) -> None:
        """The run has the model of a whole run, and left nothing half-written."""
        if (self.place / name / "model.safetensors").read_bytes() != self.model:
            raise CaseError("the model differs from that of an uninterrupted run")
        if left := list((self.place / name).rglob("*.tmp")):
            raise CaseError(f"{left[0]} is left")
        shutil.rmtree(self.place / name)


Case = tuple[str, str, Callable[[], None]]
"""Its group, its name, and what raises CaseError."""


def interrupted(bench: Bench, stdout: str, stderr: str, number: signal.Signals) -> None:
    """A signal while it trains."""
    process, outlets = bench.start(bench.train("run"), stdout, stderr)
    bench.trains("run", process)
    for outlet in outlets:
        outlet.lose()
    process.send_signal(number)
    bench.check(process, 130)
    bench.continues("run")


def undisturbed(bench: Bench, kind: str) -> None:
    """Broken outputs alone change nothing."""
    process, outlets = bench.start(bench.train("run"), kind, kind)
    bench.trains("run", process)
    for outlet in outlets:
        outlet.lose()
    bench.check(process, 0)
    bench.finished("run")


def closed_terminal(bench: Bench) -> None:
    """The window of the terminal is closed: the system sends SIGHUP, and writes fail."""
    ours, theirs = os.openpty()

    def prepare() -> None:
        os.setsid()
        ioctl(theirs, TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*PROGRAM, *bench.train("run")], stdin=theirs, stdout=theirs, stderr=theirs, env=bench.environment,
        preexec_fn=prepare,  # noqa: PLW1509
    )  # fmt: skip
    os.close(theirs)
    bench.trains("run", process)
    os.close(ours)
    bench.check(process, 130)
    bench.continues("run")


def doubled(bench: Bench) -> None:
    """`timeout` sends its signal to the process and to its group."""
    process, _ = bench.start(bench.train("run"), PIPE, PIPE)
    bench.trains("run", process)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    bench.check(process, 130)
    bench.continues("run")


def under_nohup(bench: Bench) -> None:
    """SIGHUP stays ignored."""
    process, _ = bench.start(bench.train("run"), PIPE, PIPE, before=("nohup",))
    bench.trains("run", process)
    process.send_signal(signal.SIGHUP)
    bench.check(process, 0)
    bench.finished("run")


def with_tee(bench: Bench) -> None:
    """Ctrl-C ends tee too, before the run has said that it stops."""
    log = bench.place / "log"
    script = f"trap : INT; $POCKETDIFF {shlex.join(bench.train('run'))} 2>&1 | tee {log}; exit ${{PIPESTATUS[0]}}"
    process = bench.shell(script)
    bench.trains("run", process)
    os.killpg(process.pid, signal.SIGINT)
    bench.check(process, 130)
    bench.continues("run")


def with_head(bench: Bench, words: list[str], made: list[Path], run_name: str = "") -> None:
    """The reader leaves after the first line."""
    bench.check(bench.shell(f"$POCKETDIFF {shlex.join(words)} | head -1; exit ${{PIPESTATUS[0]}}"), 0)
    exist(made)
    if run_name:
        bench.finished(run_name)


def without_reader(
    bench: Bench, words: list[str], made: list[Path], kind: str, environment: dict[str, str] | None = None
) -> None:
    """A verb whose output cannot be written, or not all of its characters."""
    process, outlets = bench.start(words, kind, kind, environment)
    for outlet in outlets:
        outlet.lose()
    bench.check(process, 0)
    exist(made)


def full_disk(bench: Bench, words: list[str]) -> None:
    """A result that goes into a file on a full disk is a failure, and the only one."""
    bench.check(bench.shell(f"$POCKETDIFF {shlex.join(words)} > /dev/full"), 1)


def exist(made: list[Path]) -> None:
    """Files that a case must leave; removes them."""
    for path in made:
        if not path.exists() or path.stat().st_size == 0:
            raise CaseError(f"{path} is missing")
        path.unlink()


def cases(bench: Bench, quick: bool) -> Iterator[Case]:
    """All cases."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for stdout in KINDS:
            for stderr in [stdout] if quick else KINDS:
                what = f"standard output {stdout}, standard error {stderr}"
                yield f"train, {number.name}", what, partial(interrupted, bench, stdout, stderr, number)
    yield "train, closed terminal", "", partial(closed_terminal, bench)
    yield "train, a signal twice at once", "", partial(doubled, bench)
    yield "train under nohup, SIGHUP", "", partial(under_nohup, bench)
    yield "train 2>&1 | tee, Ctrl-C", "", partial(with_tee, bench)
    yield "train | head -1", "", partial(with_head, bench, bench.train("run"), [], "run")
    for kind in (BROKEN, CLOSED, LOST):
        yield "train to its end, no reader", kind, partial(undisturbed, bench, kind)
    model, out = str(bench.place / "model"), bench.place / "out"
    scoring = ["--data", str(bench.digits), "--n", "128", "--overwrite"]
    page, score = out / "index.html", out / "score.json"
    verbs: dict[str, tuple[list[str], list[Path]]] = {
        "info": (["info", model], []),
        "sample": (["sample", model, "--out", str(out / "a.png"), "--overwrite"], [out / "a.png"]),
        "evaluate": (["evaluate", model, *scoring, "--out", str(out), "--json", str(score)], [page, score]),
        "compare": (
            ["compare", model, *scoring, "--out", str(out)],
            [page, out / "table.md", out / "comparison.json"],
        ),
    }
    for verb, (words, made) in verbs.items():
        yield f"{verb} | head -1", "", partial(with_head, bench, words, made)
        for kind in (BROKEN, CLOSED, LOST):
            yield f"{verb}, no reader", kind, partial(without_reader, bench, words, made, kind)
        for kind in (PIPE, TERMINAL):
            yield f"{verb}, ASCII", kind, partial(without_reader, bench, words, made, kind, ASCII)
    yield "info > /dev/full", "", partial(full_disk, bench, verbs["info"][0])


def main() -> None:
    """Tries all cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only cases with both streams broken in the same way")
    parser.add_argument("--only", default="", help="only groups whose name contains this")
    flags = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The harness itself may run under nohup.
    torch.set_num_threads(1)  # As in the processes, so that models can be compared bit for bit.
    tried: dict[str, int] = {}
    failed: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place))
        for group, name, case in cases(bench, flags.quick):
            if flags.only not in group:
                continue
            tried[group], fault = tried.get(group, 0) + 1, ""
            try:
                case()
            except CaseError as error:
                failed[group], fault = failed.get(group, 0) + 1, f": {error}"
                shutil.rmtree(bench.place / "run", ignore_errors=True)
            print(f"{'FAILED' if fault else 'held'}: {', '.join(filter(None, [group, name]))}{fault}", flush=True)
    width = max(map(len, tried), default=0)
    print(f"\n{'case':{width}}  tried  failed")
    for group, count in tried.items():
        print(f"{group:{width}}  {count:5}  {failed.get(group, 0):6}")
    print(f"{'all':{width}}  {sum(tried.values()):5}  {sum(failed.values()):6}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
