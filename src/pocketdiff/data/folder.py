"""Data sets as folders of images: one sub-folder for each class."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pocketdiff.data.source import MAX_BYTES, Size, Source, Split, fit
from pocketdiff.errors import DataError

_MAX_PIXELS = 2**24  # of one image file
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_LITTER = {"Thumbs.db", "desktop.ini"}
RESIZE = "resize them with --size 32 or size=(32, 32)"


def read_image_folder(path: Path, size: Size | None = None) -> Source:
    """Reads PNG and JPEG images, one sub-folder for each class, classes in the order of their names.

    A folder with only ``train`` and ``test`` is read as these two splits. The EXIF orientation is applied, transparent
    pixels become white, and the data set is grey if no image has color. Hidden files are ignored. Without a ``size``
    (height, width), all images must already have one size.

    Raises:
        DataError: If a file is not an image or too large, a link points outside the folder, sizes differ, or a class is
            empty.
    """
    both = {child.name for child in _children(path, path)} == {"train", "test"}
    folders = [path / "train", path / "test"] if both else [path]
    names = [child.name for child in _children(folders[0], path)]
    splits = [_read_split(folder, path, names, size) for folder in folders]
    if all((images[..., :1] == images).all() for images, _ in splits):
        splits = [Split(images[..., :1], labels) for images, labels in splits]
    return Source(splits[0], splits[1] if both else None, names)


def read_loose_images(path: Path, classes: Sequence[str]) -> Split:
    """Reads a folder of PNG and JPEG images as RGB; with class indices if it has sub-folders for some of ``classes``.

    Raises:
        DataError: As `read_image_folder`, or if a sub-folder is not named after a class.
    """
    children = _children(path, path)
    if any(child.is_dir() for child in children):
        return _read_split(path, path, classes, None)
    return Split(_read_files(children, path, None), None)


def _read_split(folder: Path, root: Path, names: Sequence[str], size: Size | None) -> Split:
    """All images of a folder's sub-folders, as RGB."""
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
    return Split(_read_files(files, folder, size), np.array(labels, np.int64))


def _read_files(files: list[Path], folder: Path, size: Size | None) -> np.ndarray:
    """Images of one size, as RGB (n, h, w, 3)."""
    if not files:
        raise DataError(f"{folder}: holds no images; add PNG or JPEG files, in a data set one sub-folder per class")
    images: list[np.ndarray] = []
    for file in files:
        image = _read_image(file, size)
        if images and image.shape != images[0].shape:
            sizes = [f"{height} x {width}" for height, width, _ in (image.shape, images[0].shape)]
            raise DataError(f"{file}: is {sizes[0]} pixels and {files[0]} {sizes[1]}; {RESIZE}")
        if len(files) * image.nbytes > MAX_BYTES:
            raise DataError(f"{folder}: the images need more than {MAX_BYTES:,} bytes of memory; {RESIZE}")
        images.append(image)
    return np.stack(images)


def _children(folder: Path, root: Path) -> list[Path]:
    """A folder's visible entries, sorted by name; links may not point outside the root."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; make one sub-folder of images for each class")
    children = sorted(child for child in folder.iterdir() if child.name[0] != "." and child.name not in _LITTER)
    for child in children:
        if not child.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{child}: is a link to a place outside {root}; copy its target, or remove it")
    return children


def _read_image(file: Path, size: Size | None) -> np.ndarray:
    """One image as RGB bytes (h, w, 3)."""
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
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                rgb = upright.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors for damaged files.
        raise DataError(f"{file}: cannot be read as an image; replace or remove it") from error
    return np.asarray(rgb if size is None else fit(rgb, size))


def _png_depth(file: Path) -> int:
    """Bits per channel: byte 24 of a PNG file. Pillow silently reads 16-bit color as 8-bit."""
    with file.open("rb") as content:
        return content.read(25)[24]
