"""The pictures of a run: generated images above real ones, and GIFs of the denoising, for each view of the model."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from pocketdiff import pictures
from pocketdiff.data import Images
from pocketdiff.files import write_file
from pocketdiff.folder import RunFolder
from pocketdiff.model import Frame, ImageModel
from pocketdiff.progress import Progress

ROWS = 4  # Rows of generated images, and of real ones.
SHOWN = 20  # The most classes that are shown.
_log = logging.getLogger(__name__)


class Due(NamedTuple):
    """The pictures to draw at the end of an epoch, or of a part of the run; the first epoch is 0."""

    epoch: int
    seen: int
    grids: bool
    gifs: bool
    again: bool = False  # Whether existing files show an earlier state, because a part ended inside the epoch.


class Gallery:
    """Draws a run's model as it is, above real training images. Existing files are kept: they show the same weights."""

    def __init__(self, folder: RunFolder, model: ImageModel, real: Images) -> None:
        self.folder, self.model, self.real, self.views = folder, model, real, model.views()
        self.ends = model.config.ends(len(real))
        epochs = self.ends[-1] / len(real)
        self.pictures_every = model.config.pictures_every or math.ceil(epochs / 4)
        self.gifs_every = max((view.gifs_every or 0 for view in self.views), default=0) or math.ceil(epochs)
        self.columns = min(len(model.classes), SHOWN)
        self.classes = list(range(self.columns)) * ROWS
        self.labels = self.classes if model.conditional else [model.null] * len(self.classes)
        self.zoom = pictures.zoom(self.columns, model.info.width)
        self.done = 0.0  # Network passes over one image, for all pictures so far.
        n = len(self.labels)
        self._grid_passes = n * sum(view.still.nfe() for view in self.views)
        self._gif_passes = n * sum(view.slow.nfe() for view in self.views if view.slow is not None)
        self._shared_passes = n * sum(view.still.nfe() for view in self.views if view.slow is view.still)

    def passes(self, seen: int) -> int:
        """Network passes over one image for all pictures that are due until so many images are seen."""
        end, parts = min(seen, self.ends[-1] - 1) // len(self.real), sum(part <= seen for part in self.ends)
        grids, gifs = (-(-end // every) + parts for every in (self.pictures_every, self.gifs_every))
        return grids * self._grid_passes + gifs * self._gif_passes - min(grids, gifs) * self._shared_passes

    def due(self, before: int, after: int) -> Due | None:
        """The pictures to draw after a step, given the images seen before and after it."""
        n = len(self.real)
        start, end = before // n, after // n
        epoch = (after - 1) // n if after in self.ends else end - 1
        again = any(epoch * n < part < min(after, epoch * n + n) for part in self.ends)
        if after in self.ends or (again and start < end):
            return Due(epoch, after, grids=True, gifs=True, again=again)
        # Whether one of the epochs 0, every, 2 * every, ... has ended.
        grids, gifs = (-(-start // every) < -(-end // every) for every in (self.pictures_every, self.gifs_every))
        return Due(epoch, after, grids, gifs) if grids or gifs else None

    def draw(self, due: Due, progress: Progress) -> list[Path]:
        """Draws the pictures of every view that do not exist yet or show an earlier state; returns the paths of all."""
        self.folder.pictures.mkdir(exist_ok=True)
        below = self._sheet(self.real.first_of_each(self.classes), self.classes, "real: training images")
        paths = []
        for view in self.views:
            where = ", ".join(filter(None, [f"epoch {due.epoch}", view.caption]))
            grid, gif = self.folder.image(due.epoch, view.suffix), self.folder.gif(due.epoch, view.suffix)
            images: Any = None
            if due.gifs and view.slow is not None and (due.again or not gif.exists()):
                shown = []
                for frame, steps in self._frames(view.slow, f"drawing {where}", progress):
                    if pictures.is_frame(frame.steps_left, steps, view.stride):
                        text = f"{where}: {pictures.step_caption(frame, steps)}"
                        shown.append(self._sheet(frame.pixels, self.labels, text))
                write_file(gif, pictures.gif(shown))
                images = frame.pixels if view.slow is view.still else None
            if due.grids and (due.again or not grid.exists()):
                if images is None:
                    for frame, _ in self._frames(view.still, f"drawing {where}", progress):
                        images = frame.pixels
                if fault := pictures.health(images):
                    _log.warning(fault)
                above = self._sheet(images, self.labels, f"generated: {where}, {due.seen:,} images seen")
                write_file(grid, pictures.png(pictures.over(above, below)))
            paths += [grid] * due.grids + [gif] * (due.gifs and view.slow is not None)
        return paths

    def _sheet(self, images: Any, labels: list[int], above: str) -> Image.Image:
        """An image grid with captions: a column for each class."""
        names = pictures.headings(self.model.classes, labels[: self.columns])
        return pictures.captioned(pictures.tile(images, self.columns, self.model.info.ink, self.zoom), above, names)

    def _frames(self, model: ImageModel, what: str, progress: Progress) -> Iterator[tuple[Frame, int]]:
        """The denoising, or the images alone if there is none; each state with the number of steps."""
        before, passes = self.done, len(self.labels) * model.nfe()
        if model.sampling is None:
            progress(what, 0, 1)
            yield Frame(0, 0.0, model(self.labels)), 1
            return
        steps = None
        for frame in model.frames(self.labels):
            steps = frame.steps_left if steps is None else steps
            self.done = before + passes * (steps - frame.steps_left) / steps
            progress(what, steps - frame.steps_left, steps)
            yield frame, steps
