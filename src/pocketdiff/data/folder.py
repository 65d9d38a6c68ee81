"""Data sets as folders of images: one sub-folder for each class."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import ExifTags, Image, ImageOps

from pocketdiff.data.source import Size, Source, Split, common_size, fit, new_images
from pocketdiff.errors import DataError

_MAX_PIXELS = 2**24  # of one image file
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_LITTER = {"Thumbs.db", "desktop.ini"}
_DRAFT = 3
"""A JPEG file may be decoded at a fraction of its size that is at least this many times the wanted one."""


def read_image_folder(path: Path, size: Size | None = None) -> Source:
    """Reads PNG and JPEG images, one sub-folder for each class, classes in the order of their names.

    A folder with only ``train`` and ``test`` is read as these two splits. The EXIF orientation is applied, transparent
    pixels become white, and the data set is grey if no image has color. Hidden files are ignored. All headers are
    checked before an image is decoded. Without a ``size`` (height, width), `common_size` chooses one.

    Raises:
        DataError: If a file is not an image or too large, a link points outside the folder, a class is empty, or the
            images need too much memory.
    """
    both = {child.name for child in _children(path, path)} == {"train", "test"}
    folders = [path / "train", path / "test"] if both else [path]
    names = [child.name for child in _children(folders[0], path)]
    found = []
    for folder in folders:
        files, labels = _list(folder, path, names)
        found.append((folder, files, labels, _measure(files, folder)))
    size = size or common_size(np.concatenate([sizes for *_, sizes in found]), str(path))
    splits = [Split(_read_files(files, size, folder), labels) for folder, files, labels, _ in found]
    if all((image[..., :1] == image).all() for images, _ in splits for image in images):
        splits = [Split(images[..., :1], labels) for images, labels in splits]
    return Source(splits[0], splits[1] if both else None, names)


def read_loose_images(path: Path, classes: Sequence[str], size: Size) -> Split:
    """Reads a folder of PNG and JPEG images as RGB; with class indices if it has sub-folders for some of ``classes``.

    Raises:
        DataError: As `read_image_folder`, or if a sub-folder is not named after a class, or an image has another size.
    """
    children = _children(path, path)
    nested = any(child.is_dir() for child in children)
    files, labels = _list(path, path, classes) if nested else (children, None)
    for file, (height, width) in zip(files, _measure(files, path).tolist(), strict=True):
        if (height, width) != size:
            wanted = f"{size[0]} x {size[1]}"
            raise DataError(f"{file}: is {height} x {width} pixels, but the images of the data are {wanted}; resize it")
    return Split(_read_files(files, size, path), labels)


def _list(folder: Path, root: Path, names: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """The files in a folder's sub-folders, and their labels."""
    files: list[Path] = []
    labels: list[int] = []
    for child in _children(folder, root):
        if not child.is_dir():
            raise DataError(f"{child}: is a file between the folders of classes; move it into one of them, or out")
        inside = _children(child, root)
        if child.name not in names:
            raise DataError(
                f"{child}: is not a class of the training split ({', '.join(names[:20])}); rename or remove it"
            )
        if not inside:
            raise DataError(f"{child}: holds no images; add some, or remove the folder")
        files += inside
        labels += [names.index(child.name)] * len(inside)
    return files, np.array(labels, np.int64)


def _read_files(files: list[Path], size: Size, folder: Path) -> UInt8[np.ndarray, "n h w 3"]:
    """Images, scaled and cropped to this size, as RGB."""
    images = new_images((len(files), *size, 3), str(folder))
    for place, file in zip(images, files, strict=True):
        place[:] = _read_image(file, size)
    return images


def _children(folder: Path, root: Path) -> list[Path]:
    """A folder's visible entries, sorted by name; links may not point outside the root."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; make one sub-folder of images for each class")
    children = sorted(child for child in folder.iterdir() if child.name[0] != "." and child.name not in _LITTER)
    for child in children:
        if not child.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{child}: is a link to a place outside {root}; copy its target, or remove it")
    return children


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image whose header is read and checked; what its user does with it may fail only because of the file."""
    if file.suffix.lower() not in _SUFFIXES or not file.is_file():
        raise DataError(f"{file}: is not a PNG or JPEG file; convert it, or move it out of the folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The limit below is stricter than Pillow's.
            with Image.open(file, formats=["PNG", "JPEG"]) as image:
                if (pixels := image.width * image.height) > _MAX_PIXELS:
                    raise DataError(f"{file}: has {pixels:,} pixels, over {_MAX_PIXELS:,}; make it smaller")
                if image.mode.startswith(("I", "F")) or (image.format == "PNG" and _png_depth(file) > 8):
                    raise DataError(f"{file}: has more than 8 bits per channel; save it with 8")
                yield image
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors for damaged files.
        raise DataError(f"{file}: cannot be read as an image; replace or remove it") from error


def _measure(files: list[Path], folder: Path) -> Int[np.ndarray, "n 2"]:
    """Height and width of each upright image, from the headers."""
    if not files:
        raise DataError(f"{folder}: holds no images; add PNG or JPEG files, in a data set one sub-folder per class")
    sizes = []
    for file in files:
        with _opened(file) as image:
            # Where a PNG file's header has no EXIF data, Pillow would decode all of it in search of them.
            lies = image.format == "JPEG" or "exif" in image.info
            turned = lies and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            sizes.append(image.size if turned else image.size[::-1])
    return np.array(sizes)


def _read_image(file: Path, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """One image as RGB, scaled and cropped to this size."""
    with _opened(file) as image:
        image.draft(None, (_DRAFT * max(size),) * 2)
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return np.asarray(fit(upright.convert("RGB"), size))


def _png_depth(file: Path) -> int:
    """Bits per channel: byte 24 of a PNG file. Pillow silently reads 16-bit color as 8-bit."""
    with file.open("rb") as content:
        return content.read(25)[24]
