"""The pictures of a run by epoch: generated images over real ones, and GIFs of the denoising, by guidance strength."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pocketdiff import pictures
from pocketdiff.cli.console import warn
from pocketdiff.config import TrainConfig
from pocketdiff.data import Images
from pocketdiff.files import write_file
from pocketdiff.generate import DiffusionModel, GanModel

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


class View(NamedTuple):
    """One of the ways in which a model is shown."""

    w: float | None
    """The guidance strength, where there is guidance."""
    still: DiffusionModel | GanModel
    """Draws its grid."""
    slow: DiffusionModel | None
    """Draws its GIF, often just like the grid; None where there is nothing to watch."""

    @property
    def suffix(self) -> str:
        """What tells its files from other views'."""
        return "" if self.w is None else f"_w{self.w:g}"

    def evaluations(self, grids: int, gifs: int, both: int) -> int:
        """How often the network is asked for an image of so many grids and GIFs, of which some show the same."""
        if self.slow is None:
            return grids * self.still.evaluations()
        if self.slow is self.still:
            return (grids + gifs - both) * self.still.evaluations()
        return grids * self.still.evaluations() + gifs * self.slow.evaluations()


def views(model: DiffusionModel | GanModel) -> list[View]:
    """The views of a model: one for each guidance strength, or just one of a model without guidance."""
    if isinstance(model, GanModel):
        return [View(None, model, None)]
    found, config = [], model.config
    for w in config.guidance_strengths:
        still = slow = model.with_sampling(config.sampling.model_copy(update={"scale": 1 + w}))
        if config.gif_steps is not None:
            levels = (still.sampling.schedule or config.schedule).levels
            slower = still.sampling.model_copy(update={"steps": int(min(config.gif_steps, levels))})
            slow = still if slower == still.sampling else model.with_sampling(slower)
        found.append(View(w, still, slow))
    return found


class Gallery:
    """Draws with the model as it stands. What is there already is not drawn again: it shows the same weights.

    Args:
        folder: Where the pictures go; made when the first one is written.
        model: The model that is being trained.
        real: The training split.
    """

    def __init__(self, folder: Path, model: DiffusionModel | GanModel, real: Images) -> None:
        self.folder, self.model, self.config, self.real = folder, model, model.config, real
        self.length = self.config.length(len(real))
        epochs = self.length / len(real)
        self.pictures_every = self.config.pictures_every or math.ceil(epochs / 4)
        self.gifs_every: int | None = None
        if isinstance(self.config, TrainConfig):
            self.gifs_every = self.config.gifs_every or math.ceil(epochs)
        self.columns = min(len(model.classes), SHOWN)
        self.classes = list(range(self.columns)) * ROWS
        self.labels = self.classes if model.conditional else [model.null] * len(self.classes)
        self.views = views(model)

    def due(self, before: int, after: int) -> Due | None:
        """What is to be drawn when ``after`` images are seen, after ``before`` of them at the step before."""
        n = len(self.real)
        if after == self.length:
            return Due((after - 1) // n, grids=True, gifs=self.gifs_every is not None)
        epochs = before // n, after // n
        due = Due(epochs[1] - 1, _due(epochs, self.pictures_every), _due(epochs, self.gifs_every))
        return due if due.grids or due.gifs else None

    def work(self, seen: int) -> int:
        """How many images the network has still to be asked about, when ``seen`` images are seen."""
        n = len(self.real)
        ends = [seen, *range((seen // n + 1) * n, self.length, n), self.length]
        to_come = [due for before, after in pairwise(ends) if (due := self.due(before, after))]
        grids, gifs = (sum(getattr(due, name) for due in to_come) for name in ("grids", "gifs"))
        both = sum(due.grids and due.gifs for due in to_come)
        return len(self.labels) * sum(view.evaluations(grids, gifs, both) for view in self.views)

    def draw(self, due: Due, note: Callable[[str], None]) -> list[Path]:
        """Draws and writes every view, telling of each; the paths of what is there then."""
        self.folder.mkdir(exist_ok=True)
        ink = self.model.info.ink
        below = pictures.tile(self.real.first_of_each(self.classes), self.columns, ink, ZOOM)
        written = []
        for view in self.views:
            what = f"drawing epoch {due.epoch}" + ("" if view.w is None else f", w = {view.w:g}")
            grid = self.folder / f"image_ep{due.epoch}{view.suffix}.png"
            gif = self.folder / f"gif_ep{due.epoch}{view.suffix}.gif"
            images: pictures.Pixels | None = None
            if due.gifs and view.slow is not None and not gif.exists():
                frames, steps = [], len(view.slow.grid()) - 1
                for left, pixels in self._denoising(view.slow, what, note):
                    if pictures.is_frame(left, steps, view.slow.config.gif_stride):
                        frames.append(pictures.tile(pixels, self.columns, ink))
                write_file(gif, pictures.gif(frames))
                images = pixels if view.slow is view.still else None
            if due.grids and not grid.exists():
                if images is None:
                    images = self._images(view.still, what, note)
                if fault := pictures.health(images):
                    warn(fault)
                above = pictures.tile(images, self.columns, ink, ZOOM)
                write_file(grid, pictures.png(pictures.over(above, below)))
            written += [grid] * due.grids + [gif] * due.gifs
        return written

    def _images(self, model: DiffusionModel | GanModel, what: str, note: Callable[[str], None]) -> pictures.Pixels:
        if isinstance(model, GanModel):
            note(what)
            return model.generate(self.labels, range(len(self.labels)))
        ((_, images),) = deque(self._denoising(model, what, note), maxlen=1)
        return images

    def _denoising(
        self, model: DiffusionModel, what: str, note: Callable[[str], None]
    ) -> Iterator[tuple[int, pictures.Pixels]]:
        """Every state on the way, with a note of the steps that are left."""
        for left, pixels in pictures.denoising(model, self.labels, range(len(self.labels))):
            note(f"{what}, {left} steps left")
            yield left, pixels


def _due(epochs: tuple[int, int], every: int | None) -> bool:
    """Whether one of the epochs 0, every, 2 * every, ... ended between two counts of finished epochs."""
    before, after = epochs
    return every is not None and -(-before // every) < -(-after // every)
