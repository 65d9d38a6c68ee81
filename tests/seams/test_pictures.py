"""Image grids and GIFs."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageSequence

from pocketdiff import pictures
from pocketdiff.model import Frame


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


WORDS = ["0", "T-shirt", "a golden retriever with a ball"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("zoom", [1, 3])
def test_captions_stand_above_an_unchanged_grid(channels: int, zoom: int) -> None:
    """Each heading has dark pixels, all above its own column; the line above is not clipped."""
    grid = pictures.tile(torch.full((6, channels, 28, 28), 200, dtype=torch.uint8), 3, ink=False, zoom=zoom)
    picture = pictures.captioned(grid, "generated: w = 0.5, epoch 3, 40,000 images seen", WORDS)
    top = picture.height - grid.height
    assert ImageChops.difference(picture.crop((0, top, grid.width, picture.height)), grid).getbbox() is None
    dark = np.less(np.asarray(picture.convert("L"))[:top], 100)
    assert np.any(dark[: top // 2, -6:]) or picture.width == grid.width
    assert not np.any(dark[:, -1])
    shown = np.flatnonzero(dark[top // 2 :].any(0))
    pitch = grid.width // 3
    for column in range(3):
        assert ((column * pitch <= shown) & (shown < (column + 1) * pitch)).any()
    between = [column * pitch + edge for column in (1, 2) for edge in (-1, 0, 1)]
    assert not set(between) & set(shown.tolist())
    assert pictures.captioned(grid).size == grid.size


def test_a_heading_is_the_name_or_the_label_of_its_class() -> None:
    """The font has accents, but not every script; the null label has no heading."""
    classes = ["Küche", "猫", "ox"]
    assert pictures.headings(classes, [2, 1, 0, 3]) == ["ox", "1", "Küche", ""]


def test_a_grid_is_enlarged_to_about_900_pixels() -> None:
    assert [pictures.zoom(columns, width) for columns, width in ((10, 28), (20, 28), (40, 28), (1, 16), (10, 64))] == [
        3, 2, 1, 6, 1,
    ]  # fmt: skip
    assert pictures.zoom(2, 64) == 3, "an image is at most about 200 pixels wide"


def test_the_frames_of_a_gif_may_differ_in_width() -> None:
    """The words above them do."""
    frames = [Image.new("RGB", (width, 20), "red") for width in (30, 50)]
    with Image.open(io.BytesIO(pictures.gif(frames))) as gif:
        first, last = (frame.convert("RGB") for frame in ImageSequence.Iterator(gif))
    assert first.size == last.size == (50, 20)
    assert (first.getpixel((29, 9)), first.getpixel((31, 9))) == ((255, 0, 0), (255, 255, 255))
    assert last.getpixel((49, 9)) == (255, 0, 0)


def test_the_words_for_a_state_say_step_and_noise_level() -> None:
    frame = Frame(5, 0.12345, torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
    assert pictures.step_caption(frame, 30) == "step 25 of 30, noise level 0.12"


def test_blank_images_are_a_fault() -> None:
    assert "blank" in str(pictures.health(torch.zeros(4, 1, 28, 28, dtype=torch.uint8)))
    noise = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert pictures.health(noise) is None
