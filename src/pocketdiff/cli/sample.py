"""``pocketdiff sample``: images from a trained model, as a sheet, an animation, arrays or a folder of files."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from pocketdiff import pictures
from pocketdiff.checkpoint import load, with_sampling
from pocketdiff.cli.console import Bar, check_free, pick_device, say, warn
from pocketdiff.cli.flags import Given, Metavar, Positional, UsageError, apply, parse
from pocketdiff.config import SamplingConfig
from pocketdiff.data.labels import parse_labels
from pocketdiff.data.source import MAX_BYTES
from pocketdiff.errors import RequestError
from pocketdiff.files import new_folder, write_file
from pocketdiff.frozen import Frozen
from pocketdiff.model import CHUNK, ImageModel
from pocketdiff.progress import Progress, silent

DEFAULTS = "sampling: the defaults are the model's; those shown here are the package's"
"""Heading of the sampling flags."""
COLUMNS = 40
"""The most columns of a picture."""
FRAMES = 20
"""Frames of a GIF, about, where there are more than twice as many steps."""


class SampleOptions(Frozen):
    """Draws images with a trained model. It needs only the model file, which also has the default of every sampling
    flag.

    Examples:
      pocketdiff sample --labels 3,1,4                                  with the model that comes with the package
      pocketdiff sample runs/laptop                                     four of each class, into samples.png
      pocketdiff sample runs/laptop --labels 3,1,4,1,5 --out pi.png     only these, in this order
      pocketdiff sample runs/laptop --labels 0-9 --out digits.gif       the denoising
      pocketdiff sample runs/laptop --per-label 1000 --out digits.npz   images, labels and seeds as arrays
      pocketdiff sample runs/laptop --per-label 100 --out digits        a folder of PNG files, one sub-folder per class
      pocketdiff sample runs/laptop --sampler ancestral --steps 50 --options eta=0.5 --interval 0.3:3
    """

    model: Annotated[Path, Positional("RUN_OR_FILE")] = Path("mnist")
    """The folder of a finished run, a model file, or the name of a model of the package."""
    labels: Annotated[str | None, Metavar("LIST")] = None
    """Classes by name or index, such as 0-9 or 3,1,4,1,5 (default: all)."""
    per_label: Annotated[int | None, Field(ge=1)] = None
    """Images of each label (default: 1, or 4 without --labels)."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """Seed of the first image; each further image has the next seed."""
    out: Annotated[Path, Metavar("PATH")] = Path("samples.png")
    """A .png, .gif or .npz file, or a folder, into which any number of images can be drawn."""
    zoom: Annotated[int | None, Field(ge=1, le=32)] = None
    """Scale factor of a .png or .gif file (default: 1 to 6, so that it is about 900 pixels wide)."""
    plain: bool = False
    """Leave the captions out of a .png or .gif file: classes, steps and noise levels."""
    overwrite: bool = False
    """Replace an existing file."""
    device: Annotated[str, Metavar("NAME")] = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""


def main(arguments: list[str]) -> int:
    """Draws, writes, and returns the exit status."""
    options, given = parse("sample", arguments, SampleOptions, SamplingConfig(), DEFAULTS)
    out, labels = options.out, options.labels
    if out.suffix not in WRITERS:
        raise UsageError("must end in .png, .gif or .npz, or have no ending, for a folder", f"--out {out}")
    check_free(out, options.overwrite)
    (model,) = sampled(load(options.model, pick_device(options.device)), [given], list(given), options.model)
    if out.suffix == ".gif" and model.sampling is None:
        raise UsageError(f"a GIF shows the denoising, and {options.model} draws in one step; use .png", f"--out {out}")
    if labels is not None and not model.conditional:
        raise UsageError(f"{options.model} knows no labels; leave them out", f"--labels {labels}")
    try:
        row = list(range(model.null)) if labels is None else parse_labels(labels, model.classes)
    except RequestError as error:
        raise UsageError(str(error), f"--labels {labels}") from error
    columns, n = min(len(row), COLUMNS), len(row) * (options.per_label or (4 if labels is None else 1))
    if not model.conditional:
        warn(f"{options.model} knows no labels: its images show random classes")
        row = [model.null] * len(row)
    headings = pictures.headings(model.classes, row) if len(row) == columns and model.conditional else []
    zoom = options.zoom or pictures.zoom(columns, model.info.width)
    job = Job(model, row, options.seed, n, columns, zoom, [] if options.plain else headings, options.plain)
    if out.suffix == ".gif" and n > CHUNK:
        raise UsageError(f"a GIF shows at most {CHUNK} images, not {n:,}; draw fewer", f"--out {out}")
    if (need := job.memory(out.suffix)) > MAX_BYTES:
        sizes = f"{need / 2**30:,.1f} GiB of memory in one file, over {MAX_BYTES / 2**30:g} GiB"
        raise UsageError(f"{n:,} images need {sizes}; draw fewer, or into a folder, which needs none", f"--out {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with Bar() as bar:
        WRITERS[out.suffix](job._replace(bar=bar), out)
    say(f"wrote {out}: {n:,} images, {model.how()}, seeds {options.seed} to {options.seed + n - 1}")
    return 0


def sampled(model: ImageModel, settings: Sequence[Given], flags: Sequence[str], target: Path) -> Sequence[ImageModel]:
    """The model with each of the sampling settings, duplicates left out.

    Args:
        model: The model.
        settings: Sampling settings as typed.
        flags: Their flags.
        target: Where the model comes from.

    Raises:
        UsageError: If a setting does not fit, or the model has none.
        RequestError: If a schedule does not have enough levels, or a guide does not fit.
    """
    if (own := model.sampling) is None:
        if flags:
            raise UsageError(f"{target} draws in one step and has no sampling settings", f"--{flags[0]}")
        return [model]
    configs: list[SamplingConfig] = []
    for given in settings:
        # Another sampler has other options.
        fresh = {"options": ["none"]} if given.get("sampler", own.sampler) != own.sampler else {}
        if (config := apply(own, fresh | given)) not in configs:
            configs.append(config)
    models = [with_sampling(model, config) for config in configs]
    for each in models:
        each.how()  # Raises RequestError.
    return models


class Job(NamedTuple):
    """What is drawn: image i has label ``row[i % len(row)]`` and seed ``seed + i``."""

    model: ImageModel
    row: list[int]
    seed: int
    n: int
    columns: int  # Of a picture.
    zoom: int
    headings: list[str]
    plain: bool
    bar: Progress = silent

    def labels(self, start: int = 0, stop: int | None = None) -> list[int]:
        """The labels of some of the images, by default of all."""
        return [self.row[i % len(self.row)] for i in range(start, self.n if stop is None else stop)]

    def memory(self, suffix: str) -> int:
        """The bytes in memory for a file of this kind, about; a folder is written image by image."""
        info, rows = self.model.info, -(-self.n // self.columns)
        pixels = {"": 0, ".npz": self.n}.get(suffix, rows * self.columns * self.zoom**2)
        return pixels * info.channels * info.height * info.width * (2 * FRAMES if suffix == ".gif" else 1)

    def chunks(self) -> Iterator[tuple[range, torch.Tensor]]:
        """All images, chunk by chunk, with their indices."""
        for start in range(0, self.n, CHUNK):
            self.bar("drawing", start, self.n)
            part = range(start, min(start + CHUNK, self.n))
            seeds = range(self.seed + part.start, self.seed + part.stop)
            yield part, self.model(self.labels(part.start, part.stop), seeds)
        self.bar("writing", 0, 1)

    def images(self) -> torch.Tensor:
        """All images (n, c, h, w)."""
        return _checked(torch.cat([images for _, images in self.chunks()]))

    def sheet(self, images: torch.Tensor, above: str = "") -> Image.Image:
        """Images in rows, with captions."""
        grid = pictures.tile(images, self.columns, self.model.info.ink, self.zoom)
        return pictures.captioned(grid, "" if self.plain else above, self.headings)


def _write_png(job: Job, out: Path) -> None:
    write_file(out, pictures.png(job.sheet(job.images())))


def _write_gif(job: Job, out: Path) -> None:
    steps, stride, shown = None, None, []
    for frame in job.model.frames(job.labels(), range(job.seed, job.seed + job.n)):
        if steps is None:  # The first frame is pure noise.
            steps = frame.steps_left
            stride = steps // FRAMES if steps > 2 * FRAMES else None
        job.bar("denoising", steps - frame.steps_left, steps)
        if pictures.is_frame(frame.steps_left, steps, stride):
            shown.append(job.sheet(frame.pixels, pictures.step_caption(frame, steps)))
    job.bar("writing", 0, 1)
    _checked(frame.pixels)
    write_file(out, pictures.gif(shown))


def _write_npz(job: Job, out: Path) -> None:
    arrays: dict[str, Any] = {"images": _arrays(job.images()), "seeds": np.arange(job.seed, job.seed + job.n)}
    if job.model.conditional:
        arrays["labels"] = np.array(job.labels(), np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_file(out, buffer.getvalue())


def _write_folder(job: Job, out: Path) -> None:
    with new_folder(out) as folder:
        for part, images in job.chunks():
            if part.start == 0:
                _checked(images)
            for index, image in zip(part, _arrays(images), strict=True):
                place = folder
                if job.model.conditional:
                    place = folder / job.model.classes[job.row[index % len(job.row)]]
                    place.mkdir(exist_ok=True)
                Image.fromarray(image).save(place / f"{job.seed + index:06d}.png")


def _checked(images: torch.Tensor) -> torch.Tensor:
    """The images, with a warning if they are blank."""
    if fault := pictures.health(images):
        warn(fault)
    return images


def _arrays(images: torch.Tensor) -> np.ndarray:
    """(n, h, w) where images are grey, else (n, h, w, c)."""
    array = images.permute(0, 2, 3, 1).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


WRITERS: dict[str, Callable[[Job, Path], None]] = {
    ".png": _write_png, ".gif": _write_gif, ".npz": _write_npz, "": _write_folder
}  # fmt: skip
