"""The original experiment in full, the GANs beside it, and the gpu preset: what needs a GPU, most important first.

    python benchmarks/on_gpu.py --out FOLDER [--minutes 25]    on a GPU of the H100 or H200 class
    python benchmarks/on_gpu.py --out FOLDER --size cpu        the same tables with a small network: about three hours
    python benchmarks/on_gpu.py --out FOLDER --tiny            tries the script itself in seconds

1. ``ddpm``: the ddpm preset for 20 epochs, with pictures and a model file after epochs 0, 1, 5, 10 and 19.
2. ``scores``: these models at w = 0, 0.5 and 2, drawn with the preset's own 400 steps. How many images a score has is
   decided by the measured speed of drawing, and is equal in 2. to 4.; plan.json has it.
3. ``gans``: both GANs for 10 and for 20 epochs, with the ddpm preset's batch and learning rate; all compared.
4. ``gpu``: the gpu preset, scored during its training, and its time to the ddpm preset's distance. Not with --size cpu.
5. ``throughput``: images per second of training and of drawing. Not with --size cpu.
6. ``parameters``: the plain GAN, the conditional GAN and laptop with equal numbers of weights and images; compared.

Results are FOLDER/report.md with pictures/, FOLDER/results.json, a JSON file for each part and one for each score.
A finished part is not run again. After an interrupt, and when the time is over, the same command continues: runs from
their last checkpoint, scores after the last one that was made. A part whose estimated time does not fit into the rest
of --minutes is left out, and report.md says so.

With --size cpu the network has n_feat 32; batch and learning rate stay the preset's. A narrow network can learn at a
higher rate, and short runs need it, but then batch and rate would not be equal for all models.
"""

import argparse
import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import training  # noqa: F401 (sets OpenMP before torch's first work)

import pocketdiff as pd
from pocketdiff import plots
from pocketdiff.cli.console import INTERRUPTED, Stop
from pocketdiff.config import MethodConfig
from pocketdiff.errors import EvaluationError, PocketdiffError, SamplingError
from pocketdiff.evaluation.classifiers import find_or_train_classifiers
from pocketdiff.evaluation.comparison import Comparison, Entry
from pocketdiff.evaluation.records import ScoreFile
from pocketdiff.evaluation.reference import Reference
from pocketdiff.evaluation.report import measured
from pocketdiff.evaluation.score import MAIN
from pocketdiff.files import write_file
from pocketdiff.folder import RunFolder
from pocketdiff.methods.loop import train
from pocketdiff.model import CHUNK, CPU_CHUNK, ImageModel
from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.gan import ConvGanConfig, MlpGanConfig
from pocketdiff.records import Summary, commit, hardware, versions
from pocketdiff.run.gallery import Due, Gallery

SHOWN = ("frechet_train", "precision", "recall", "accuracy")
"""The metrics of the tables."""
NARROW = MlpGanConfig(generator=(128, 256, 320), discriminator=(288, 64))
"""A plain GAN of 625,905 weights; gan-conditional has 600,463, laptop 627,684."""
EQUAL = ("gan", "gan-conditional", "laptop")
NEVER = 10**6
"""Epochs between two pictures, for runs that only need those of the first epoch and of the end."""
WARM = 5
"""Training steps before speed is measured: torch.compile and the choice of kernels."""


@dataclass(frozen=True)
class Size:
    """What is run, and how large it is."""

    minutes: Mapping[str, float]
    """The parts, most important first, with estimated times; those of a GPU are not measured yet."""
    drawing: float
    """Minutes for drawing the images of all scores of the ddpm preset."""
    least: int = 128
    """The fewest images that a score can have."""
    epochs: tuple[int, ...] = (0, 1, 5, 10, 19)
    """The epochs of the ddpm preset that are shown and scored, counted from 0; its run ends with the last."""
    lengths: tuple[int, ...] = (10, 20)
    """The lengths of the GANs' runs in epochs."""
    points: int = 16
    """How often the gpu preset is scored in its run."""
    seconds: float = 10.0
    """Time for a measurement of speed."""
    drawn: int = 256
    """Images to measure the speed of drawing in the part throughput."""
    equal: int = 100_000
    """Training images of each run with equal numbers of weights."""
    equal_n: int = 10_000
    """Images in the scores of these runs."""
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other values, by preset."""


GPU = Size({"ddpm": 5, "scores": 7, "gans": 3, "gpu": 7, "throughput": 1.5, "parameters": 1.5}, drawing=5)
CPU = Size(
    {"ddpm": 120, "scores": 35, "gans": 20, "parameters": 25}, drawing=30,
    changes={"ddpm": {"net": ContextUnetConfig(n_feat=32)}},
)  # fmt: skip
SIZES = {"gpu": GPU, "cpu": CPU}


def tiny(size: Size) -> Size:
    """The same parts, so small that they show nothing but that the script works."""
    unet = pd.UNetConfig(widths=(8, 16), blocks=1, embedding=16)
    small = {"net": unet, "batch": 64, "gif_steps": 2, "sampling": pd.SamplingConfig(steps=2)}
    changes: dict[str, dict[str, Any]] = {
        "ddpm": {
            "net": ContextUnetConfig(n_feat=8),
            "batch": 64,
            "schedule": pd.DiscreteBeta(timesteps=4, zeroth=True),
            "guidance_strengths": (0.0, 0.5),
        },
        "gan": {"net": MlpGanConfig(generator=(16,), discriminator=(16,))},
        "gan-conditional": {"net": ConvGanConfig(widths=(8, 16), embedding=8)},
        "gpu": {**small, "images": 512, "precision": "fp32", "compile": False},
        "laptop": small,
    }
    return replace(
        size, minutes=dict.fromkeys(size.minutes, 0.0), drawing=0, epochs=(0, 1), lengths=(1,), points=2,
        seconds=0.05, drawn=8, equal=256, equal_n=128, changes=changes,
    )  # fmt: skip


class OutOfTime(Exception):  # noqa: N818 (not an error)
    """Ends the part that is running."""


class Bench:
    """The folder of the results, and what all parts need."""

    def __init__(
        self, out: Path, size: Size, data: pd.Dataset, device: str, minutes: float, n: int | None, stop: Stop
    ) -> None:
        self.out, self.size, self.data, self.device, self.minutes = out, size, data, device, minutes
        self.began, self._said, self._n, self._stop = time.monotonic(), 0.0, n, stop
        for name in ("runs", "models", "scores", "pictures", "cache"):
            (out / name).mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Minutes that are left."""
        return self.minutes - (time.monotonic() - self.began) / 60

    def tick(self, what: str, done: int, total: int) -> None:
        """Says from time to time how far the work is.

        Raises:
            KeyboardInterrupt: After a signal.
            OutOfTime: When no time is left.
        """
        self._stop.check()
        if self.left <= 0:
            raise OutOfTime
        if time.monotonic() > self._said + 30:
            self._said = time.monotonic()
            print(f"  {what}: {done:,} of {total:,}", flush=True)

    def config(self, preset: str, **changes: Any) -> Any:
        """A preset in this size, with other values."""
        return pd.PRESETS[preset].replace(**{**self.size.changes.get(preset, {}), **changes})

    # Files

    def result(self, name: str) -> dict[str, Any] | None:
        """A result; None if there is none yet."""
        path = self.out / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def keep(self, name: str, result: Mapping[str, Any]) -> None:
        """Writes a result with the hardware, the versions and the commit that it was measured with."""
        write_file(self.out / f"{name}.json", json.dumps({**result, **self.where}, indent=2) + "\n")

    @cached_property
    def where(self) -> dict[str, Any]:
        """What each result names."""
        machine, software = hardware(self.device), versions()
        return {"hardware": machine.model_dump(), "versions": software.model_dump(), "commit": commit()}

    def run(self, name: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.out / "runs" / name)

    def model(self, epoch: int) -> Path:
        """The model file of the ddpm preset after an epoch."""
        return self.out / "models" / f"ddpm-epoch{epoch}.safetensors"

    # Work

    def train(
        self, name: str, config: MethodConfig, at: Mapping[int, Callable[[pd.Run], None]] | None = None
    ) -> pd.Run:
        """Trains a run to its end, or continues it. Calls ``at[seen]`` when the run has seen this many images; it is
        called again after an interrupt, so it must skip what is done.
        """
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        folder = self.run(name).path
        run, at = pd.Run(config, self.data, folder, device=self.device, progress=self.tick), at or {}

        def visit(seen: int) -> None:
            if seen in at:
                at[seen](run)

        visit(run.state.seen)
        with contextlib.closing(iter(run)) as reports:
            for report in reports:
                visit(report.seen)
                self.tick(f"training {name}", report.seen, run.length)
        return run

    @cached_property
    def reference(self) -> Reference:
        """What all scores compare with. Tiny data are scored by MNIST's classifiers too."""
        classifiers = find_or_train_classifiers(pd.load_data("mnist"))
        return Reference.of(self.data, classifiers, progress=self.tick, cache=self.out / "cache")

    def score(self, name: str, model: ImageModel, n: int) -> ScoreFile | None:
        """Scores a model, if that is not done; None if the images cannot be scored."""
        path = self.out / "scores" / f"{name}.json"
        if not path.exists():
            try:
                found = measured(model, self.reference, n, 0, name, progress=partial(self._scoring, name))
                content = found.record.model_dump_json(indent=2)
            except (EvaluationError, SamplingError) as error:  # Early in its training, a model may draw blank images.
                content = json.dumps({"fault": str(error)})
            write_file(path, f"{content}\n")
        return self.scored(name)

    def _scoring(self, name: str, what: str, done: int, total: int) -> None:
        self.tick(f"scoring {name}, {what}", done, total)

    def scored(self, name: str) -> ScoreFile | None:
        """A score; None if it is not made yet, or the images cannot be scored."""
        path = self.out / "scores" / f"{name}.json"
        return ScoreFile.read(path) if path.exists() and "fault" not in json.loads(path.read_text()) else None

    @cached_property
    def n(self) -> int:
        """Images in a score: the number that the ddpm preset can draw in `Size.drawing` minutes."""
        if (found := self.result("plan")) is None:
            found = self._planned() if self._n is None else {"n": self._n}
            self.keep("plan", found)
        return int(found["n"])

    def _planned(self) -> dict[str, Any]:
        model = pd.load(self.model(self.size.epochs[-1]), self.device)
        speed = evaluations_per_second(model, self.size.seconds)
        each = len(self.size.epochs) * sum(view.still.nfe() for view in model.views())
        fit = int(60 * self.size.drawing * speed / each) // 10 * 10
        return {"n": min(max(fit, self.size.least), 10_000), "evaluations_per_second": speed}


def evaluations_per_second(model: Any, seconds: float) -> float:
    """Network evaluations of one image per second while a model draws; measured for some seconds."""
    images = CPU_CHUNK if model.device.type == "cpu" else CHUNK
    steps, count = model.steps([0] * images), 0
    float(next(steps).x.sum())  # Waits for the device.
    began = now = time.perf_counter()
    for step in steps:
        float(step.x.sum())
        count, now = count + 1, time.perf_counter()
        if now > began + seconds:
            break
    return count * images * model.nfe() / (len(model.grid()) - 1) / (now - began)


# The parts: each returns the content of its result file


def ddpm(bench: Bench) -> dict[str, Any]:
    """Trains the ddpm preset; keeps its model and draws its pictures after some epochs."""
    epochs, n = bench.size.epochs, len(bench.data.train)

    def keep(epoch: int, run: pd.Run) -> None:
        if bench.result(f"ddpm-epoch{epoch}") is None:
            run.model.save(bench.model(epoch))
            gallery, due = Gallery(run.folder, run.model, bench.data.train), Due(epoch, run.state.seen, True, True)
            gallery.draw(due, bench.tick)
            facts = {"images_seen": run.state.seen, "training_seconds": run.training_seconds}
            bench.keep(f"ddpm-epoch{epoch}", facts)

    config = bench.config("ddpm", epochs=epochs[-1] + 1, pictures_every=NEVER, gifs_every=NEVER)
    run = bench.train("ddpm", config, {(epoch + 1) * n: partial(keep, epoch) for epoch in epochs})
    return summary(run)


def scores(bench: Bench) -> dict[str, Any]:
    """Scores these models at each guidance strength, the last epoch first."""
    for epoch in bench.size.epochs[::-1]:
        for view in pd.load(bench.model(epoch), bench.device).views():
            bench.score(f"ddpm-epoch{epoch}{view.suffix}", view.still, bench.n)
    return {"n": bench.n}


def gans(bench: Bench) -> dict[str, Any]:
    """Trains and scores both GANs with the batch and the learning rate of the ddpm preset."""
    like = bench.config("ddpm")
    equal = {"batch": like.batch, "generator_lr": like.adam_lr, "discriminator_lr": like.adam_lr}
    found = {}
    for length in bench.size.lengths[::-1]:
        for preset in ("gan", "gan-conditional"):
            name = f"{preset}-{length}-epochs"
            run = bench.train(name, bench.config(preset, epochs=length, **equal))
            bench.score(name, run.model, bench.n)
            found[name] = summary(run)
    return found


def gpu(bench: Bench) -> dict[str, Any]:
    """Trains the gpu preset and scores it on the way; finds its time to the ddpm preset's distance."""
    config = bench.config("gpu", pictures_every=NEVER, gifs_every=NEVER)
    steps = config.images // config.batch

    def keep(point: int, run: pd.Run) -> None:
        name = f"gpu-point{point}"
        if bench.result(name) is None:
            bench.score(name, run.model, bench.n)
            bench.keep(name, {"images_seen": run.state.seen, "training_seconds": run.training_seconds})

    points = range(1, bench.size.points + 1)
    at = {config.batch * (steps * point // len(points)): partial(keep, point) for point in points}
    run = bench.train("gpu", config, at)
    goal = distance(bench.scored(last_ddpm(bench)))
    reached = [seconds for seconds, _, score in gpu_points(bench) if distance(score) <= goal < math.inf]
    return {**summary(run), "seconds_to_ddpm_distance": min(reached, default=None)}


def throughput(bench: Bench) -> dict[str, Any]:
    """Images per second of training and of drawing."""
    found, data = {}, bench.data
    for preset in ("ddpm", "laptop", "gpu"):
        config = bench.config(preset, images=10**9)
        method = pd.METHODS.find(config.kind)
        state = method.new_state(config, data.info, bench.device, pd.load)
        steps = train(method, state, data.train.to(torch.device(bench.device)), config)
        list(islice(steps, WARM))
        began, before = time.perf_counter(), state.seen
        while time.perf_counter() < began + bench.size.seconds:
            bench.tick(f"speed of {preset}", 0, 1)
            next(steps)
        speed = (state.seen - before) / (time.perf_counter() - began)
        model, labels = method.model(state.ema, config, data.info), [0] * bench.size.drawn
        model(labels[:1])
        began = time.perf_counter()
        model(labels)
        drawing = len(labels) / (time.perf_counter() - began)
        facts = {"batch": config.batch, "precision": config.precision, "compile": config.compile, "how": model.how()}
        found[preset] = {"training": speed, "drawing": drawing, "nfe": model.nfe(), **facts}
    return found


def parameters(bench: Bench) -> dict[str, Any]:
    """Trains and scores a plain GAN, a conditional GAN and laptop with equal numbers of weights and images."""
    found = {}
    for preset in EQUAL:
        name, narrow = f"equal-{preset}", {"net": NARROW} if preset == "gan" else {}
        run = bench.train(name, bench.config(preset, images=bench.size.equal, pictures_every=1, **narrow))
        bench.score(name, run.model, bench.size.equal_n)
        found[name] = summary(run)
    return found


def summary(run: pd.Run) -> dict[str, Any]:
    """A run's summary as plain values."""
    assert run.summary is not None  # noqa: S101 (it is finished)
    return run.summary.model_dump(mode="json")


def distance(score: ScoreFile | None) -> float:
    """The distance to the training split; infinite if there is no score."""
    found = None if score is None else score.metrics["frechet_train"]
    return math.inf if found is None else found


def last_ddpm(bench: Bench) -> str:
    """The name of the score of the ddpm preset after its last epoch, at its own scale."""
    return f"ddpm-epoch{bench.size.epochs[-1]}_w{bench.config('ddpm').sampling.scale - 1:g}"


def gpu_points(bench: Bench) -> list[tuple[float, int, ScoreFile]]:
    """Seconds of training, images seen and the score at each point of the gpu preset's run."""
    found = []
    for point in range(1, bench.size.points + 1):
        facts, score = bench.result(f"gpu-point{point}"), bench.scored(f"gpu-point{point}")
        if facts is not None and score is not None:
            found.append((facts["training_seconds"], facts["images_seen"], score))
    return found


# The text of each part of the report, from the files that exist


def ddpm_text(bench: Bench) -> str:
    """Its pictures: a row for each epoch, a column for each guidance strength."""
    strengths = bench.config("ddpm").guidance_strengths
    rows = [["epoch", *(f"w = {w:g}" for w in strengths)]]
    for epoch in bench.size.epochs:
        if bench.result(f"ddpm-epoch{epoch}") is not None:
            files = [bench.run("ddpm").image(epoch, f"_w{w:g}") for w in strengths]
            rows.append([f"{epoch}", *(shown(bench, file, f"ddpm_{file.name[6:]}") for file in files)])
    return table(rows) + "\nFour rows of generated digits above four rows of real ones.\n" if rows[1:] else ""


def scores_text(bench: Bench) -> str:
    """Scores by epoch and guidance strength, with a plot."""
    strengths, real = bench.config("ddpm").guidance_strengths, None
    rows = [["epoch", "images seen", "seconds of training", "w", *(pd.METRICS[key].name for key in SHOWN)]]
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {key: {} for key in MAIN}
    for epoch in bench.size.epochs:
        for w in strengths:
            facts, score = bench.result(f"ddpm-epoch{epoch}"), bench.scored(f"ddpm-epoch{epoch}_w{w:g}")
            if facts is None or score is None:
                continue
            seen, seconds, real = f"{facts['images_seen']:,}", f"{facts['training_seconds']:,.0f}", score
            rows.append([f"{epoch}", seen, seconds, f"{w:g}", *cells(score)])
            for key in MAIN:
                if (value := score.metrics[key]) is not None:
                    curves[key].setdefault(f"w = {w:g}", []).append((epoch, value))
    if real is None:
        return ""
    baseline = {key: real.real_baseline.get(key) for key in MAIN}
    rows.append(["real images", "", "", "", *(pd.METRICS[key].text(real.real_baseline.get(key)) for key in SHOWN)])
    marks = {pd.METRICS[key].name: value for key, value in baseline.items() if value is not None}
    figure = plots.lines([(pd.METRICS[key].name, some) for key, some in curves.items() if some], "epoch", marks)
    write_file(bench.out / "pictures" / "ddpm-scores.png", plots.png(figure))
    how = real.provenance.drawing and real.provenance.drawing.sampling.sampler
    text = f"\nEach score is of {real.provenance.n:,} images, drawn by {how} with all steps of the chain.\n"
    return f"{table(rows)}{text}\n![scores by epoch](pictures/ddpm-scores.png)\n"


def gans_text(bench: Bench) -> str:
    """The GANs' pictures, and all models side by side."""
    names = [f"{preset}-{length}-epochs" for length in bench.size.lengths for preset in ("gan", "gan-conditional")]
    rows = [["", *names], ["after the last epoch"]]
    for name in names:
        epochs = bench.run(name).image_epochs("")
        rows[1].append(shown(bench, epochs[max(epochs)], f"{name}.png") if epochs else "")
    diffusion = {"ddpm": (last_ddpm(bench), "ddpm"), "gpu": (f"gpu-point{bench.size.points}", "gpu")}
    text = compared(bench, "gans", {name: (name, name) for name in names} | diffusion)
    return f"{table(rows)}\n{text}" if text else ""


def gpu_text(bench: Bench) -> str:
    """The scores of the gpu preset by seconds of training, and when it is as good as the ddpm preset."""
    if not (points := gpu_points(bench)):
        return ""
    rows = [["images seen", "seconds of training", *(pd.METRICS[key].name for key in SHOWN)]]
    rows += [[f"{seen:,}", f"{seconds:,.0f}", *cells(score)] for seconds, seen, score in points]
    curves = {"gpu": [(seconds, distance(score)) for seconds, _, score in points]}
    if (goal := distance(bench.scored(last_ddpm(bench)))) < math.inf:
        curves["ddpm, after its last epoch"] = [(seconds, goal) for seconds, _, _ in points]
    figure = plots.lines([(pd.METRICS["frechet_train"].name, curves)], "seconds of training")
    write_file(bench.out / "pictures" / "gpu-scores.png", plots.png(figure))
    text, result = "", bench.result("gpu")
    trained = bench.result(f"ddpm-epoch{bench.size.epochs[-1]}")
    if result is not None and trained is not None:
        reached = result["seconds_to_ddpm_distance"]
        when = "at none of these points" if reached is None else f"first after {reached:,.0f} s of training"
        theirs = f"{pd.METRICS['frechet_train'].text(goal)}, after {trained['training_seconds']:,.0f} s of training"
        text = f"\nIts distance is at or below that of the ddpm preset ({theirs}) {when}.\n"
    return f"{table(rows)}{text}\n![distance by seconds of training](pictures/gpu-scores.png)\n"


def throughput_text(bench: Bench) -> str:
    """A row for each preset."""
    rows = [["preset", "training, images/s", "batch", "precision", "drawing, images/s", "drawn by", "NFE"]]
    for preset, facts in (bench.result("throughput") or {}).items():
        if preset in pd.PRESETS:
            precision = facts["precision"] + ", compiled" * facts["compile"]
            numbers = f"{facts['training']:,.0f}", f"{facts['batch']}", precision, f"{facts['drawing']:,.3g}"
            rows.append([preset, *numbers, facts["how"], f"{facts['nfe']:g}"])
    return table(rows) if rows[1:] else ""


def parameters_text(bench: Bench) -> str:
    """The models side by side."""
    return compared(bench, "parameters", {preset: (f"equal-{preset}", f"equal-{preset}") for preset in EQUAL})


def cells(score: ScoreFile) -> list[str]:
    """The values of a score with their intervals."""
    found = ((pd.METRICS[key], score.estimate(key)) for key in SHOWN)
    return ["" if e is None else f"{metric.text(e.value)} ({metric.interval(e)})" for metric, e in found]


def compared(bench: Bench, name: str, models: Mapping[str, tuple[str, str]]) -> str:
    """A comparison of the models that have a score; NAME.md has all differences.

    Args:
        bench: Has the scores.
        name: Of the file.
        models: The names of each model's score and run.
    """
    entries = []
    for model, (scored, run) in models.items():
        if (score := bench.scored(scored)) is not None:
            path = bench.run(run).summary
            trained = Summary.model_validate_json(path.read_bytes()) if path.exists() else None
            # All runs are of one process, so its peak memory is not that of a run.
            entries.append(Entry(model, score, trained and trained.replace(peak_memory_bytes=None)))
    if not entries:
        return ""
    text = Comparison(entries).table()
    write_file(bench.out / f"{name}.md", text)
    values, _, _ = text.strip().partition("\n\n")
    return f"{values}\n\n[All differences and notes]({name}.md)\n"


def shown(bench: Bench, picture: Path, name: str) -> str:
    """Copies a picture into the folder ``pictures``; a link to it."""
    shutil.copyfile(picture, bench.out / "pictures" / name)
    return f"![{name}](pictures/{name})"


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown; the first is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]) + "\n"


class Part(NamedTuple):
    """A part of the work."""

    title: str
    work: Callable[[Bench], dict[str, Any]]
    text: Callable[[Bench], str]
    needs: tuple[str, ...] = ()


EPOCHS = "Equal epochs, batch and learning rate: the GANs and the diffusion models"
PARTS = {
    "ddpm": Part("The ddpm preset: pictures", ddpm, ddpm_text),
    "scores": Part("The ddpm preset: scores", scores, scores_text, ("ddpm",)),
    "gans": Part(EPOCHS, gans, gans_text, ("ddpm",)),
    "gpu": Part("The gpu preset: time to the ddpm preset's distance", gpu, gpu_text, ("ddpm", "scores")),
    "throughput": Part("Speed", throughput, throughput_text),
    "parameters": Part("Equal numbers of weights and images", parameters, parameters_text),
}


def report(bench: Bench, faults: Mapping[str, str]) -> None:
    """Writes report.md and results.json from what is there."""
    machine = f"{hardware(bench.device)}, torch {torch.__version__}, commit {bench.where['commit']}"
    lines = ["# The original experiment in full, and what it is compared with", "", f"{machine}.", ""]
    for name in bench.size.minutes:
        lines += [f"## {PARTS[name].title}", ""]
        if bench.result(name) is None:
            why = f" It failed: {faults[name]}." if name in faults else ""
            lines += [f"Not run, or not run to its end; the same command continues.{why}", ""]
        lines += [PARTS[name].text(bench)]
    write_file(bench.out / "report.md", "\n".join(lines).strip() + "\n")
    results = {
        "not_run": [name for name in bench.size.minutes if bench.result(name) is None],
        "results": {path.stem: json.loads(path.read_text()) for path in _records(bench.out)},
        "scores": {path.stem: json.loads(path.read_text()) for path in _records(bench.out / "scores")},
    }
    write_file(bench.out / "results.json", json.dumps(results, indent=2) + "\n")


def _records(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.name != "results.json")


def work(bench: Bench, faults: dict[str, str]) -> None:
    """Does the parts that are left and fit into the time; notes the faults of those that failed."""
    for name, estimate in bench.size.minutes.items():
        left = [part for part in bench.size.minutes if bench.result(part) is None]
        if name not in left:
            continue
        done, title = [part for part in bench.size.minutes if part not in left], PARTS[name].title
        print(f"done: {', '.join(done) or 'nothing'}; left: {', '.join(left)}", flush=True)
        if missing := [part for part in PARTS[name].needs if part in left]:
            print(f"{name} needs {' and '.join(missing)}, and is left out", flush=True)
            continue
        if estimate > bench.left:
            print(f"{name} takes about {estimate:g} minutes, {max(bench.left, 0):.1f} are left: left out", flush=True)
            continue
        print(f"{name}: {title}", flush=True)
        began = time.monotonic()
        try:
            result = PARTS[name].work(bench)
            bench.keep(name, {"seconds": time.monotonic() - began, **result})
        except OutOfTime:
            print(f"no time is left; {name} is unfinished", flush=True)
        except PocketdiffError as error:
            faults[name] = str(error)
            print(f"{name} failed: {error}", flush=True)


def main() -> None:
    """Runs the parts that are not finished, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of runs and results")
    parser.add_argument("--size", choices=SIZES, default="gpu", help="gpu: the presets as they are; cpu: n_feat 32")
    parser.add_argument("--tiny", action="store_true", help="everything shrunk, on the CPU")
    parser.add_argument("--minutes", type=float, help="of this call (default: 25 with --size gpu, else no limit)")
    parser.add_argument("--n", type=int, help="images in a score of parts 2 to 4, for a new folder (default: by speed)")
    flags = parser.parse_args()
    size, device = SIZES[flags.size], "cuda" if flags.size == "gpu" and not flags.tiny else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; use --size cpu, or --tiny to try the script")
    kind = f"{flags.size}{', tiny' if flags.tiny else ''}\n"
    flags.out.mkdir(parents=True, exist_ok=True)
    if (known := flags.out / "size.txt").exists() and known.read_text() != kind:
        parser.error(f"{flags.out} holds results of the size {known.read_text().strip()}; use another --out folder")
    write_file(known, kind)
    data = pd.load_data("mnist")
    if flags.tiny:
        size, train_split, test_split = tiny(size), data.train, data.test
        few = (train_split.pixels[:256], train_split.labels[:256], test_split.pixels[:128], test_split.labels[:128])
        data = pd.Dataset.from_arrays(*few)
    limit = math.inf if flags.size == "cpu" else 25.0
    minutes = limit if flags.minutes is None else flags.minutes
    faults: dict[str, str] = {}
    with Stop() as stop:  # A step is finished before the call ends: a run that is interrupted inside one is not saved.
        bench = Bench(flags.out, size, data, device, minutes, flags.n, stop)
        try:
            work(bench, faults)
        except KeyboardInterrupt:
            print("interrupted; the same command continues")
            raise SystemExit(INTERRUPTED) from None
        finally:
            report(bench, faults)
    print(f"wrote {flags.out / 'report.md'} and {flags.out / 'results.json'}")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
