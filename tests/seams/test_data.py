"""Every source of data: what is read, and that every fault is one sentence that begins with the source's name."""

import gzip
import hashlib
import io
import os
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import Tensor

from pocketdiff import rng
from pocketdiff.data import (
    AUGMENTATIONS,
    DATASETS,
    DataError,
    Dataset,
    Images,
    Source,
    Split,
    folder,
    idx,
    load_data,
    load_images,
    source,
    to_data_units,
    to_uint8,
)
from pocketdiff.data.source import Size

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 20), np.uint8)
LABELS = np.array([0, 1, 0, 1, 0, 1], np.uint8)
Files = Mapping[str, bytes | Image.Image | None]


def refused(source: Path, named: Path, fault: str, size: Size | None = None) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        load_data(str(source), size)
    message = str(caught.value)
    assert message.partition(": ")[0] == str(named)
    assert len(message.splitlines()) == 1


def write(root: Path, files: Files) -> Path:
    """Writes files with these names and contents, and a folder where the content is None."""
    for name, content in files.items():
        path = root / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            content.save(path)
    return root


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# MNIST


def test_mnist_is_the_published_set(mnist: Dataset) -> None:
    assert (mnist.info.train_images, mnist.info.test_images) == (60_000, 10_000)
    assert mnist.train.pixels.shape == (60_000, 1, 28, 28)
    assert mnist.test.pixels.shape == (10_000, 1, 28, 28)
    assert (mnist.info.channels, mnist.info.height, mnist.info.width, mnist.info.ink) == (1, 28, 28, True)
    assert mnist.info.classes == tuple("0123456789")
    assert mnist.train.pixels.dtype == mnist.test.pixels.dtype == torch.uint8
    assert [split.labels.bincount().tolist() for split in (mnist.train, mnist.test)] == [
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ]


def test_mnist_is_the_same_at_every_load(mnist: Dataset) -> None:
    again = load_data()
    assert again.info == mnist.info
    assert torch.equal(again.train.pixels, mnist.train.pixels)


@pytest.mark.parametrize("stem", [TRAIN_LABELS, TEST_IMAGES])
def test_mnist_with_one_byte_changed_is_refused(stem, tmp_path, monkeypatch) -> None:
    shutil.copytree(Path(idx.__file__).with_name("mnist"), tmp_path / "mnist")
    file = tmp_path / "mnist" / f"{stem}.gz"
    body = bytearray(gzip.decompress(file.read_bytes()))
    body[-1] ^= 1
    file.write_bytes(gzip.compress(bytes(body), 1))
    monkeypatch.setattr(idx, "__file__", str(tmp_path / "idx.py"))
    refused(Path("mnist"), tmp_path / "mnist" / stem, "SHA-256")


# IDX


def idx_bytes(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An array as an IDX file, with its own shape in the header or another."""
    shape = shape or array.shape
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def idx_files(labels: np.ndarray = LABELS, test_labels: np.ndarray = LABELS[:2]) -> dict[str, bytes]:
    arrays = (PIXELS, labels, PIXELS[:2], test_labels)
    return {stem: idx_bytes(array) for stem, array in zip(STEMS, arrays, strict=True)}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_is_read_plain_or_gzipped_under_any_name(zipped, suffix, tmp_path) -> None:
    files = {stem + suffix: gzip.compress(body) if zipped else body for stem, body in idx_files().items()}
    data = load_data(str(write(tmp_path, files)))
    assert np.array_equal(data.train.pixels[:, 0], PIXELS)
    assert np.array_equal(data.train.labels, LABELS)
    assert np.array_equal(data.test.pixels[:, 0], PIXELS[:2])
    assert np.array_equal(data.test.labels, LABELS[:2])
    assert (data.info.channels, data.info.height, data.info.width) == (1, 16, 20)


def test_classes_are_named_by_the_labels_of_the_source(tmp_path) -> None:
    """EMNIST's letters have the labels 1 to 26."""
    data = load_data(str(write(tmp_path, idx_files(LABELS * 19 + 7, np.array([26, 7], np.uint8)))))
    assert data.info.classes == ("7", "26")
    assert np.array_equal(data.train.labels, LABELS)
    assert data.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("stem", "body", "fault"),
    [
        (TRAIN_IMAGES, b"", "is empty"),
        (TRAIN_LABELS, b"", "is empty"),
        (TRAIN_IMAGES, idx_bytes(PIXELS)[:3], "starts with 000008, but"),
        (TRAIN_IMAGES, idx_bytes(PIXELS)[:4], "within its header"),
        (TRAIN_IMAGES, idx_bytes(PIXELS)[:15], "within its header"),
        (TEST_LABELS, idx_bytes(LABELS)[:7], "within its header"),
        (TRAIN_IMAGES, idx_bytes(PIXELS)[:16], "ends after 0"),
        (TRAIN_IMAGES, idx_bytes(PIXELS)[:-1], "ends after 1,919"),
        (TEST_LABELS, idx_bytes(LABELS)[:-1], "ends after 5"),
        (TRAIN_IMAGES, idx_bytes(PIXELS) + b"\0", "has more"),
        (TRAIN_LABELS, idx_bytes(LABELS) + b"\0", "has more"),
        (TRAIN_IMAGES, idx_bytes(LABELS), "starts with 00000801, but"),
        (TRAIN_IMAGES, b"\x89PNG" + bytes(99), "starts with 89504e47, but"),
        (TRAIN_IMAGES, b"\0\0\x0d\3" + idx_bytes(PIXELS)[4:], "starts with 00000d03, but"),
        (TRAIN_IMAGES, idx_bytes(PIXELS, (6, 0, 20)), "is empty, with dimensions"),
        (TRAIN_LABELS, idx_bytes(LABELS[:5]), "5 labels for 6 images"),
        (TEST_LABELS, idx_bytes(LABELS), "6 labels for 2 images"),
    ],
)
def test_a_faulty_idx_file_is_refused(stem, body, fault, zipped, tmp_path) -> None:
    write(tmp_path, {**idx_files(), stem: gzip.compress(body) if zipped else body})
    refused(tmp_path, tmp_path / stem, fault)


@pytest.mark.parametrize("stem", STEMS)
def test_a_missing_idx_file_is_refused(stem, tmp_path) -> None:
    (write(tmp_path, idx_files()) / stem).unlink()
    refused(tmp_path, tmp_path, f"{stem}, .* is missing")


@pytest.mark.parametrize("shape", [(2**31, 1, 2), (2**31, 2**31, 2**31), (2**32 - 1, 2**32 - 1, 1)])
def test_huge_dimensions_are_refused_without_allocating(shape, tmp_path) -> None:
    write(tmp_path, {**idx_files(), TRAIN_IMAGES: idx_bytes(PIXELS, shape)})
    with memory_below(2**20):
        refused(tmp_path, tmp_path / TRAIN_IMAGES, "over the limit")


ZIPPED = gzip.compress(idx_bytes(PIXELS))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_short_idx_file_that_claims_much_takes_little_memory(zipped: bool, tmp_path) -> None:
    body = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**21, 28, 28) + bytes(99)
    path = tmp_path / "large"
    path.write_bytes(gzip.compress(body) if zipped else body)
    with memory_below(2**26), pytest.raises(DataError, match="the file ends after 99"):
        idx.read_idx(path, 3)


@pytest.mark.parametrize("length", [2, 3, 9, 10, 15, 200, len(ZIPPED) - 9, len(ZIPPED) - 1])
def test_a_truncated_gzip_stream_is_refused(length, tmp_path) -> None:
    write(tmp_path, {**idx_files(), TRAIN_IMAGES: ZIPPED[:length]})
    refused(tmp_path, tmp_path / TRAIN_IMAGES, "cannot be read .*end")


@pytest.mark.parametrize("at", [10, len(ZIPPED) // 2, -8, -1])
def test_a_damaged_gzip_stream_is_refused(at, tmp_path) -> None:
    """In the first block, in the middle, in the checksum and in the length."""
    body = bytearray(ZIPPED)
    body[at] ^= 255
    write(tmp_path, {**idx_files(), TRAIN_IMAGES: bytes(body)})
    refused(tmp_path, tmp_path / TRAIN_IMAGES, "cannot be read")


def test_a_gzip_bomb_is_unpacked_only_as_far_as_its_header_promises(tmp_path) -> None:
    bomb = gzip.compress(idx_bytes(PIXELS)) + 64 * gzip.compress(bytes(2**24))
    write(tmp_path, {**idx_files(), TRAIN_IMAGES: bomb})
    with memory_below(2**20):
        refused(tmp_path, tmp_path / TRAIN_IMAGES, "has more")


def test_a_label_that_only_the_test_split_has_is_refused(tmp_path) -> None:
    write(tmp_path, idx_files(test_labels=np.array([0, 9], np.uint8)))
    refused(tmp_path, tmp_path, "label 9 is in the test split")


def test_known_labels_have_names(tmp_path, monkeypatch) -> None:
    """By the hash of the file, packed or not, and by nothing else."""
    files, packed = idx_files(), gzip.compress(idx_files()[TRAIN_LABELS])
    plain, zipped = (write(tmp_path / name, files) for name in ("fashion-mnist", "kmnist"))
    (zipped / TRAIN_LABELS).rename(zipped / f"{TRAIN_LABELS}.gz").write_bytes(packed)
    assert [load_data(str(each)).info.classes for each in (plain, zipped)] == [("0", "1")] * 2
    for content in (files[TRAIN_LABELS], packed):
        with monkeypatch.context() as patch:
            patch.setattr(idx, "KNOWN", {hashlib.sha256(content).hexdigest(): ("shoe", "bag")})
            names = [load_data(str(each)).info.classes for each in (plain, zipped)]
        assert names == [("shoe", "bag") if content is not packed else ("0", "1"), ("shoe", "bag")]


def emnist_files(split: str, first: int = 0) -> dict[str, bytes]:
    """Two images of each label, under EMNIST's names."""
    labels = np.arange(len(idx.EMNIST[split]), dtype=np.uint8).repeat(2) + np.uint8(first)
    images = np.random.default_rng(6).integers(0, 256, (len(labels), 16, 20), np.uint8)
    arrays = (images, labels, images, labels)
    stems = [f"emnist-{split}-{stem.replace('t10k', 'test')}.gz" for stem in STEMS]
    return {stem: gzip.compress(idx_bytes(array)) for stem, array in zip(stems, arrays, strict=True)}


@pytest.mark.parametrize(
    ("split", "count", "some"),
    [
        ("balanced", 47, {9: "9", 10: "A", 36: "a", 38: "d", 46: "t"}),
        ("bymerge", 47, {35: "Z", 39: "e", 40: "f", 41: "g", 43: "n"}),
        ("byclass", 62, {35: "Z", 36: "a", 61: "z"}),
        ("letters", 26, {0: "A", 25: "Z"}),
        ("digits", 10, {7: "7"}),
        ("mnist", 10, {7: "7"}),
    ],
)
def test_a_split_of_emnist_is_read_upright_with_names(split, count, some, tmp_path) -> None:
    files = emnist_files(split, first=int(split == "letters"))
    data = load_data(str(write(tmp_path, files)))
    raw = np.frombuffer(gzip.decompress(files[f"emnist-{split}-test-images-idx3-ubyte.gz"]), np.uint8, offset=16)
    assert np.array_equal(data.test.pixels[:, 0], raw.reshape(-1, 16, 20).transpose(0, 2, 1))
    assert np.array_equal(data.test.labels, np.arange(count).repeat(2))
    assert {index: data.info.classes[index] for index in some} == some
    assert len(data.info.classes) == count


def test_a_folder_of_several_or_incomplete_splits_of_emnist_is_refused(tmp_path) -> None:
    both = write(tmp_path / "both", emnist_files("digits") | emnist_files("mnist"))
    refused(both, both, r"holds more than one data set \(digits, mnist\)")
    part = write(tmp_path / "part", emnist_files("digits"))
    (part / "emnist-digits-test-labels-idx1-ubyte.gz").unlink()
    refused(part, part, "emnist-digits-test-labels-idx1-ubyte, plain or .gz, is missing")


# Image folders


def solid(*color: int, size: Size = (16, 16)) -> Image.Image:
    """An image of one color; grey, RGB or RGBA by the number of values."""
    return Image.new({1: "L", 3: "RGB", 4: "RGBA"}[len(color)], size[::-1], color)


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_read(content: bytes | Image.Image, path: Path, size: Size | None = None) -> Tensor:
    """The pixels of an image that is read from a folder with one class."""
    data = load_data(str(write(path, {"a/0.png": content, "a/1.png": content})), size)
    assert torch.equal(data.train.pixels, data.test.pixels)
    return data.train.pixels[0]


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLORS = np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)


def test_png_and_jpeg_in_color(tmp_path) -> None:
    files: Files = {
        "train/b/0.png": solid(*RED),
        "train/b/1.jpg": solid(*RED),
        "train/a/0.JPEG": solid(*BLUE),
        "train/a/1.PNG": solid(*BLUE),
        "train/a/2.png": solid(*BLUE),
        "test/b/0.jpeg": solid(*RED),
    }
    data = load_data(str(write(tmp_path, files)))
    assert data.info.classes == ("a", "b")
    assert (data.info.channels, data.info.ink) == (3, False)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.test.labels.tolist() == [1]
    for split in (data.train, data.test):
        expected = torch.tensor([BLUE, RED])[split.labels][:, :, None, None]
        assert (split.pixels - expected).abs().max() <= 2  # JPEG's rounding


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "LA"])
def test_grey_is_found_from_the_pixels_in_every_mode(mode, tmp_path) -> None:
    pixels = as_read(Image.fromarray(GREYS).convert(mode), tmp_path)
    assert np.array_equal(pixels, GREYS[None])


@pytest.mark.parametrize("place", ["train/a/0.png", "test/a/0.png"])
def test_one_colored_pixel_anywhere_makes_all_images_rgb(place, tmp_path) -> None:
    colored = solid(7, 7, 7)
    colored.putpixel((3, 5), (7, 7, 8))
    files = {name: solid(7) for name in ("train/a/0.png", "train/a/1.png", "test/a/0.png")}
    data = load_data(str(write(tmp_path, {**files, place: colored})))
    assert data.info.channels == data.train.pixels.shape[1] == data.test.pixels.shape[1] == 3
    assert sum(split.pixels.long().sum().item() for split in (data.train, data.test)) == 3 * 16 * 16 * 21 + 1


def test_a_palette_image_has_the_colors_of_its_palette(tmp_path) -> None:
    image = Image.fromarray(GREYS % 2)
    image.putpalette([*RED, *BLUE])
    assert image.mode == "P"
    expected = np.array([RED, BLUE], np.uint8)[GREYS % 2].transpose(2, 0, 1)
    assert np.array_equal(as_read(image, tmp_path), expected)


def test_transparent_pixels_become_white(tmp_path) -> None:
    for alpha, grey in ((0, 255), (51, 204), (255, 0)):
        assert as_read(solid(0, 0, 0, alpha), tmp_path / str(alpha)).unique().tolist() == [grey]
    for name, content in {
        "one color": png(solid(*RED), transparency=RED),
        "palette": png(solid(*RED).convert("P"), transparency=bytes(256)),
    }.items():
        assert as_read(content, tmp_path / name).unique().tolist() == [255]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(orientation, upright: Callable[[np.ndarray], np.ndarray], tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = as_read(png(Image.fromarray(COLORS), exif=exif), tmp_path)
    assert np.array_equal(pixels.permute(1, 2, 0), upright(COLORS))


def test_classes_are_sorted_by_name(tmp_path) -> None:
    names = ["dog", "10", "2", "Cat"]
    files = {f"{name}/{number}.png": solid(index) for index, name in enumerate(names) for number in range(2)}
    data = load_data(str(write(tmp_path, files)))
    assert data.info.classes == ("10", "2", "Cat", "dog")
    assert [names[int(value)] for value in data.train.pixels[:, 0, 0, 0]] == ["10", "2", "Cat", "dog"]
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 1, 2, 3]


def test_hidden_and_system_files_are_ignored(tmp_path) -> None:
    litter = dict.fromkeys((".DS_Store", "Thumbs.db", "desktop.ini", "a/.x.png", "a/Thumbs.db", ".git/HEAD"), b"litter")
    data = load_data(str(write(tmp_path, {"a/0.png": solid(1), "a/1.png": solid(2), **litter})))
    assert data.info.classes == ("a",)
    assert (data.info.train_images, data.info.test_images) == (1, 1)


def black_png(side: int, depth: int = 1, color: int = 0, samples: int = 1) -> bytes:
    """A valid PNG; with one bit per pixel it is a thousand times smaller than its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    body = zlib.compress(bytes((1 + -(-side * depth * samples // 8)) * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


PAIR: Files = {"a/0.png": solid(0), "a/1.png": solid(0)}
NOISE = Image.fromarray(COLORS)
DEEP = Image.fromarray(GREYS.astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("files", "named", "fault"),
    [
        ({**PAIR, "b/0.png": solid(0)}, "", "class 'b' has fewer than two training images"),
        ({**PAIR, "b": None}, "b", "holds no images"),
        ({**PAIR, "b/Thumbs.db": b""}, "b", "holds no images"),
        ({**PAIR, "a/2.png": b""}, "a/2.png", "cannot be read as an image"),
        ({**PAIR, "a/2.png": b"Hello, world.\n"}, "a/2.png", "cannot be read as an image"),
        ({**PAIR, "a/2.png": png(solid(0), "GIF")}, "a/2.png", "cannot be read as an image"),
        ({**PAIR, "a/2.png": png(NOISE)[:-60]}, "a/2.png", "cannot be read as an image"),
        ({**PAIR, "a/2.jpg": png(NOISE, "JPEG")[:-60]}, "a/2.jpg", "cannot be read as an image"),
        ({**PAIR, "a/2.png": DEEP}, "a/2.png", "more than 8 bits"),
        ({**PAIR, "a/2.png": black_png(16, 16, color=2, samples=3)}, "a/2.png", "more than 8 bits"),
        ({**PAIR, "a/2.png": black_png(16, 16, color=4, samples=2)}, "a/2.png", "more than 8 bits"),
        ({**PAIR, "a/2.png": black_png(16, 16, color=6, samples=4)}, "a/2.png", "more than 8 bits"),
        ({**PAIR, "a/notes.txt": b"Hello, world.\n"}, "a/notes.txt", "is not a PNG or JPEG file"),
        ({**PAIR, "a/2.png": None}, "a/2.png", "is not a PNG or JPEG file"),
        ({**PAIR, "a/deeper/0.png": solid(0)}, "a/deeper", "is not a PNG or JPEG file"),
        ({**PAIR, "notes.txt": b"Hello, world.\n"}, "notes.txt", "is a file between the folders of classes"),
        ({**PAIR, "2.png": solid(0)}, "2.png", "is a file between the folders of classes"),
        ({".hidden/0.png": solid(0)}, "", "holds no images; .* one sub-folder per class"),
        ({"train": None, "test/a/0.png": solid(0)}, "train", "holds no images; .* one sub-folder per class"),
        ({"train/a/0.png": solid(0), "test": b""}, "test", "is not a folder"),
        (
            {"CON/0.png": solid(0), "CON/1.png": solid(0)},
            "",
            "'CON' cannot be the name .* Windows .*; rename the class",
        ),
        (
            {**{f"train/{name}": image for name, image in PAIR.items()}, "test/b/0.png": solid(0)},
            "test/b",
            "is not a class of the training split",
        ),
    ],
)
def test_a_faulty_image_folder_is_refused(files: Files, named, fault, tmp_path) -> None:
    refused(write(tmp_path, files), tmp_path / named, fault)


@pytest.mark.parametrize("side", [4097, 20_000])
def test_a_decompression_bomb_is_refused(side, tmp_path) -> None:
    """Over this package's limit, and over Pillow's."""
    bomb = black_png(side)
    assert len(bomb) < 100_000
    fault = "over 16,777,216" if side < 10_000 else "cannot be read as an image"
    refused(write(tmp_path, {**PAIR, "a/2.png": bomb}), tmp_path / "a/2.png", fault, (16, 16))


def test_the_limit_of_memory_is_that_of_the_scaled_images(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(source, "MAX_BYTES", 3 * 16 * 16 * 3)
    files = {f"a/{number}.png": solid(number, size=(100, 100)) for number in range(4)}
    root = write(tmp_path, files)
    refused(root, root, "4 images of 16 x 16 pixels need 3,072 bytes .*; use fewer or smaller images", (16, 16))
    (root / "a/0.png").unlink()
    assert len(load_data(str(root), (16, 16)).train) == 2
    np.savez(tmp_path / "data.npz", images=np.zeros((9, 16, 16), np.uint8), labels=np.zeros(9, int))
    refused(tmp_path / "data.npz", tmp_path / "data.npz", "9 images of 20 x 20 pixels need 3,600 bytes", (20, 20))


@pytest.mark.parametrize("link", ["a/2.png", "b", "c"])
def test_a_link_to_a_place_outside_is_refused(link, tmp_path) -> None:
    """The other folder's name starts with this one's."""
    outside = write(tmp_path / "data-outside", PAIR)
    root = write(tmp_path / "data", PAIR)
    target = {"a/2.png": outside / "a/0.png", "b": outside / "a", "c": Path("../data-outside/a")}[link]
    (root / link).symlink_to(target)
    refused(root, root / link, "is a link to a place outside")


def test_a_link_within_the_folder_is_followed(tmp_path) -> None:
    root = write(tmp_path / "data", PAIR)
    (root / "b").symlink_to("a")
    (root / "a/2.png").symlink_to(root / "a/0.png")
    (tmp_path / "alias").symlink_to(root)
    assert len(load_data(str(tmp_path / "alias")).train) == 4


def test_loose_images_have_the_size_of_the_data(tmp_path, tiny_data: Dataset) -> None:
    root = write(tmp_path, {"0.png": solid(0, size=(28, 28)), "1.png": solid(0, size=(20, 16))})
    with pytest.raises(DataError, match=r"1.png: is 20 x 16 pixels, but the images of the data are 28 x 28; resize it"):
        load_images(str(root), tiny_data.info)
    (root / "1.png").unlink()
    assert load_images(str(root), tiny_data.info)[0].shape == (1, 1, 28, 28)


def test_circular_links_are_refused(tmp_path) -> None:
    (write(tmp_path, PAIR) / "a/2.png").symlink_to("2.png")
    with pytest.raises(DataError) as caught:
        load_data(str(tmp_path))
    assert str(tmp_path / "a/2.png") in str(caught.value)  # the rest of the message depends on Python's version


@pytest.mark.parametrize("name", ["nowhere", "data.npz", "x" * 300, "x\0y", "~no.such.user/data"])
def test_a_path_that_does_not_exist_is_refused(name, tmp_path) -> None:
    path = Path(name) if name.startswith("~") else tmp_path / name
    refused(path, path, "no such file or folder|cannot be read")


def test_a_path_without_a_data_set_is_refused(tmp_path) -> None:
    refused(tmp_path, tmp_path, "holds no data set")
    write(tmp_path, {"notes.txt": b"Hello, world.\n"})
    refused(tmp_path, tmp_path, "holds no data set")
    refused(tmp_path / "notes.txt", tmp_path / "notes.txt", "holds no data set")


THIRDS = np.array([RED, GREEN, BLUE], np.uint8)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("side", [16, 32, 48, 200])
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (32, 30)])
def test_size_scales_then_crops_at_the_center(size: Size, side: int, wide, tmp_path) -> None:
    """Of three squares in a row the middle one remains; its edges blend equally into the other two."""
    row = THIRDS.repeat(side, axis=0)[None].repeat(side, axis=0)
    pixels = as_read(Image.fromarray(row if wide else row.transpose(1, 0, 2)), tmp_path, size)
    assert pixels.shape == (3, *size)
    assert pixels[:, 6:-6, 6:-6].flatten(1).unique(dim=1).T.tolist() == [list(GREEN)]
    assert torch.equal(pixels[0].flip(1 if wide else 0), pixels[2])


def test_size_makes_mixed_images_equal(tmp_path) -> None:
    shapes: list[Size] = [(16, 16), (9, 40), (100, 30), (1, 1)]
    files = {f"a/{number}.png": solid(200, size=shape) for number, shape in enumerate(shapes)}
    data = load_data(str(write(tmp_path, files)), (16, 24))
    assert data.train.pixels.shape == (3, 1, 16, 24)
    assert data.train.pixels.unique().tolist() == [200]


@pytest.mark.parametrize("shape", [(16, 24, 3), (16, 24), (1, 24), (24, 1), (1, 1, 3), (1, 24, 3)])
def test_size_means_the_same_in_every_kind_of_source(shape, tmp_path) -> None:
    image = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    expected = as_read(Image.fromarray(image), tmp_path / "folder", (20, 18))
    np.savez(tmp_path / "data.npz", images=[image, image], labels=[0, 0])
    assert torch.equal(load_data(str(tmp_path / "data.npz"), (20, 18)).train.pixels[0], expected)


def test_the_size_that_images_already_have_changes_nothing(tmp_path) -> None:
    assert np.array_equal(as_read(NOISE, tmp_path, (16, 24)).permute(1, 2, 0), COLORS)


@pytest.mark.parametrize(
    ("shapes", "size", "said"),
    [
        ([(20, 27)] * 3, (20, 27), None),
        ([(64, 16)] * 3, (64, 16), None),
        ([(100, 100)] * 3, (64, 64), "3 images of 100 x 100 pixels, scaled to 64 x 64; "),
        (
            [(480, 640)] * 2 + [(960, 1280)],
            (48, 64),
            "3 images from 480 x 640 to 960 x 1280 pixels, scaled to 48 x 64; ",
        ),
        ([(16, 16), (16, 16), (16, 20)], (16, 16), "3 images from 16 x 16 to 16 x 20 pixels, scaled to 16 x 16; "),
        ([(15, 30)] * 3, (16, 32), "3 images of 15 x 30 pixels, scaled to 16 x 32; "),
        ([(20, 1000)] * 3, (16, 64), "3 images of 20 x 1000 pixels, scaled to 16 x 64; "),
    ],
)
def test_without_a_size_one_is_chosen_from_the_images(shapes: list[Size], size: Size, said, tmp_path, caplog) -> None:
    draw = np.random.default_rng(5)
    images = [Image.fromarray(draw.integers(0, 256, shape, np.uint8)) for shape in shapes]
    root = write(tmp_path / "photos", {f"a/{number}.png": image for number, image in enumerate(images)})
    with caplog.at_level("INFO", "pocketdiff"):
        found = load_data(str(root))
    assert tuple(found.train.pixels.shape[2:]) == size
    assert caplog.messages == ([] if said is None else [f"{root}: {said}--size (size=) chooses another"])
    again = load_data(str(root), size)  # Evaluation reads a model's data in this way.
    assert again.info == found.info
    assert len(caplog.messages) == (said is not None)


def test_arrays_of_any_size_get_one_too(caplog) -> None:
    with caplog.at_level("INFO", "pocketdiff"):
        data = Dataset.from_arrays(PIXELS[:, :15], LABELS, PIXELS[:, :, :16], LABELS)
    assert (data.info.height, data.info.width) == (16, 16)
    assert "arrays: 12 images from 16 x 16 to 15 x 20 pixels, scaled to 16 x 16" in caplog.text


def test_a_faulty_file_is_named_before_any_image_is_decoded(tmp_path, monkeypatch) -> None:
    root = write(tmp_path, {**PAIR, "b/0.png": b"Hello, world.\n"})
    monkeypatch.setattr(folder, "_read_image", lambda file, size: pytest.fail("an image was decoded"))
    refused(root, root / "b/0.png", "cannot be read as an image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_size_of_a_turned_photo_is_that_of_the_upright_image(kind, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = png(solid(200, size=(300, 400)), kind, exif=exif)
    root = write(tmp_path, {"a/0.jpg": photo, "a/1.jpg": photo})
    assert load_data(str(root)).train.pixels.shape == (1, 1, 64, 48)


def test_a_large_jpeg_looks_like_the_same_png(tmp_path) -> None:
    """It is decoded at a fraction of its size."""
    side = np.linspace(0, 6, 800)
    waves = 127 + 100 * np.sin(side[:, None] ** 2) * np.cos(side)
    image = Image.fromarray(waves.astype(np.uint8))
    one, other = (
        load_data(str(write(tmp_path / kind, {f"a/{n}.{kind.lower()}": png(image, kind) for n in range(2)})))
        for kind in ("PNG", "JPEG")
    )
    assert one.info.height == other.info.height == 64
    assert (one.train.pixels.float() - other.train.pixels.float()).abs().max() < 8


def test_a_size_out_of_range_is_refused(tmp_path) -> None:
    refused(write(tmp_path, PAIR), tmp_path, "size is 100 x 16 pixels; use 16 to 64 a side", (100, 16))


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["u1", "i8", ">i4"])
@pytest.mark.parametrize("shape", [(6, 16, 20), (6, 16, 20, 1), (6, 16, 20, 3)])
def test_npz_is_read_with_and_without_a_test_split(shape, dtype, save, tmp_path) -> None:
    images = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    labels, file = LABELS.astype(dtype), tmp_path / "data.npz"
    channels = shape[3] if len(shape) == 4 else 1
    expected = images.reshape(6, 16, 20, channels).transpose(0, 3, 1, 2)
    save(file, images=images, labels=labels, test_images=images[::-1], test_labels=labels[::-1], other=np.ones(3))
    data = load_data(str(file))
    assert np.array_equal(data.train.pixels, expected)
    assert np.array_equal(data.test.pixels, expected[::-1])
    assert np.array_equal(data.train.labels, LABELS)
    assert np.array_equal(data.test.labels, LABELS[::-1])
    assert data.info.channels == channels
    save(file, images=np.asfortranarray(images), labels=labels)
    data = load_data(str(file))
    assert (data.info.train_images, data.info.test_images) == (4, 2)
    assert sorted(map(bytes, torch.cat([data.train.pixels, data.test.pixels]).numpy())) == sorted(map(bytes, expected))


def test_negative_labels_are_names_too(tmp_path) -> None:
    np.savez(tmp_path / "data.npz", images=PIXELS, labels=np.array([5, -1] * 3))
    assert load_data(str(tmp_path / "data.npz")).info.classes == ("-1", "5")


def test_ink_is_light_on_dark(tmp_path) -> None:
    for name, images, ink in (("dark", PIXELS // 2, True), ("light", 255 - PIXELS // 2, False)):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=LABELS)
        assert load_data(str(tmp_path / f"{name}.npz")).info.ink is ink


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({}, ": images is missing"),
        ({"images": PIXELS}, ": labels is missing"),
        ({"labels": LABELS}, ": images is missing"),
        ({"images": PIXELS, "labels": LABELS, "test_images": PIXELS}, "test_labels is missing"),
        ({"images": PIXELS, "labels": LABELS, "test_labels": LABELS}, "test_images is missing"),
        ({"images": PIXELS / 255, "labels": LABELS}, "images is float64 .* must be uint8"),
        ({"images": PIXELS.astype(np.int64), "labels": LABELS}, "images is int64 .* must be uint8"),
        ({"images": PIXELS[0], "labels": LABELS}, r"images is uint8 of shape \(16, 20\)"),
        ({"images": PIXELS[..., None].repeat(4, 3), "labels": LABELS}, r"of shape \(6, 16, 20, 4\)"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, r"of shape \(0, 16, 20"),
        ({"images": PIXELS, "labels": LABELS.astype(float)}, "labels is float64 .* must be integers"),
        ({"images": PIXELS, "labels": LABELS == 1}, "labels is bool .* must be integers"),
        ({"images": PIXELS, "labels": np.array(list("aabbcc"))}, "labels is <U1 .* must be integers"),
        ({"images": PIXELS, "labels": LABELS[:, None]}, r"labels is uint8 of shape \(6, 1\)"),
        ({"images": PIXELS, "labels": LABELS.astype(object)}, "labels holds Python objects"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "labels has 5 entries for 6 images"),
        ({"images": PIXELS, "labels": LABELS[:0]}, "labels has 0 entries for 6 images"),
        ({"images": PIXELS, "labels": [0, 0, 0, 0, 0, 9]}, "class '9' has fewer than two training images"),
        (
            {"images": PIXELS, "labels": LABELS, "test_images": PIXELS[..., None].repeat(3, 3), "test_labels": LABELS},
            "train and test images differ in color",
        ),
        ({"images": PIXELS, "labels": np.array([0, 1, 0, 1, 0, 2**63], np.uint64)}, f"holds {2**63}, more than"),
        (
            {"images": PIXELS, "labels": LABELS, "test_images": PIXELS, "test_labels": LABELS + 1},
            "label 2 is in the test split",
        ),
    ],
)
def test_a_faulty_npz_is_refused(arrays, fault, tmp_path) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    refused(tmp_path / "data.npz", tmp_path / "data.npz", fault)


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["images", "labels", "test_images"])
def test_nothing_is_ever_unpickled(key, tmp_path) -> None:
    file, sprung = tmp_path / "data.npz", tmp_path / "sprung"
    arrays: dict[str, Any] = {"images": PIXELS, "labels": LABELS, "test_images": PIXELS, "test_labels": LABELS}
    np.savez(file, **{**arrays, key: np.array([Trap(sprung)])})
    refused(file, file, f"{key} holds Python objects")
    assert not sprung.exists()
    with np.load(file, allow_pickle=True) as archive:
        archive[key]
    assert sprung.exists()  # the trap was armed


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(images: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with these bytes as its images."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", npy(LABELS))
    return file.getvalue()


def npy_header(text: str, version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def shaped(shape: object) -> bytes:
    return npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}")


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        (shaped((2**31, 28, 28)) + bytes(99), "over the limit of 2,147,483,648; use fewer or smaller images"),
        (shaped((2**40, 28, 28)) + bytes(99), "impossible shape"),
        (shaped((10**2000, 28, 28)) + bytes(99), "impossible shape"),
        (shaped((-1, 16, 20)) + bytes(2**24), "impossible shape"),
        (shaped((-6, -16, 20)) + bytes(6 * 16 * 20), "impossible shape"),
        (shaped((True, 16, 20)) + bytes(16 * 20), "impossible shape"),
        (shaped((1,) * 100) + bytes(1), "dimension"),
        (npy_header("{" * 999), "damaged header"),
        (npy_header("{'descr': (), 'fortran_order': False, 'shape': (6, 16, 20), }"), "damaged header"),
        (
            npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (6, 16, 20), }" + " " * 30_000),
            "damaged header",
        ),
        (b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + bytes(2**24), "version 1.0"),
        (b"\x93NUMPY", "cannot be read"),
        (b"Hello, world.\n", "cannot be read"),
        (b"", "cannot be read"),
        (npy(PIXELS)[:-1], "ends after 1,919"),
        (npy(PIXELS) + b"\0", "has more"),
        (npy(PIXELS) + bytes(2**24), "has more"),
    ],
)
def test_a_faulty_array_is_refused_without_allocating(images, fault, tmp_path) -> None:
    write(tmp_path, {"data.npz": npz(images, zipfile.ZIP_DEFLATED)})
    with memory_below(2**22):
        refused(tmp_path / "data.npz", tmp_path / "data.npz", fault)


def test_an_array_written_by_python_2_is_read_without_a_warning(tmp_path) -> None:
    write(tmp_path, {"data.npz": npz(shaped("(6L, 16L, 20L)") + PIXELS.tobytes())})
    assert load_data(str(tmp_path / "data.npz")).train.pixels.shape == (4, 1, 16, 20)


def test_arrays_that_do_not_fit_each_other_are_refused_before_they_are_read(tmp_path) -> None:
    images = shaped((2**31 // 784, 28, 28)) + bytes(2**22)
    write(tmp_path, {"data.npz": npz(images, zipfile.ZIP_DEFLATED)})
    with memory_below(2**20):
        refused(tmp_path / "data.npz", tmp_path / "data.npz", "labels has 6 entries for 2,739,137 images")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_numpy_never_writes_is_refused(compression, tmp_path) -> None:
    write(tmp_path, {"data.npz": npz(npy(PIXELS), compression)})
    refused(tmp_path / "data.npz", tmp_path / "data.npz", "a compression that numpy does not use")


def flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 255]) + body[at + 1 :]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Hello, world.\n",
        npy(PIXELS),
        npz(npy(PIXELS))[:-1],
        npz(npy(PIXELS))[:1000],
        npz(npy(PIXELS))[10:],
        flipped(npz(npy(PIXELS)), 1000),
        flipped(npz(npy(PIXELS), zipfile.ZIP_DEFLATED), 1000),
    ],
)
def test_a_damaged_zip_file_is_refused(body, tmp_path) -> None:
    write(tmp_path, {"data.npz": body})
    refused(tmp_path / "data.npz", tmp_path / "data.npz", "cannot be read")


# Arrays

ARRAYS: dict[str, Any] = {"images": PIXELS, "labels": LABELS, "test_images": PIXELS[::-1], "test_labels": LABELS[::-1]}


@pytest.mark.parametrize("convert", [np.asarray, np.asfortranarray, torch.tensor])
@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("size", [None, (24, 16)])
def test_arrays_equal_the_same_arrays_in_a_file(convert, test, channels, size, tmp_path) -> None:
    arrays = ARRAYS if test else {"images": PIXELS, "labels": LABELS}
    if channels:
        arrays = {k: x[..., None].repeat(channels, 3) if "images" in k else x for k, x in arrays.items()}
    np.savez(tmp_path / "data.npz", **arrays)
    from_file = load_data(str(tmp_path / "data.npz"), size, seed=3)
    if convert is torch.tensor:  # tensors are usually (n, c, h, w)
        arrays = {k: np.ascontiguousarray(np.moveaxis(x, 3, 1) if x.ndim == 4 else x) for k, x in arrays.items()}
    data = Dataset.from_arrays(**{name: convert(array) for name, array in arrays.items()}, size=size, seed=3)
    assert data.info == from_file.info
    for split, other in ((data.train, from_file.train), (data.test, from_file.test)):
        assert torch.equal(split.pixels, other.pixels)
        assert torch.equal(split.labels, other.labels)
    assert (data.source, from_file.source) == ("arrays", str(tmp_path / "data.npz"))


def test_arrays_are_copied() -> None:
    images = PIXELS.copy()
    data = Dataset.from_arrays(images, LABELS, images, LABELS)
    images[:] = 0
    assert np.array_equal(data.train.pixels[:, 0], PIXELS)


def test_classes_name_the_labels_of_arrays() -> None:
    data = Dataset.from_arrays(PIXELS, 1 - LABELS.astype(int), classes=["cat", "dog"])
    assert data.info.classes == ("cat", "dog")
    assert data.train.labels.bincount().tolist() == [2, 2]
    assert Dataset.from_arrays(PIXELS, [-1, 4, -1, 4, -1, 4]).info.classes == ("-1", "4")


TENSOR = torch.tensor(PIXELS)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"images": PIXELS / 255}, "images is float64 of shape .* must be uint8"),
        ({"images": TENSOR.float()}, "images is float32 of shape .* must be uint8"),
        ({"images": TENSOR.bfloat16()}, "images is not an array .*; give a numpy array or a tensor"),
        ({"images": TENSOR.to_sparse()}, "images is not an array .*; give a numpy array or a tensor"),
        ({"images": PIXELS[0]}, r"images is uint8 of shape \(16, 20\)"),
        ({"images": TENSOR[:, None].repeat(1, 4, 1, 1)}, r"images is uint8 of shape \(6, 4, 16, 20\)"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, r"images is uint8 of shape \(0, 16, 20\)"),
        ({"images": [[1, 2], [3]]}, "images is not an array .*; give a numpy array or a tensor"),
        ({"labels": LABELS.astype(float)}, "labels is float64 .* must be integers"),
        ({"labels": torch.tensor(LABELS) == 1}, "labels is bool .* must be integers"),
        ({"labels": list("aabbcc")}, "labels is <U1 .* must be integers"),
        ({"labels": LABELS[:, None]}, r"labels is uint8 of shape \(6, 1\)"),
        ({"labels": LABELS[:5]}, "labels has 5 entries for 6 images"),
        ({"labels": [0, 0, 0, 0, 0, 9]}, "class '9' has fewer than two training images"),
        ({"test_images": PIXELS}, "test_labels is missing"),
        ({"test_labels": LABELS}, "test_images is missing"),
        ({"test_images": PIXELS / 255, "test_labels": LABELS}, "test_images is float64"),
        ({"test_images": PIXELS, "test_labels": LABELS / 2}, "test_labels is float64"),
        ({"test_images": PIXELS, "test_labels": LABELS[:5]}, "labels has 5 entries for 6 images"),
        (
            {"test_images": PIXELS[..., None].repeat(3, 3), "test_labels": LABELS},
            "train and test images differ in color",
        ),
        ({"labels": np.array([0, 0, 1, 1, 2**64 - 1, 2**64 - 1], np.uint64)}, f"labels holds {2**64 - 1}, more than"),
        ({"test_images": PIXELS, "test_labels": LABELS + 1}, "label 2 is in the test split"),
        ({"classes": ["cat"]}, "label 1 is not one of the 1 classes"),
        ({"classes": ["cat", "dog", "cow"]}, "class 'cow' has fewer than two training images"),
        ({"classes": ["cat", "cat"]}, "two classes have the same name"),
        ({"classes": ["cat", "../dog"]}, "'../dog' cannot be the name of a class"),
        *[
            ({"classes": ["cat", name]}, "cannot be the name of a class, because Windows has no such folder; rename")
            for name in ("con", "Aux.x", "LPT1", "C:x", "what?", "a|b", "<i>", "dot.", "space ")
        ],
        ({"classes": ["cat", "dog"], "labels": LABELS.astype(int) - 1}, "label -1 is not one of the 2 classes"),
    ],
)
def test_faulty_arrays_are_refused(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        Dataset.from_arrays(**{"images": PIXELS, "labels": LABELS, **change})
    assert str(caught.value).startswith("arrays: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_data_set_from_outside_is_read_by_name_and_checked(monkeypatch) -> None:
    monkeypatch.setitem(DATASETS, "mine", lambda: Source(Split(PIXELS, LABELS), classes=("cat", "dog")))
    data = load_data("mine", (16, 16))
    assert (data.source, data.info.classes, data.info.width) == ("mine", ("cat", "dog"), 16)
    monkeypatch.setitem(DATASETS, "mine", lambda: Source(Split(PIXELS / 255, LABELS)))
    refused(Path("mine"), Path("mine"), "images is float64")


# Augmentation


def test_flip_mirrors_about_half_of_the_images(mnist: Dataset) -> None:
    pixels = mnist.train.pixels[:2000]
    flipped = AUGMENTATIONS["flip"](pixels, 0, range(2000))
    mirrored = (flipped == pixels.flip(3)).flatten(1).all(1)
    kept = (flipped == pixels).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert mirrored.sum().item() == pytest.approx(1000, abs=80)
    assert torch.equal(AUGMENTATIONS["flip"](flipped, 0, range(2000)), pixels)


def test_flip_depends_on_seed_and_index_only(mnist: Dataset) -> None:
    pixels = mnist.train.pixels[:40]
    flip = AUGMENTATIONS["flip"]
    whole = flip(pixels, 5, range(100, 140))
    parts = [
        flip(pixels[at : at + size], 5, range(100 + at, 100 + at + size)) for at, size in ((0, 1), (1, 24), (25, 15))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(flip(pixels, 6, range(100, 140)), whole)
    assert not torch.equal(flip(pixels, 5, range(101, 141)), whole)
    other = (rng.uniform(5, rng.Stream.DROP, range(100, 140)) < 0.5)[:, None, None, None]
    assert not torch.equal(torch.where(other, pixels.flip(3), pixels), whole)  # a stream of its own


def test_no_augmentation_changes_nothing(mnist: Dataset) -> None:
    pixels = mnist.train.pixels[:4]
    assert AUGMENTATIONS["none"](pixels, 0, range(4)) is pixels


# Splits, units, batches


@pytest.fixture(scope="module")
def classes_of_many_sizes(tmp_path_factory) -> str:
    """Five classes of 2, 10, 19, 20 and 31 images in mixed order; every pixel of an image is the image's number."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    labels = np.random.default_rng(4).permutation(np.repeat(np.arange(5), [2, 10, 19, 20, 31]))
    np.savez(path, images=np.arange(82, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2), labels=labels)
    return str(path)


def numbers(split: Images) -> list[int]:
    return split.pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**40, -1])
def test_a_split_holds_out_a_tenth_of_each_class_and_at_least_one(seed, classes_of_many_sizes) -> None:
    data = load_data(classes_of_many_sizes, seed=seed)
    assert data.test.labels.bincount().tolist() == [1, 1, 1, 2, 3]
    assert sorted(numbers(data.train) + numbers(data.test)) == list(range(82))
    with np.load(classes_of_many_sizes) as archive:
        for split in (data.train, data.test):
            assert np.array_equal(split.labels, archive["labels"][numbers(split)])


def test_the_seed_decides_the_split(classes_of_many_sizes) -> None:
    splits = [load_data(classes_of_many_sizes, seed=seed) for seed in (0, 0, 1, 2**32)]
    assert splits[0].info == splits[1].info
    assert numbers(splits[0].test) == numbers(splits[1].test)
    assert len({tuple(numbers(data.test)) for data in splits}) == 3
    assert len({data.info.sha256 for data in splits}) == 3


def test_the_hash_covers_every_pixel_and_label(tmp_path) -> None:
    hashes = set()
    for changed in ("", "images", "labels", "test_images", "test_labels"):
        arrays: dict[str, Any] = {"images": PIXELS, "labels": LABELS, "test_images": PIXELS, "test_labels": LABELS}
        if changed:
            arrays[changed] = arrays[changed].copy()
            arrays[changed].flat[-1] ^= 1
        np.savez(tmp_path / "data.npz", **arrays)
        hashes.add(load_data(str(tmp_path / "data.npz")).info.sha256)
    assert len(hashes) == 5


def test_bytes_are_the_same_after_data_units_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    x = to_data_units(pixels)
    assert (x[0].item(), x[255].item()) == (-1, 1)
    assert torch.equal(to_uint8(x), pixels)
    assert to_uint8(torch.tensor([-9.0, -1.01, 1.01, 9.0])).tolist() == [0, 0, 255, 255]


def test_a_batch_is_an_index(tiny_data: Dataset) -> None:
    indices = torch.tensor([7, 0, 7])
    x, labels = tiny_data.train.batch(indices)
    assert torch.equal(to_uint8(x), tiny_data.train.pixels[indices])
    assert torch.equal(labels, tiny_data.train.labels[indices])


def test_first_of_each_takes_the_images_of_a_label_in_turn(classes_of_many_sizes) -> None:
    images = load_data(classes_of_many_sizes).train
    ones = [number for number, label in zip(numbers(images), images.labels.tolist(), strict=True) if label == 1]
    fours = [number for number, label in zip(numbers(images), images.labels.tolist(), strict=True) if label == 4]
    rows = images.first_of_each([4, 1, 1, 4, *[1] * 8])
    assert rows[:, 0, 0, 0].tolist() == [fours[0], ones[0], ones[1], fours[1], *ones[2:], ones[0]]


# Any bytes at all


def damaged(sound: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, or these with some removed or inserted."""

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        body = sound
        for at, cut, new in edits:
            body = body[:at] + new + body[at + cut :]
        return body

    edit = st.tuples(st.integers(0, len(sound)), st.integers(0, 8), st.binary(max_size=8))
    return st.binary(max_size=200) | st.lists(edit, max_size=4).map(apply)


def read_or_refused(source: Path) -> None:
    fault, data = None, None
    try:
        data = load_data(str(source))
    except DataError as error:
        fault = str(error)
    if data is None:
        assert fault is not None
        assert fault.startswith(str(source))
        assert len(fault.splitlines()) == 1
        return
    info = data.info
    for split, count in ((data.train, info.train_images), (data.test, info.test_images)):
        assert split.pixels.shape == (count, info.channels, info.height, info.width)
        assert split.pixels.dtype == torch.uint8
        assert set(split.labels.tolist()) <= set(range(len(info.classes)))
    assert info.channels in (1, 3)
    assert 16 <= info.height <= 64
    assert 16 <= info.width <= 64


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


any_bytes = settings(deadline=None, max_examples=60)
EXIF = Image.Exif()
EXIF.update({0x0112: 6, 0x010E: "a picture", 0x011A: 72.0})


@pytest.mark.parametrize("stem", [TRAIN_IMAGES, TRAIN_LABELS])
@any_bytes
@given(st.data())
def test_any_bytes_as_an_idx_file(scratch, stem, data) -> None:
    sound = idx_files()[stem]
    body = data.draw(damaged(sound) | damaged(sound).map(gzip.compress) | damaged(gzip.compress(sound)))
    read_or_refused(write(scratch / "idx", {**idx_files(), stem: body}))


SOUND_NPZ = [npz(npy(PIXELS), compression) for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]


@any_bytes
@given(st.sampled_from(SOUND_NPZ).flatmap(damaged) | damaged(npy(PIXELS)[:160]).map(npz))
def test_any_bytes_as_an_npz_file(scratch, body) -> None:
    read_or_refused(write(scratch, {"data.npz": body}) / "data.npz")


@any_bytes
@given(st.text("{}()[]'\"\\,:-10u|\n #", max_size=12), st.integers(0, 66), st.integers(0, 12))
def test_any_text_in_the_header_of_an_array(scratch, text, at, cut) -> None:
    """numpy parses it as Python."""
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 16, 20), }"
    body = npy_header(header[:at] + text + header[at + cut :]) + PIXELS.tobytes()
    read_or_refused(write(scratch, {"data.npz": npz(body)}) / "data.npz")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@any_bytes
@given(st.data())
def test_any_bytes_as_an_image(scratch, kind, data) -> None:
    body = data.draw(damaged(png(NOISE, kind, exif=EXIF)) | damaged(png(solid(0, size=(24, 16)), kind)))
    read_or_refused(write(scratch / kind, {"a/0.png": png(NOISE, exif=EXIF), "a/1.png": body, "a/2.png": body}))


def test_an_image_with_invalid_exif_is_read_or_refused(tmp_path) -> None:
    """Applying the orientation rewrites the EXIF data, and Pillow raises many kinds of errors for invalid data."""
    body = png(NOISE, "JPEG", exif=EXIF)
    at = body.index(b"Exif\0\0")
    for offset in range(at, at + 60):
        for value in (0, 5, 255):
            changed = body[:offset] + bytes([value]) + body[offset + 1 :]
            read_or_refused(write(tmp_path, {"a/0.jpg": changed, "a/1.jpg": changed}))
