"""``pocketdiff sample``: images from a trained model, as a grid, an animation, arrays or a folder of files."""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from pocketdiff import pictures
from pocketdiff.checkpoint import load
from pocketdiff.cli.console import Bar, check_free, make_folder, pick_device, say, warn
from pocketdiff.cli.flags import Parser, UsageError, add_config, apply, given
from pocketdiff.config import SamplingConfig
from pocketdiff.files import new_folder, write_file
from pocketdiff.generate import CHUNK, DiffusionModel, GanModel

ZOOM = 2
"""How much grids and GIFs are enlarged."""
FRAMES = 20
"""Frames of a GIF, about, where there are more than twice as many steps."""

DESCRIPTION = """Draws images with a trained model. The model file is all it needs: what is not said here is as the file
has it."""

EXAMPLES = """examples:
  pocketdiff sample runs/laptop                                       four of each class, into samples.png
  pocketdiff sample runs/laptop --labels 3,1,4,1,5 --out pi.png       just these, in this order
  pocketdiff sample runs/laptop --labels 0-9 --out digits.gif         the denoising
  pocketdiff sample runs/laptop --per-label 1000 --out digits.npz     images, labels and seeds as arrays
  pocketdiff sample runs/laptop --per-label 100 --out digits          a folder of PNG files, one sub-folder a class
"""


def main(arguments: list[str]) -> int:
    """Parses the flags, draws, writes, and returns the exit status."""
    parser = Parser("pocketdiff sample", "RUN_OR_FILE [flags]", DESCRIPTION, EXAMPLES)
    parser.add_argument("model", metavar="RUN_OR_FILE", type=Path, help="the folder of a finished run, or a model file")
    option = parser.add_argument
    option("--labels", metavar="LIST", help="classes by name or index, as in 0-9 or 3,1,4,1,5 (default: all)")
    option("--per-label", metavar="N", type=int, help="images of each label (default: 1, or 4 without --labels)")
    option("--seed", metavar="INT", type=int, default=0, help="of the first image; each next has the next (default: 0)")
    option(
        "--out",
        metavar="PATH",
        type=Path,
        default=Path("samples.png"),
        help="a .png, .gif or .npz file, or a folder (default: samples.png)",
    )
    option("--overwrite", action="store_true", help="replace a file that is there")
    option("--device", metavar="NAME", default="auto", help="cpu, cuda, or auto: a GPU if there is one (default: auto)")
    add_config(parser, SamplingConfig(), "the model file's; here, the package's own")
    flags = parser.parse(arguments)
    per_label = flags.per_label if flags.per_label is not None else 4 if flags.labels is None else 1
    if per_label < 1:
        raise UsageError(f"--per-label {per_label}: must be at least 1")
    if flags.out.suffix not in WRITERS:
        raise UsageError(f"--out {flags.out}: must end in .png, .gif or .npz, or have no ending, for a folder")
    check_free(flags.out, flags.overwrite)

    model = load(flags.model, pick_device(flags.device))
    if isinstance(model, DiffusionModel):
        model = model.with_sampling(apply(model.sampling, flags))
    else:
        _check_gan(flags, model)
    row = list(range(len(model.classes))) if flags.labels is None else parse_labels(flags.labels, model.classes)
    if not 0 <= flags.seed < 2**63 - len(row) * per_label:
        raise UsageError(f"--seed {flags.seed}: must be from 0 to 2^63, less the number of images")
    how = _way(model)
    make_folder(flags.out.parent)
    if not model.conditional:
        warn(f"{flags.model} learned no labels: what its images show is up to chance")
    job = Job(model, row * per_label, flags.seed, len(row))
    WRITERS[flags.out.suffix](job, flags.out)
    say(f"wrote {flags.out}: {len(job.labels):,} images, {how}, seeds {job.seeds[0]} to {job.seeds[-1]}")
    return 0


def _way(model: DiffusionModel | GanModel) -> str:
    """How a model draws, in words."""
    if isinstance(model, GanModel):
        return "by a GAN, 1 step"
    way = model.sampling
    return f"{way.sampler}, {len(model.grid()) - 1} steps, scale {way.scale:g} (w = {way.scale - 1:g})"


def _check_gan(flags: argparse.Namespace, model: GanModel) -> None:
    """Sees that nothing is asked of a GAN which it cannot do.

    Raises:
        UsageError: If something is.
    """
    if sampling := given(flags, SamplingConfig):
        raise UsageError(f"--{next(iter(sampling))}: goes with a diffusion model, and {flags.model} is a GAN")
    if flags.out.suffix == ".gif":
        raise UsageError(f"--out {flags.out}: a GIF shows the denoising, and {flags.model} is a GAN; take a .png")
    if flags.labels is not None and not model.conditional:
        raise UsageError(f"--labels {flags.labels}: {flags.model} learned no labels; leave them out")


def parse_labels(text: str, classes: tuple[str, ...]) -> list[int]:
    """Class indices from a list of names, indices and ranges, such as ``0-9``, ``3,1,4`` or ``cat,dog``.

    Raises:
        UsageError: If a part is no class.
    """
    labels: list[int] = []
    for part in text.split(","):
        if (label := _find(part, classes)) is not None:
            labels.append(label)
            continue
        ends = [
            (_find(part[:at], classes), _find(part[at + 1 :], classes)) for at, sign in enumerate(part) if sign == "-"
        ]
        spans = [(first, last) for first, last in ends if first is not None and last is not None and first <= last]
        if not spans:
            known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise UsageError(f"--labels {text}: there is no class {part.strip()!r}; the classes are {known}")
        labels.extend(range(spans[0][0], spans[0][1] + 1))
    return labels


def _find(word: str, classes: tuple[str, ...]) -> int | None:
    """A class by its name; by its index where no name is a number, which could mean either."""
    word = word.strip()
    if word in classes:
        return classes.index(word)
    if any(name.isdecimal() for name in classes) or not (word.isascii() and word.isdecimal()):
        return None
    return int(word) if int(word) < len(classes) else None


class Job:
    """What is to be drawn, in batches of bounded memory."""

    def __init__(self, model: DiffusionModel | GanModel, labels: list[int], seed: int, row: int) -> None:
        self.model = model
        self.labels = labels if model.conditional else [model.null] * len(labels)
        self.seeds = list(range(seed, seed + len(labels)))
        self.columns = row if row <= 40 else 40
        self.ink = model.info.ink

    def images(self) -> torch.Tensor:
        """All images (n, c, h, w), with a word on their health."""
        with Bar("drawing", len(self.labels)) as bar:
            chunks = []
            for chunk in self.model.chunks(self.labels, self.seeds):
                chunks.append(chunk)
                bar.update(bar.done + len(chunk))
        images = torch.cat(chunks)
        if fault := pictures.health(images):
            warn(fault)
        return images


def _write_png(job: Job, out: Path) -> None:
    write_file(out, pictures.png(pictures.tile(job.images(), job.columns, job.ink, ZOOM)))


def _write_gif(job: Job, out: Path) -> None:
    if len(job.labels) > CHUNK:
        raise UsageError(f"--out {out}: a GIF shows at most {CHUNK} images, not {len(job.labels):,}; ask for fewer")
    model = cast(DiffusionModel, job.model)  # As main saw to.
    steps, frames = len(model.grid()) - 1, []
    stride = steps // FRAMES if steps > 2 * FRAMES else None
    with Bar("denoising", steps) as bar:
        for left, pixels in pictures.denoising(model, job.labels, job.seeds):
            bar.update(steps - left)
            if pictures.is_frame(left, steps, stride):
                frames.append(pixels)
    if fault := pictures.health(frames[-1]):
        warn(fault)
    write_file(out, pictures.gif([pictures.tile(frame, job.columns, job.ink, ZOOM) for frame in frames]))


def _write_npz(job: Job, out: Path) -> None:
    arrays: dict[str, Any] = {"images": _arrays(job.images()), "seeds": np.array(job.seeds, np.int64)}
    if job.model.conditional:
        arrays["labels"] = np.array(job.labels, np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_file(out, buffer.getvalue())


def _write_folder(job: Job, out: Path) -> None:
    with new_folder(out) as folder:
        for image, label, seed in zip(_arrays(job.images()), job.labels, job.seeds, strict=True):
            place = folder / job.model.classes[label] if job.model.conditional else folder
            place.mkdir(exist_ok=True)
            Image.fromarray(image).save(place / f"{seed:06d}.png")


def _arrays(images: torch.Tensor) -> np.ndarray:
    """(n, h, w) where images are grey, else (n, h, w, c)."""
    array = images.permute(0, 2, 3, 1).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


WRITERS: dict[str, Callable[[Job, Path], None]] = {
    ".png": _write_png,
    ".gif": _write_gif,
    ".npz": _write_npz,
    "": _write_folder,
}
