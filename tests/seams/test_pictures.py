"""Image grids and GIFs."""

import io
import itertools

import pytest
import torch
from PIL import Image, ImageSequence

from pocketdiff import pictures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns"), [(1, 1), (7, 3), (40, 10)])
def test_tile_puts_each_image_in_its_place(channels: int, n: int, columns: int) -> None:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, channels, 20, 16) + 100
    zoom = 3
    picture = pictures.tile(images, columns, ink=False, zoom=zoom)
    assert picture.size == ((columns * 18 + 2) * zoom, (-(-n // columns) * 22 + 2) * zoom)
    for index, (row, column) in enumerate(itertools.islice(itertools.product(range(n), range(columns)), n)):
        pixel = picture.getpixel(((2 + column * 18) * zoom, (2 + row * 22) * zoom))
        assert pixel in (100 + index, (100 + index,) * 3)
    assert picture.getpixel((0, 0)) in (255, (255, 255, 255))


def test_ink_is_shown_dark_on_white() -> None:
    stroke = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    stroke[..., 8, 8] = 255
    shown = pictures.tile(stroke, 1, ink=True)
    assert shown.getextrema() == (0, 255)
    assert shown.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) > 240  # type: ignore[operator]


def test_gif_and_png_hold_their_pictures() -> None:
    tiles = [
        pictures.tile(torch.full((4, 1, 16, 16), 51 * k, dtype=torch.uint8), 2, ink=False, zoom=10) for k in range(4)
    ]
    with Image.open(io.BytesIO(pictures.gif(tiles))) as gif:
        assert [frame.convert("L").getpixel((100, 100)) for frame in ImageSequence.Iterator(gif)] == [0, 51, 102, 153]
        assert gif.info["loop"] == 0
    with Image.open(io.BytesIO(pictures.png(pictures.over(tiles[0], tiles[3])))) as png:
        assert png.getpixel((100, 100)) == 0
        assert png.getpixel((100, png.height - 100)) == 153


def test_blank_images_are_a_fault() -> None:
    assert "blank" in str(pictures.health(torch.zeros(4, 1, 28, 28, dtype=torch.uint8)))
    noise = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert pictures.health(noise) is None
