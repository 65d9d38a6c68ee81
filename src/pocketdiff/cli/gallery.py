"""The pictures of a run: generated images over real ones, and GIFs of the denoising, by epoch and guidance strength."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pocketdiff import pictures
from pocketdiff.cli.console import warn
from pocketdiff.config import SamplingConfig
from pocketdiff.data import Images
from pocketdiff.files import write_file
from pocketdiff.generate import DiffusionModel

ROWS = 4
"""Rows of generated images, and of real ones."""
SHOWN = 20
"""The most classes that are shown."""
ZOOM = 2
"""How much grids are enlarged."""


class Due(NamedTuple):
    """What is to be drawn, named after the epoch that ended, the first of which is 0."""

    epoch: int
    grids: bool
    gifs: bool


class Gallery:
    """Draws with the model as it stands. What is there already is not drawn again: it shows the same weights.

    Args:
        folder: Where the pictures go; made when the first one is written.
        model: The model that is being trained.
        real: The training split.
    """

    def __init__(self, folder: Path, model: DiffusionModel, real: Images) -> None:
        self.folder, self.model, self.config, self.real = folder, model, model.config, real
        self.length = self.config.length(len(real))
        epochs = self.length / len(real)
        self.pictures_every = self.config.pictures_every or math.ceil(epochs / 4)
        self.gifs_every = self.config.gifs_every or math.ceil(epochs)
        self.columns = min(len(model.classes), SHOWN)
        self.labels = list(range(self.columns)) * ROWS

    def due(self, before: int, after: int) -> Due | None:
        """What is to be drawn when ``after`` images are seen, after ``before`` of them at the step before."""
        n = len(self.real)
        if after == self.length:
            return Due((after - 1) // n, grids=True, gifs=True)
        epochs = before // n, after // n
        due = Due(epochs[1] - 1, _due(epochs, self.pictures_every), _due(epochs, self.gifs_every))
        return due if due.grids or due.gifs else None

    def work(self, seen: int) -> int:
        """How many images the network has still to be asked about, when ``seen`` images are seen."""
        n = len(self.real)
        ends = [seen, *range((seen // n + 1) * n, self.length, n), self.length]
        return sum(
            len(self.labels) * (1 if way.scale == 1 else 2) * (len(self.model.grid(way)) - 1)
            for before, after in pairwise(ends)
            if (due := self.due(before, after))
            for w in self.config.guidance_strengths
            for way in self._ways(w, due)
        )

    def draw(self, due: Due, note: Callable[[str], None]) -> list[Path]:
        """Draws and writes for each guidance strength, telling of each; the paths of what is there then."""
        self.folder.mkdir(exist_ok=True)
        ink = self.model.info.ink
        below = pictures.tile(self.real.first_of_each(self.labels), self.columns, ink, ZOOM)
        written = []
        for w in self.config.guidance_strengths:
            still, slow = self._samplings(w)
            what = f"drawing epoch {due.epoch}, w = {w:g}"
            grid = self.folder / f"image_ep{due.epoch}_w{w:g}.png"
            gif = self.folder / f"gif_ep{due.epoch}_w{w:g}.gif"
            images: pictures.Pixels | None = None
            if due.gifs and not gif.exists():
                frames, steps = [], len(self.model.grid(slow)) - 1
                for left, pixels in self._denoising(slow, what, note):
                    if pictures.is_frame(left, steps, self.config.gif_stride):
                        frames.append(pictures.tile(pixels, self.columns, ink))
                write_file(gif, pictures.gif(frames))
                images = pixels if slow == still else None
            if due.grids and not grid.exists():
                if images is None:
                    ((_, images),) = deque(self._denoising(still, what, note), maxlen=1)
                if fault := pictures.health(images):
                    warn(fault)
                above = pictures.tile(images, self.columns, ink, ZOOM)
                write_file(grid, pictures.png(pictures.over(above, below)))
            written += [grid] * due.grids + [gif] * due.gifs
        return written

    def _denoising(
        self, sampling: SamplingConfig, what: str, note: Callable[[str], None]
    ) -> Iterator[tuple[int, pictures.Pixels]]:
        """Every state on the way, with a note of the steps that are left."""
        for left, pixels in pictures.denoising(self.model, self.labels, range(len(self.labels)), sampling):
            note(f"{what}, {left} steps left")
            yield left, pixels

    def _samplings(self, w: float) -> tuple[SamplingConfig, SamplingConfig]:
        """How the grid and the GIF of a guidance strength are drawn; often in the same way."""
        still = self.config.sampling.model_copy(update={"scale": 1 + w})
        if self.config.gif_steps is None:
            return still, still
        levels = (still.schedule or self.config.schedule).levels
        return still, still.model_copy(update={"steps": int(min(self.config.gif_steps, levels))})

    def _ways(self, w: float, due: Due) -> set[SamplingConfig]:
        """The ways of sampling that a guidance strength asks for."""
        still, slow = self._samplings(w)
        return {way for way, wanted in ((still, due.grids), (slow, due.gifs)) if wanted}


def _due(epochs: tuple[int, int], every: int) -> bool:
    """Whether one of the epochs 0, every, 2 * every, ... ended between two counts of finished epochs."""
    before, after = epochs
    return -(-before // every) < -(-after // every)
