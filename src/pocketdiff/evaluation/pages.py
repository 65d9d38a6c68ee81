"""Tables, pictures and self-contained pages. The templates lie beside this file."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
from jaxtyping import UInt8
from torch import Tensor

from pocketdiff import pictures, rng
from pocketdiff.data import DataInfo
from pocketdiff.evaluation.reference import Choice
from pocketdiff.evaluation.sample import Sample
from pocketdiff.evaluation.score import all_metrics

_ROWS, _COLUMNS = 8, 20
"""The most rows and columns of an image grid."""


class Picture(NamedTuple):
    """A PNG file inside a page, in base64."""

    data: str
    alt: str
    width: int

    @classmethod
    def of(cls, png: bytes, alt: str, width: int) -> "Picture":
        """From the bytes of a file; ``width`` is in pixels on the page."""
        return cls(base64.b64encode(png).decode(), alt, width)


def picture(images: UInt8[Tensor, "n c h w"], info: DataInfo, alt: str, columns: int = 20, zoom: int = 1) -> Picture:
    """Images in rows as one picture."""
    tiled = pictures.tile(images, min(columns, len(images)), info.ink)
    return Picture.of(pictures.png(tiled), alt, tiled.width * zoom)


def shown_classes(sample: Sample) -> list[int]:
    """The classes of an image grid: those with enough images for its rows; none without labels."""
    if sample.labels is None:
        return []
    labels, counts = sample.labels.unique(return_counts=True)
    return labels[counts >= min(_ROWS, int(counts.max()))][:_COLUMNS].tolist()


def image_grid(sample: Sample, info: DataInfo, classes: Sequence[int], zoom: int = 2) -> Picture:
    """Random images, one column for each of the classes, with blanks below a class of few images; without classes just
    random images.
    """
    order = rng.permutation(0, rng.Stream.SAMPLE, Choice.SHOWN, len(sample))
    if not classes or sample.labels is None:
        return picture(sample.pixels[order[: 10 * _ROWS]], info, "images", 10, zoom)
    of_class = [order[sample.labels[order] == label][:_ROWS] for label in classes]
    rows = max(1, *map(len, of_class))
    shown = torch.full((rows, len(classes), *sample.pixels.shape[1:]), 0 if info.ink else 255, dtype=torch.uint8)
    for column, indices in enumerate(of_class):
        shown[: len(indices), column] = sample.pixels[indices]
    return picture(shown.flatten(0, 1), info, "images of each class", len(classes), zoom)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of text: the first column to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ([row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def render(template: str, **content: Any) -> str:
    """A template of this folder, filled in; a page's content is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(metrics=all_metrics(), **content)
