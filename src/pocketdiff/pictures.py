"""Pictures: image grids, and GIFs of the denoising."""

import io
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from pocketdiff.model import Frame

Pixels = UInt8[Tensor, "n c h w"]
_GAP = 2
_WIDTH = 920
"""Width of an enlarged image grid, about, in pixels."""
_LINE, _SIZES = 20, (14, 12, 10)
"""Height of a line of text, and the sizes of the font, in pixels."""
_GREYS = 17
"""Distance between two grey levels of a GIF: sixteen levels are enough, and noise then compresses twice as well."""


def tile(images: Pixels, columns: int, ink: bool, zoom: int = 1) -> Image.Image:
    """A grid of grey or RGB images, row by row; ``ink`` turns light strokes on black into dark strokes on white."""
    n, channels, height, width = images.shape
    down, right = height + _GAP, width + _GAP
    canvas = torch.full((channels, -(-n // columns) * down + _GAP, columns * right + _GAP), 255, dtype=torch.uint8)
    for index, image in enumerate(255 - images if ink else images):
        top, left = _GAP + index // columns * down, _GAP + index % columns * right
        canvas[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(canvas.permute(1, 2, 0).squeeze(-1).numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def zoom(columns: int, width: int) -> int:
    """The scale factor, 1 to 6, at which a grid of images of this width is about 900 pixels wide, or an image 200."""
    return max(1, min(6, 200 // width, round(_WIDTH / (columns * (width + _GAP) + _GAP))))


def captioned(grid: Image.Image, above: str = "", headings: Sequence[str] = ()) -> Image.Image:
    """An image grid under a line of text and a heading for each column; long headings are small, then clipped."""
    lines, pitch = bool(above) + bool(headings), grid.width / max(1, len(headings))
    width = max(grid.width, round(_font().getlength(above)) + 2 * _GAP)
    picture = Image.new(grid.mode, (width, grid.height + lines * _LINE), "white")
    picture.paste(grid, (0, lines * _LINE))
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP, _LINE / 2), above, "black", _font(), "lm")
    room = pitch - 2 * _GAP
    size = next((size for size in _SIZES if all(_font(size).getlength(text) <= room for text in headings)), _SIZES[-1])
    for index, text in enumerate(headings):
        at = ((index + 0.5) * pitch, (lines - 0.5) * _LINE)
        draw.text(at, _clipped(text, room, _font(size)), "black", _font(size), "mm")
    return picture


def headings(classes: Sequence[str], labels: Iterable[int]) -> list[str]:
    """The names of the labels' classes; the label where the font lacks a character, and nothing for no label."""
    missing = bytes(_font().getmask("\uffff"))
    found = []
    for label in labels:
        name = classes[label] if label < len(classes) else ""
        found.append(str(label) if any(bytes(_font().getmask(c)) == missing for c in name) else name)
    return found


def step_caption(frame: Frame, steps: int) -> str:
    """The words for a state of the denoising."""
    return f"step {steps - frame.steps_left} of {steps}, noise level {frame.sigma:.2g}"


def over(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Two pictures, one above the other, with a line between them."""
    width, height = max(upper.width, lower.width), upper.height
    picture = Image.new(upper.mode, (width, height + 3 * _GAP + lower.height), "white")
    picture.paste("#808080", (0, height + _GAP, width, height + 2 * _GAP))
    picture.paste(upper, (0, 0))
    picture.paste(lower, (0, height + 3 * _GAP))
    return picture


@cache
def _font(size: int = _SIZES[0]) -> ImageFont.FreeTypeFont:
    """Matplotlib's font: Pillow's own lacks accents."""
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _clipped(text: str, room: float, font: ImageFont.FreeTypeFont) -> str:
    """The text, or its start with an ellipsis, in this many pixels."""
    starts = (text, *(f"{text[:end].rstrip()}…" for end in range(len(text) - 1, 0, -1)))
    return next((start for start in starts if font.getlength(start) <= room), "")


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def gif(frames: list[Image.Image]) -> bytes:
    """Frames as the bytes of a looping GIF of a few seconds, which pauses on the last frame; narrow ones are padded."""
    buffer, width = io.BytesIO(), max(frame.width for frame in frames)
    frames = [ImageOps.pad(frame, (width, frame.height), color="white", centering=(0, 0)) for frame in frames]
    frames = [frame.point(lambda value: round(value / _GREYS) * _GREYS) for frame in frames]
    durations = [max(40, 2500 // len(frames))] * (len(frames) - 1) + [2000]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


def is_frame(steps_left: int, steps: int, stride: int | None) -> bool:
    """Whether a GIF shows the state with ``steps_left`` of ``steps`` steps: every state if ``stride`` is None, else the
    states after the steps t = T..1 where t is T, a multiple of the stride, or below 8, as in DDPM-MNIST.
    """
    t = steps_left + 1
    return stride is None or (steps_left < steps and (t == steps or t % stride == 0 or t < 8))


def health(images: Pixels) -> str | None:
    """What is wrong with generated images, in a sentence; None if they are not blank."""
    spread = float(images.float().std())
    fault = f"the generated images are blank (standard deviation {spread:.1f} of 255); training may have failed"
    return fault if spread < 4 else None
