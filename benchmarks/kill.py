"""Kills training runs with SIGKILL at random system calls, and checks that nothing is lost.

    python benchmarks/kill.py [--kills N] [--methods diffusion,gan,consistency] [--seed N]

Each method trains a small run on MNIST digits with `pocketdiff train`: checkpoints every other step, pictures after
every epoch, simple scores of diffusion. strace kills the command before a system call, drawn at random: first its kind
(write, rename, unlink, ...), then its number among all such calls of a whole run. Some kills come at a random time
instead; without strace all do. The same command then goes on, and is killed again, until it ends. This is done in three
phases: a run, the same run made longer, and its model file made anew after it was removed.

After each kill the newest checkpoint must be valid and no older than before, and while a run is made longer, the model
of its first part must load. At the end of each phase config, model file, pictures, log (without times) and all tensors
of the checkpoint must equal those of a run without a kill, bit for bit, and no other file may be left.

The exit status is 1 if anything was lost. 300 kills take about ten minutes on two CPU cores. It needs Linux.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Child processes are forks of this one, which must not have threads.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np
import torch

import pocketdiff as pd
from pocketdiff import checkpoint, cli
from pocketdiff.errors import PocketdiffError
from pocketdiff.evaluation.score import MAIN
from pocketdiff.folder import RunFolder
from pocketdiff.run import run, scoring

CALLS = ("openat", "write", "close", "fsync", "rename", "unlink", "mkdir", "flock", "ftruncate", "getdents64", "mmap")
"""Kinds of system calls before which a command is killed: those that change files, and some around them."""
TIMES = "at any time"
COMMON = "--data {data} --batch 20 --log-every 50 --checkpoint-every 40 --pictures-every 1 --ema 4"
SMALL = "--widths 8 --blocks 1 --embedding 8 --guidance-strengths 0 --gif-steps 3 --steps 2"
METHODS = {
    "diffusion": f"--preset quick {COMMON} {SMALL} --evaluate-every 120 --evaluate-images 128",
    "gan": f"--preset gan-conditional {COMMON} --widths 8 --embedding 8 --latent 8",
    "consistency": f"--preset consistency {COMMON} --teacher {{teacher}}",
}
"""The flags of each method's run."""
IMAGES = 140
"""Images of an epoch."""
PHASES = {"a run": 300, "made longer": 500, "model made anew": 500}
"""Phases of a run, with its images; both parts end inside an epoch."""
IN_ONE_PHASE = 8
"""The most kills in one phase; then it may end."""


@dataclass
class Reference:
    """A phase without a kill."""

    content: dict[str, object]
    seconds: float
    calls: Counter[str]


@dataclass
class Tally:
    """What happened to a method's runs."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By phase and kind."""
    ends: Counter[str] = field(default_factory=Counter)
    """Phases that ended and were compared."""
    losses: list[str] = field(default_factory=list)


def main() -> int:
    """Kills, prints a table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="kills in all (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills (default: %(default)s)")
    options = parser.parse_args()
    methods = options.methods.split(",")
    if unknown := set(methods) - METHODS.keys():
        parser.error(f"there is no method {unknown.pop()!r}; use {', '.join(METHODS)}")
    draw, began, tallies = random.Random(options.seed), time.perf_counter(), {}  # noqa: S311 (not a secret)
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place) / "data.npz")
        train("diffusion", PHASES["a run"], Path(place) / "teacher")
        for number, method in enumerate(methods):
            wanted = options.kills * (number + 1) // len(methods) - options.kills * number // len(methods)
            tallies[method] = attack(method, wanted, draw, Path(place))
    print(table(tallies))
    for loss in (lost := [loss for tally in tallies.values() for loss in tally.losses]):
        print(loss)
    kills = sum(tally.kills.total() for tally in tallies.values())
    ends = sum(tally.ends.total() for tally in tallies.values())
    minutes = (time.perf_counter() - began) / 60
    print(f"\n{kills} kills, {ends} ends compared, {len(lost)} losses, {minutes:.0f} minutes")
    return 1 if lost else 0


def prepare(data: Path) -> None:
    """Writes a small data set. Scores are the mean and the deviation of the drawn images: real ones take too long."""
    torch.set_num_threads(1)
    few = pd.load_data("mnist").train
    images, labels = few.pixels[:IMAGES, 0].numpy(), few.labels[:IMAGES].numpy()
    np.savez(data, images=images, labels=labels, test_images=images, test_labels=labels)
    changed: dict[Any, dict[str, Any]] = {
        scoring: {
            "find_or_train_classifiers": lambda *_: None,
            "Reference": SimpleNamespace(of=lambda data, *_, **__: SimpleNamespace(data=data)),
            "real_baseline": lambda *_, **__: None,
            "score": lambda sample, _: sample.pixels.double(),
            "_values": lambda pixels: dict.fromkeys(MAIN, float(pixels.mean())),
        },
        run: {"fp32_peak": lambda _: 1.0},
    }
    for module, names in changed.items():
        for name, simpler in names.items():
            setattr(module, name, simpler)


def words(method: str, images: int, out: Path) -> list[str]:
    """The command line of a run."""
    place = out.parent
    flags = METHODS[method].format(data=place / "data.npz", teacher=place / "teacher")
    return ["train", *flags.split(), "--images", str(images), "--out", str(out)]


def train(method: str, images: int, out: Path) -> None:
    """Runs a command in this process."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        status = cli.run(words(method, images, out))
    if status != 0:
        raise SystemExit(f"the run without a kill failed: {error.getvalue()}")


def attack(method: str, wanted: int, draw: random.Random, place: Path) -> Tally:
    """Kills a method's runs until there were that many kills."""
    references, out = {}, place / f"{method}-reference"
    for phase, images in PHASES.items():
        begin(phase, out)
        traced = place / "calls"
        started = time.perf_counter()
        status, _ = attempt(words(method, images, out), ["-o", str(traced), "-e", f"trace={','.join(CALLS)}"])
        if status != 0:
            raise SystemExit(f"the run without a kill failed: {status}")
        names = re.findall(r"^(\w+)\(", traced.read_text(), re.MULTILINE) if traced.exists() else []
        references[phase] = Reference(content(out), time.perf_counter() - started, Counter(names))
    tally, number = Tally(), 0
    while tally.kills.total() < wanted:
        out, number = place / f"{method}-{number}", number + 1
        for phase, images in PHASES.items():
            begin(phase, out)
            chase(words(method, images, out), phase, references[phase], out, draw, tally, wanted)
        shutil.rmtree(out)
        print(
            f"{method}: {tally.kills.total()} of {wanted} kills, {len(tally.losses)} losses",
            file=sys.stderr,
            flush=True,
        )
    return tally


def begin(phase: str, out: Path) -> None:
    """What happens before a phase."""
    if phase == "model made anew":
        RunFolder(out).model.unlink()


def chase(
    command: list[str], phase: str, reference: Reference, out: Path, draw: random.Random, tally: Tally, wanted: int
) -> None:
    """Starts a command and kills it, again and again, until it ends or there were enough kills; then compares."""
    seen, folder, before = 0, RunFolder(out), tally.kills.total()
    while True:
        kind, options, seconds = TIMES, None, None
        if tally.kills.total() < min(wanted, before + IN_ONE_PHASE):
            kind = draw.choice([*sorted(reference.calls), TIMES])
            if kind == TIMES:
                seconds = draw.uniform(0, reference.seconds)
            else:
                when = 1 + int(draw.random() ** 2 * reference.calls[kind])  # A run that goes on has fewer calls.
                options = ["-o", os.devnull, "-e", f"trace={kind}", "-e", f"inject={kind}:signal=KILL:when={when}"]
        status, said = attempt(command, options, seconds)
        if status == 0:
            break
        if status != -signal.SIGKILL:
            tally.losses.append(f"{phase}: the command after a kill ended with status {status}: {said}")
            break
        tally.kills[phase, kind] += 1
        try:
            newest = checkpoint.newest_checkpoint(folder)
            if phase == "made longer":
                pd.load(out)
        except PocketdiffError as error:
            tally.losses.append(f"{phase}, {kind}: {error}")
            continue
        now = newest[0].position.seen if newest else 0
        if now < seen or (newest and newest[1]):
            tally.losses.append(f"{phase}, {kind}: from {seen} images back to {now}, {newest and newest[1]}")
        seen = now
    found = content(out)
    for name in reference.content.keys() | found.keys():
        if found.get(name) != reference.content.get(name):
            tally.losses.append(f"{phase}: {name} differs from that of a run without a kill")
    tally.ends[phase] += 1


def content(out: Path) -> dict[str, object]:
    """All that a run left, without times: the bytes of its files, the lines of its log, the tensors of checkpoints."""
    found: dict[str, object] = {}
    for path in out.rglob("*"):
        name = str(path.relative_to(out))
        if name in {".lock", "summary.json"} or path.is_dir():
            found[name] = None
        elif name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
        elif path.parent.name == "checkpoints" and path.suffix == ".safetensors":
            saved = checkpoint.read_checkpoint(path)
            found[name] = {key: (str(t.dtype), t.shape, t.numpy().tobytes()) for key, t in saved.tensors.items()}
        else:
            found[name] = path.read_bytes()
    return found


def attempt(command: list[str], strace: list[str] | None, seconds: float | None = None) -> tuple[int, str]:
    """Runs a command in a fork of this process, which has imported everything already.

    Args:
        command: Of `pocketdiff`.
        strace: Options of strace, which is attached before the command starts; None: without strace.
        seconds: Time after which it is killed; None: never.

    Returns:
        Exit status, negative for a signal; and what it said.
    """
    ready, go = os.pipe()
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os.read(ready, 1)
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
            sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
            os._exit(cli.run(command))
        os._exit(99)
    tracer = None
    if strace is not None and (program := shutil.which("strace")):
        tracer = subprocess.Popen([program, "-qq", *strace, "-p", str(child)], stderr=subprocess.DEVNULL)
        while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
            if tracer.poll() is not None:
                raise SystemExit("strace cannot attach to a process here")
            time.sleep(0.001)
    os.write(go, b"x")
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if tracer is not None:
        tracer.wait()
    for descriptor in (ready, go):
        os.close(descriptor)
    output.seek(0)
    said = output.read().decode(errors="replace")
    output.close()
    return os.waitstatus_to_exitcode(status), said


def table(tallies: dict[str, Tally]) -> str:
    """Kills by phase and by kind of call, as Markdown."""
    lines = [f"| | {' | '.join(tallies)} |", "|---|" + "---|" * len(tallies)]
    for phase in PHASES:
        cells = [sum(n for (where, _), n in tally.kills.items() if where == phase) for tally in tallies.values()]
        lines.append(f"| kills: {phase} | {' | '.join(map(str, cells))} |")
    for kind in (*CALLS, TIMES):
        cells = [sum(n for (_, what), n in tally.kills.items() if what == kind) for tally in tallies.values()]
        if any(cells):
            lines.append(f"| of these {'' if kind == TIMES else 'before '}{kind} | {' | '.join(map(str, cells))} |")
    for name, values in (
        ("phases compared at their end", [tally.ends.total() for tally in tallies.values()]),
        ("losses", [len(tally.losses) for tally in tallies.values()]),
    ):
        lines.append(f"| {name} | {' | '.join(map(str, values))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
