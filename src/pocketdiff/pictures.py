"""Pictures: grids of images and GIFs of the denoising."""

import io
from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pocketdiff.config import SamplingConfig
from pocketdiff.generate import DiffusionModel, to_pixels
from pocketdiff.schedule import grid

Pixels = UInt8[Tensor, "n c h w"]
_GAP = 2
_GREYS = 17
"""Distance between two greys of a GIF: sixteen are enough, and noise of few greys takes half the room."""


def tile(images: Pixels, columns: int, ink: bool, zoom: int = 1) -> Image.Image:
    """A grid of images, row by row, on white.

    Args:
        images: Bytes; grey or RGB.
        columns: Images in a row.
        ink: Whether to turn light on dark into dark on light.
        zoom: How many pixels of the picture, each way, a pixel of the images takes.
    """
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    shown = 255 - images if ink else images
    canvas = torch.full(
        (channels, rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP), 255, dtype=torch.uint8
    )
    for index, image in enumerate(shown):
        top = _GAP + index // columns * (height + _GAP)
        left = _GAP + index % columns * (width + _GAP)
        canvas[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(canvas.permute(1, 2, 0).squeeze(-1).numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def over(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Two grids of the same width, one above the other with a line between them."""
    line = 3 * _GAP
    picture = Image.new(upper.mode, (upper.width, upper.height + line + lower.height), "white")
    picture.paste(
        128 if upper.mode == "L" else (128, 128, 128), (0, upper.height + _GAP, upper.width, upper.height + 2 * _GAP)
    )
    picture.paste(upper, (0, 0))
    picture.paste(lower, (0, upper.height + line))
    return picture


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def gif(frames: list[Image.Image]) -> bytes:
    """Frames as the bytes of an endless GIF of a few seconds, which rests on the last one."""
    buffer = io.BytesIO()
    frames = [frame.point(lambda value: round(value / _GREYS) * _GREYS) for frame in frames]
    durations = [max(40, 2500 // len(frames))] * (len(frames) - 1) + [2000]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


def denoising(
    model: DiffusionModel, labels: Sequence[int], seeds: Sequence[int], sampling: SamplingConfig
) -> list[Pixels]:
    """The denoising as pictures: pure noise, then the state after each step; the last is the sample.

    Shown at DDPM's scale, x / sqrt(1 + sigma^2), at which noise has unit variance.
    """
    sigma_max = grid(sampling.schedule, sampling.steps)[0]
    first = to_pixels(model.start(seeds, sigma_max) / (1 + sigma_max**2) ** 0.5)
    steps = model.steps(labels, seeds, sampling)
    return [first, *(to_pixels(step.x / (1 + step.sigma**2) ** 0.5) for step in steps)]


def health(images: Pixels) -> str | None:
    """What is wrong with generated images, in a sentence, or None: blank pictures mean a failed training."""
    spread = float(images.float().std())
    if spread < 4:
        return f"the generated images are blank (standard deviation {spread:.1f} of 255); training may have failed"
    return None
