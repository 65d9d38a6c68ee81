"""Pictures: image grids, and GIFs of the denoising."""

import io

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

Pixels = UInt8[Tensor, "n c h w"]
_GAP = 2
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


def over(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Two image grids of the same width, one above the other, with a line between them."""
    width, height = upper.size
    picture = Image.new(upper.mode, (width, height + 3 * _GAP + lower.height), "white")
    picture.paste("#808080", (0, height + _GAP, width, height + 2 * _GAP))
    picture.paste(upper, (0, 0))
    picture.paste(lower, (0, height + 3 * _GAP))
    return picture


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def gif(frames: list[Image.Image]) -> bytes:
    """Frames as the bytes of a looping GIF of a few seconds, which pauses on the last frame."""
    buffer = io.BytesIO()
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
