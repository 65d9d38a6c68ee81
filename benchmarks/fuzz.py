"""Damaged and hostile files: every reader gives a valid object or one of the package's own errors, soon and in bounds.

    python benchmarks/fuzz.py [--files N] [--parts files,header,hostile] [--readers NAME,...] [--seed S] [--jobs J]

Three parts. ``files`` damages valid files of every kind, by bytes and by structure, and reads each in a process that
may take 5 seconds of processor time (60 by the clock) and 1 GB more than an idle one. ``header`` flips every bit of a
checkpoint's header: each must be refused, or give the same tensors, position and config. ``hostile`` reads small model
files that ask for the largest networks, and prints time and memory of each refusal.

A case depends on the seed and its number only. ``--case N`` runs one again and shows its traceback. Exit status 1 if a
reader failed; the files are then in ``--out``.
"""

import argparse
import contextlib
import gzip
import io
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import safetensors.torch
import torch
from mutations import mutated
from PIL import Image

import pocketdiff as pd
from pocketdiff.checkpoint import RunConfig, newest_checkpoint, read_checkpoint, read_run_config, save_checkpoint
from pocketdiff.data import Dataset, load_images
from pocketdiff.errors import CheckpointError, PocketdiffError
from pocketdiff.evaluation import ScoreFile, comparison
from pocketdiff.folder import RunFolder
from pocketdiff.importer import _tables, import_ddpm
from pocketdiff.methods.loop import train
from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.gan import ConvGanConfig, MlpGanConfig
from pocketdiff.records import Interval, hardware, versions
from pocketdiff.run.log import MetricsLog
from pocketdiff.schedule import DiscreteBeta
from pocketdiff.tensors import fingerprint

SECONDS, HANGS, BYTES = 5, 60, 10**9
"""What one case may take: processor time, time by the clock, address space beyond that of an idle process."""
Files = dict[str, bytes]
"""The content of files by relative path."""


class Reader(NamedTuple):
    """A reader: valid inputs, and how the whole input, in a folder, is read."""

    bases: list[Files]
    read: Callable[[Path], object]


class Result(NamedTuple):
    """What a reader did with a case: "valid", "refused", or what went wrong."""

    reader: str
    outcome: str
    seconds: float
    peak: int


# Valid inputs


def small_data(channels: int = 1) -> Dataset:
    """Twenty-four random images of 16 x 16 pixels in three classes, and a model's view of them."""
    shape = (24, channels, 16, 16)
    pixels = np.random.default_rng(channels).integers(0, 256, shape, dtype=np.uint8)
    return Dataset.from_arrays(pixels, np.arange(24) % 3, classes=("a", "b", "c"))


def configs() -> list[Any]:
    """A config of each method and network, as small as possible."""
    unet, short = pd.UNetConfig(widths=(8,), blocks=1, embedding=8), {"images": 16, "batch": 8}
    chain = DiscreteBeta(timesteps=9, zeroth=True)
    sampling = pd.SamplingConfig(sampler="ancestral", steps=4, options={"eta": 0.5}, interval=(0.1, 2.0))
    return [
        pd.DiffusionConfig(net=unet, sampling=sampling, **short),
        pd.DiffusionConfig(net=ContextUnetConfig(n_feat=8), schedule=chain, parameterization="eps", **short),
        pd.GanConfig(net=ConvGanConfig(widths=(8,), latent=2, embedding=8), **short),
        pd.GanConfig(net=MlpGanConfig(latent=2, generator=(4,), discriminator=(4,)), classification=0, **short),
    ]  # fmt: skip


def content(folder: Path) -> Files:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def trained(config: Any, folder: Path) -> None:
    """A model file, a checkpoint, a config and a log after two steps."""
    data, run, method = small_data(), RunFolder(folder), pd.METHODS.find(config.kind)
    state = method.new_state(config, data.info, "cpu", pd.load)
    folder.mkdir(parents=True, exist_ok=True)
    log, before = MetricsLog(run, 8, config.ends(len(data.train))), 0
    for report in train(method, state, data.train, config):
        log.add(report, before, 1.0)
        before = report.seen
    log.write({"step": 2, "seen": 16, "evaluation": {"accuracy": 0.5}, "real_baseline": {}})
    about = RunConfig(train=config, data=data.info)
    save_checkpoint(run, state, about)
    run.config.write_text(about.to_json())
    method.model(state.ema, config, data.info).save(run.model)


def score_text() -> str:
    """What ``evaluate --json`` writes, with made-up values."""
    machine, network = hardware().model_dump(), {"name": "features", "sha256": "b" * 64, "accuracy": 0.99}
    metrics = {"frechet_train": 1.0, "accuracy": 0.9, "recall": None}
    intervals = {"frechet_train": [0.5, 1.5], "accuracy": [0.8, 0.95]}
    drawing = {"how": "euler", "sampling": {"nfe": 1.0, "steps": 2}, "seconds": 3.0, "hardware": machine}
    facts = {
        "target": "a run", "n": 1000, "seed": 0, "data": "mnist", "data_sha256": "a" * 64, "train_images": 60000,
        "test_images": 10000, "feature_network": network, "label_network": network, "k": 5, "compared_with": 1000,
        "baseline_images": 1000, "seconds": 9.0, "hardware": machine, "versions": versions().model_dump(),
        "drawing": drawing,
    }  # fmt: skip
    of_class = {"images": 9, "read_as": {"3": 5}, "real_baseline": {}, "metrics": metrics, "intervals": intervals}
    score = {
        "real_baseline": {"accuracy": 0.99},
        "controls": {"noise": {"accuracy": 0.1}},
        "per_class": {"3": of_class},
    }
    return json.dumps({**score, "metrics": metrics, "intervals": intervals, "provenance": facts})


def summary_text() -> str:
    """What a finished run writes."""
    counts = {"steps": 9, "images_seen": 900, "parameters": 5000, "peak_memory_bytes": 10**8}
    times = {"training_seconds": 60.0, "other_seconds": 1.0, "images_per_second": 15.0, "peak_gpu_memory_bytes": None}
    machine = {"hardware": hardware().model_dump(), "versions": versions().model_dump(), "commit": None}
    return json.dumps({**counts, **times, **machine})


def state_dict(classes: int) -> bytes:
    """What the DDPM-MNIST script saves."""
    net = ContextUnetConfig(n_feat=8).build((1, 28, 28), classes)
    tables = {name: table.float() for name, table in _tables(DiscreteBeta(timesteps=9, zeroth=True)).items()}
    file = io.BytesIO()
    torch.save({**tables, **{f"nn_model.{name}": tensor for name, tensor in net.state_dict().items()}}, file)
    return file.getvalue()


def pictures(channels: int) -> Files:
    """A folder of images: four PNG and JPEG files in each of two classes."""
    found = {}
    for number in range(8):
        pixels = small_data(channels).train.pixels[number].permute(1, 2, 0).squeeze(2).numpy()
        file, ending = io.BytesIO(), "png" if number % 2 else "jpg"
        Image.fromarray(pixels).save(file, "PNG" if number % 2 else "JPEG")
        found[f"{'ab'[number % 4 // 2]}/{number}.{ending}"] = file.getvalue()
    return found


def arrays(save: Callable[..., None], channels: int) -> Files:
    """An npz file."""
    data, file = small_data(channels), io.BytesIO()
    train, test = data.train, data.test
    test_set = {"test_images": test.pixels.numpy(), "test_labels": test.labels.numpy()} if channels == 3 else {}
    save(file, images=train.pixels.numpy(), labels=train.labels.numpy(), **test_set)
    return {"data.npz": file.getvalue()}


def idx_files(zipped: bool) -> Files:
    """MNIST's layout."""
    found = {}
    for part, images in (("train", small_data().train), ("t10k", small_data().test)):
        for kind, array in (("images-idx3", images.pixels[:, 0].numpy()), ("labels-idx1", images.labels.numpy())):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            body = header + array.astype(np.uint8).tobytes()
            found[f"{part}-{kind}-ubyte{'.gz' * zipped}"] = gzip.compress(body, mtime=0) if zipped else body
    return found


def readers() -> dict[str, Reader]:
    """All readers of files, with their valid inputs."""
    info, grey, color = small_data().info, pictures(1), pictures(3)
    loose = [{name.replace("/", ""): image for name, image in folder.items()} for folder in (grey, color)]
    npz = [arrays(np.savez, 1), arrays(np.savez_compressed, 1), arrays(np.savez_compressed, 3)]
    with tempfile.TemporaryDirectory() as place:
        for number, config in enumerate(configs()):
            trained(config, Path(place, str(number)))
        runs = [content(Path(place, str(number))) for number in range(len(configs()))]

    def only(ending: str) -> list[Files]:
        return [{name: run[name] for name in run if name.endswith(ending)} for run in runs]

    scores = {"one.json": score_text().encode(), "two.json": score_text().encode()}
    return {
        "idx": Reader([idx_files(zipped=False), idx_files(zipped=True)], lambda place: pd.load_data(str(place))),
        "npz": Reader(npz, lambda place: pd.load_data(str(place / "data.npz"))),
        "npz-images": Reader(npz, lambda place: load_images(str(place / "data.npz"), info)),
        "folder": Reader([grey, color], lambda place: pd.load_data(str(place))),
        "resized": Reader([grey, color], lambda place: pd.load_data(str(place), (20, 16))),
        "loose": Reader([*loose, grey], lambda place: load_images(str(place), info)),
        "model": Reader(only("model.safetensors"), _model),
        "checkpoint": Reader(only("2.safetensors"), _checkpoint),
        "newest": Reader(only("2.safetensors"), lambda place: newest_checkpoint(RunFolder(place))),
        "config": Reader(only("config.json"), lambda place: read_run_config(RunFolder(place))),
        "metrics": Reader(only("metrics.jsonl"), _metrics),
        "score": Reader([scores], lambda place: [ScoreFile.read(path) for path in place.iterdir()]),
        "compare": Reader([scores], _comparison),
        "summary": Reader([{"summary.json": summary_text().encode()}], lambda place: _summary(RunFolder(place))),
        "import": Reader([{"a.pth": state_dict(classes)} for classes in (2, 10)], _import),
    }


def _model(place: Path) -> object:
    model = pd.load(place)
    return model.facts(), repr(model), model.config.model_dump_json()


def _checkpoint(place: Path) -> object:
    return read_checkpoint(RunFolder(place).checkpoint(2))


def _metrics(place: Path) -> object:
    log = MetricsLog(RunFolder(place), 8, (16,))
    log.resume(1, Interval(seen=8))
    return log.scores()


def _comparison(place: Path) -> object:
    found = pd.compare([place / "one.json", place / "two.json"])
    return found.table(), json.dumps(found.json(), allow_nan=False)


def _summary(folder: RunFolder) -> object:
    return comparison._summary(folder) or "damaged"


def _import(place: Path) -> object:
    return import_ddpm(place / "a.pth").facts()


# Cases


def case(table: dict[str, Reader], seed: int, number: int) -> tuple[str, Files]:
    """The reader and the damaged input of a case."""
    rng, names = Random(f"{seed} {number}"), sorted(table)  # noqa: S311
    name = names[number % len(names)]
    base, other = rng.choice(table[name].bases), rng.choice(table[name].bases)
    damaged = rng.choice(sorted(base))
    return name, {**base, damaged: mutated(rng, damaged, base[damaged], other.get(damaged, base[damaged]))}


@contextlib.contextmanager
def written(files: Files) -> Iterator[Path]:
    """A temporary folder with these files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:  # noqa: S108
        for name, body in files.items():
            path = Path(place, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        yield Path(place)


def attempt(read: Callable[[], object]) -> tuple[str, float, int]:
    """How a call ends, its processor time, and the memory it takes at its peak; Linux only (elsewhere 0)."""
    before = _peak(reset=True)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # Its signal ends the process, also inside a library.
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        outcome = "valid" if read() is not None else "gives nothing"
    except PocketdiffError as error:
        outcome = "refused" if str(error).strip() and "\n" not in str(error) else "refused in two lines"
    except Exception as error:  # noqa: BLE001
        outcome = type(error).__name__
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)
    return outcome, time.process_time() - began, _peak() - before


def _peak(reset: bool = False) -> int:
    """The peak of resident memory in bytes; with ``reset`` it starts from now."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return 0


def _limit() -> None:
    """Limits this process's address space."""
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _work(table: dict[str, Reader], seed: int, numbers: range, pipe: Connection) -> None:
    _limit()
    for number in numbers:
        name, files = case(table, seed, number)
        with written(files) as place:
            found = attempt(lambda name=name, place=place: table[name].read(place))  # type: ignore[misc]
        pipe.send((number, Result(name, *found)))
    pipe.close()


def run(table: dict[str, Reader], seed: int, count: int, jobs: int) -> Iterator[tuple[int, Result]]:
    """The result of each case; a process that dies is replaced, and its case reported."""
    context = get_context("fork")  # The libraries are imported and the valid inputs made once.
    working: dict[Connection, tuple[Any, range]] = {}

    def start(numbers: range) -> None:
        if numbers:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(table, seed, numbers, theirs))
            process.start()
            theirs.close()
            working[ours] = process, numbers

    for job in range(jobs):
        start(range(job, count, jobs))
    while working:
        for pipe in wait(list(working)):
            assert isinstance(pipe, Connection)  # noqa: S101 (for the type checker)
            process, numbers = working.pop(pipe)
            try:
                number, result = pipe.recv()
                working[pipe] = process, numbers[1:]
                yield number, result
            except EOFError:
                process.join()
                if numbers:  # It died in a case.
                    name, code = case(table, seed, numbers[0])[0], -(process.exitcode or 0)
                    limits: dict[int, str] = {
                        signal.SIGPROF: f"over {SECONDS} s",
                        signal.SIGALRM: f"hung for {HANGS} s",
                    }
                    outcome = limits.get(code, f"died of signal {code}")
                    yield numbers[0], Result(name, outcome, SECONDS, 0)
                    start(numbers[1:])


def fuzz(flags: argparse.Namespace) -> bool:
    """Reads damaged files; whether all went well."""
    table = {
        name: reader for name, reader in readers().items() if not flags.readers or name in flags.readers.split(",")
    }
    if flags.case is not None:
        return again(table, flags)
    began, results = time.perf_counter(), list[Result]()
    for number, result in run(table, flags.seed, flags.files, flags.jobs):
        results.append(result)
        if result.outcome not in {"valid", "refused"}:
            name, files = case(table, flags.seed, number)
            for file, body in files.items():
                path = flags.out / f"{name}-{number}" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(body)
            print(f"{name}: case {number} of seed {flags.seed}: {result.outcome} (--readers {name} --case {number})")
        if len(results) % 10_000 == 0:
            print(f"{len(results):,} files, {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n{'reader':12} {'files':>7} {'valid':>7} {'refused':>7} {'faults':>7} {'slowest':>9} {'largest':>9}")
    for name in [*table, "all"]:
        mine = [result for result in results if name in (result.reader, "all")]
        counts = Counter(result.outcome for result in mine)
        faults = len(mine) - counts["valid"] - counts["refused"]
        slowest, largest = max(r.seconds for r in mine), max(r.peak for r in mine)
        figures = f"{len(mine):7,} {counts['valid']:7,} {counts['refused']:7,} {faults:7,}"
        print(f"{name:12} {figures} {slowest:7.2f} s {largest / 1e6:6.0f} MB")
    print(f"{len(results):,} files in {time.perf_counter() - began:.0f} s\n")
    return all(result.outcome in {"valid", "refused"} for result in results)


def again(table: dict[str, Reader], flags: argparse.Namespace) -> bool:
    """One case, with its traceback."""
    name, files = case(table, flags.seed, flags.case)
    with written(files) as place:
        try:
            print(f"{name}: {table[name].read(place)!r:.2000}")
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            return isinstance(error, PocketdiffError)
    return True


# A checkpoint's header, bit by bit


def flip_header(flags: argparse.Namespace) -> bool:
    """Flips every bit of a checkpoint's header; whether none gave another state."""
    with tempfile.TemporaryDirectory() as place:
        trained(configs()[3], Path(place))
        path = RunFolder(place).checkpoint(2)
        good, body = read_checkpoint(path), path.read_bytes()
    bits = 8 * (8 + int.from_bytes(body[:8], "little"))
    with get_context("fork").Pool(flags.jobs, torch.set_num_threads, (1,)) as pool:
        parts = [(body, range(job, bits, flags.jobs), path.name, good) for job in range(flags.jobs)]
        counts = sum(pool.starmap(_flips, parts), Counter[str]())
    print(f"{bits:,} single-bit flips of a checkpoint's header: {dict(counts)}\n")
    return counts.keys() <= {"refused", "equal"}


def _flips(body: bytes, bits: range, name: str, good: Any) -> Counter[str]:
    counts = Counter[str]()
    with written({name: body}) as place, (place / name).open("r+b") as file:
        for bit in bits:
            for byte in (body[bit // 8] ^ 1 << bit % 8, None):
                file.seek(bit // 8)
                file.write(bytes([body[bit // 8] if byte is None else byte]))
                file.flush()
                if byte is not None:
                    counts[_flipped(place / name, good)] += 1
    return counts


def _flipped(path: Path, good: Any) -> str:
    try:
        found = read_checkpoint(path)
    except CheckpointError:
        return "refused"
    except Exception as error:  # noqa: BLE001
        return type(error).__name__
    same = found[:3] == good[:3] or (found.position, found.config) == (good.position, good.config)
    return "equal" if same and fingerprint(found.tensors, {}) == fingerprint(good.tensors, {}) else "CHANGED"


# Hostile model files


def hostile_changes() -> list[tuple[str, int, Callable[[dict[str, Any]], object]]]:
    """Descriptions that ask for too much, each with the number of its config."""

    def net(number: int, **fields: Any) -> tuple[str, int, Callable[[dict[str, Any]], object]]:
        name = ", ".join(f"{key} {value}" for key, value in fields.items())
        return f"net: {name}"[:40], number, lambda about: about["train"]["net"].update(fields)

    def at(number: int, part: str, **fields: Any) -> tuple[str, int, Callable[[dict[str, Any]], object]]:
        name = ", ".join(f"{key} {value!s:.20}" for key, value in fields.items())
        return f"{part}: {name}", number, lambda about: _part(about, part).update(fields)

    most = {"blocks": 16, "widths": [1024] * 5, "embedding": 4096}
    found = [net(0, blocks=blocks) for blocks in (10**9, 10**4, 17)]
    found += [net(0, widths=widths) for widths in ([8000], [2**40], [8] * 10**4, [1024] * 5)]
    found += [net(0, embedding=size) for size in (10**9, 10**5, 4096)]
    found += [net(0, **most), net(1, n_feat=10**6), net(1, n_feat=1024), net(2, widths=[1024] * 5, embedding=4096)]
    found += [net(2, latent=10**9), net(3, generator=[2**16] * 8), net(3, discriminator=[2**16] * 8)]
    found += [net(3, latent=4096), net(0, kind=["unet"]), net(0, kind={"kind": 1}), net(0, kind="\x1b[2Jmine")]
    found += [at(0, "data", **{side: size}) for side in ("height", "width") for size in (20_000, 10**12, 0, -1)]
    found += [at(0, "data", channels=count) for count in (10**6, 2, 0, -3)]
    found += [at(0, "data", classes=[str(number) for number in range(count)]) for count in (0, 10**5)]
    found += [at(0, "data", sha256="\x1b[2J"), at(0, "data", train_images=-1), at(0, "data", test_images=None)]
    found += [at(0, "train", kind=[]), at(0, "train", guidance_strengths=list(range(10**4)))]
    found += [at(0, "train", gif_steps=10**9), at(0, "train.sampling", steps=10**9)]
    found += [at(0, "train.sampling", steps=10**5, sampler="heun", options={})]
    found += [at(1, "train.schedule", timesteps=steps) for steps in (10**9, 10**5)]
    found += [at(0, "train.sampling", options={"eta": 1e308}), at(0, "train.schedule", sigma_max=1e300)]
    return [*found, at(2, "data", height=64, width=64, channels=3)]


def _part(about: dict[str, Any], names: str) -> dict[str, Any]:
    for name in names.split("."):
        about = about[name]
    return about


def hostile(flags: argparse.Namespace) -> bool:  # noqa: ARG001 (one signature for all parts)
    """Loads hostile model files; whether each was refused within a second and 100 MB."""
    bases, well = readers()["model"].bases, True
    print(f"{'hostile model file':44} {'file':>9} {'time':>7} {'memory':>8}  outcome")
    for name, number, change in hostile_changes():
        (body,) = bases[number].values()
        held = safetensors.torch.load(body)
        size = int.from_bytes(body[:8], "little")
        about = json.loads(json.loads(body[8 : 8 + size])["__metadata__"]["pocketdiff"])
        about.pop("sha256")
        change(about)
        text = json.dumps({**about, "sha256": fingerprint(held, about)})
        changed = safetensors.torch.save(held, {"pocketdiff": text})
        with written({"model.safetensors": changed}) as place, get_context("fork").Pool(1, _limit) as pool:
            result = pool.apply_async(_loaded, (place,))
            outcome, seconds, peak = result.get(60)
        fine = outcome == "refused" and seconds <= 1 and peak <= 100e6
        well &= fine
        note = "" if fine else "  !"
        print(f"{name:44.44} {len(changed):9,} {seconds:5.2f} s {peak / 1e6:5.0f} MB  {outcome}{note}")
    return well


def _loaded(place: Path) -> tuple[str, float, int]:
    return attempt(lambda: _model(place))


PARTS = {"files": fuzz, "header": flip_header, "hostile": hostile}


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="number of damaged files")
    parser.add_argument("--seed", type=int, default=0, help="decides the damage")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts to run")
    parser.add_argument("--readers", default="", help="only these readers, separated by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of processes")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for the files of faults")
    parser.add_argument("--case", type=int, help="one case again, with its traceback")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    parts = ["files"] if flags.case is not None else flags.parts.split(",")
    went_well = [PARTS[part](flags) for part in parts]
    sys.exit(0 if all(went_well) else 1)


if __name__ == "__main__":
    main()
