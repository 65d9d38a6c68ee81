"""Data sets as folders of images: one sub-folder for each class."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pocketdiff.data.idx import MAX_BYTES
from pocketdiff.data.source import Size, Source, Split, fit
from pocketdiff.errors import DataError

MAX_PIXELS = 2**24
"""Limit of the pixels of one image file."""
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_LITTER = {"Thumbs.db", "desktop.ini"}
RESIZE = "resize them with --size 32 or size=(32, 32)"


def is_image_folder(path: Path) -> bool:
    """Whether this is a folder with sub-folders."""
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def read_image_folder(path: Path, size: Size | None = None) -> Source:
    """Reads PNG and JPEG images, one sub-folder for each class, classes in the order of their names.

    A folder with only ``train`` and ``test`` is read as these two splits. The EXIF orientation is applied, transparent
    pixels become white, and the data set is grey if no image has color. Hidden files are ignored. Without a ``size``
    (height, width), all images must already have one size.

    Raises:
        DataError: If a file is not an image or too large, a link points outside the folder, sizes differ, or a class is
            empty.
    """
    children = _children(path, path)
    if {child.name for child in children} == {"train", "test"}:
        names = [folder.name for folder in _children(path / "train", path)]
        train, test = (_read_split(path / split, path, names, size) for split in ("train", "test"))
        if train.images.shape[1:3] != test.images.shape[1:3]:
            raise DataError(f"{path}: train and test images differ in size; {RESIZE}")
        grey = _is_grey(train.images) and _is_grey(test.images)
    else:
        names = [child.name for child in children]
        train, test = _read_split(path, path, names, size), None
        grey = _is_grey(train.images)
    if grey:
        train = train._replace(images=train.images[..., :1])
        test = test and test._replace(images=test.images[..., :1])
    return Source(train, test, tuple(names))


def read_loose_images(path: Path, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a folder of PNG and JPEG images as RGB; with class indices if it has sub-folders for some of ``classes``.

    Raises:
        DataError: As `read_image_folder`, or if a sub-folder is not named after a class.
    """
    children = _children(path, path)
    if not children:
        raise DataError(f"{path}: holds no images; give a folder of PNG or JPEG files")
    if any(child.is_dir() for child in children):
        split = _read_split(path, path, list(classes), None)
        return split.images, split.labels
    return _read_files(children, path, None), None


def _read_split(folder: Path, root: Path, names: list[str], size: Size | None) -> Split:
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
    if not files:
        raise DataError(f"{folder}: holds no classes; make one sub-folder of images for each class")
    return Split(_read_files(files, root, size), np.array(labels, np.int64))


def _read_files(files: list[Path], root: Path, size: Size | None) -> np.ndarray:
    """Images of one size, as RGB (n, h, w, 3)."""
    images: list[np.ndarray] = []
    total = 0
    for file in files:
        image = _read_image(file, size)
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{file}: is {image.shape[0]} x {image.shape[1]} pixels and {files[0]} {images[0].shape[0]} x "
                f"{images[0].shape[1]}; {RESIZE}"
            )
        total += image.nbytes
        if total > MAX_BYTES:
            raise DataError(f"{root}: the images need more than {MAX_BYTES:,} bytes of memory; {RESIZE}")
        images.append(image)
    return np.stack(images)


def _children(folder: Path, root: Path) -> list[Path]:
    """A folder's visible entries, sorted by name; links may not point outside the root."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; make one sub-folder of images for each class")
    children = sorted(
        child for child in folder.iterdir() if not child.name.startswith(".") and child.name not in _LITTER
    )
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
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{file}: has {image.width} x {image.height} pixels, over {MAX_PIXELS:,}; make it smaller"
                    )
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


def _is_grey(images: np.ndarray) -> bool:
    return bool((images[..., :1] == images).all())
