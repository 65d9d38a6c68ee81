"""Data sets: uint8 images in memory, with labels, in a train and a test split.

`load_data` reads a built-in data set by name, a folder of IDX files in MNIST's layout, a folder with a sub-folder of
PNG or JPEG images for each class, or an ``.npz`` file. `Dataset.from_arrays` takes arrays. Both check the data in the
same way and raise `DataError`.

To add a built-in data set, add its reader to ``DATASETS``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from pocketdiff.data.arrays import read_npz
from pocketdiff.data.augment import AUGMENTATIONS, Augmentation
from pocketdiff.data.folder import read_image_folder, read_loose_images
from pocketdiff.data.idx import is_idx_folder, read_idx_folder, read_mnist
from pocketdiff.data.source import (
    MAX_SIDE,
    MIN_SIDE,
    Reader,
    Size,
    Source,
    Split,
    check_images,
    check_labels,
    common_size,
    resize,
)
from pocketdiff.errors import DataError
from pocketdiff.frozen import Frozen, Sha256
from pocketdiff.registry import Registry
from pocketdiff.rng import Stream, permutation

__all__ = [
    "AUGMENTATIONS", "DATASETS", "Augmentation", "DataError", "DataInfo", "Dataset", "Images", "Reader", "Side",
    "Source", "Split", "load_data", "load_images", "to_data_units", "to_uint8",
]  # fmt: skip

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
Array = np.ndarray | Tensor | Sequence[Any]

DATASETS: Registry[Reader] = Registry("data set", "pocketdiff.data", {"mnist": read_mnist})


_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
"""Names of Windows' devices, with any ending."""


def plain_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of classes, if they can be names of folders: model files, which may be untrusted, contain them.

    Raises:
        ValueError: If a name is empty, is a path, cannot be printed, means something else on Windows, or occurs twice.
    """
    for name in classes:
        if not name.isprintable() or name in {"", ".", ".."} or "/" in name or "\\" in name:
            raise ValueError(f"{name!r} cannot be the name of a class")
        if name.partition(".")[0].rstrip().upper() in _RESERVED or set(name) & set('<>:"|?*') or name[-1] in ". ":
            raise ValueError(f"{name!r} cannot be the name of a class, because Windows has no such folder")
    if len(set(classes)) < len(classes):
        raise ValueError("two classes have the same name")
    return classes


_Images = Annotated[int, Field(ge=1, lt=2**63)]


class DataInfo(Frozen):
    """What a model needs to know about its data; stored in its file."""

    channels: Literal[1, 3]
    """1 for grey, 3 for RGB."""
    height: Side
    width: Side
    """Both in pixels."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    """A name for each class index."""
    ink: bool
    """Whether the images are light strokes on black, which pictures show inverted, as dark ink on white."""
    train_images: _Images | None
    """Size of the training split; None if it is not known, as for an imported model."""
    test_images: _Images | None
    """Size of the test split; None if it is not known."""
    sha256: Sha256 | None
    """Hash of all pixels and labels: equal hashes mean equal data; None if it is not known."""

    _plain_names = field_validator("classes")(plain_names)

    @model_validator(mode="after")
    def _all_known(self) -> "DataInfo":
        if len({fact is None for fact in (self.train_images, self.test_images, self.sha256)}) > 1:
            raise ValueError("train_images, test_images and sha256 must be known together")
        return self


@dataclass(frozen=True)
class Images:
    """A split: all images and their class indices, on one device."""

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on another device."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def batch(
        self, indices: Int[Tensor, " b"], black: float = -1.0
    ) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
        """The images at ``indices`` in data units, and their labels."""
        indices = indices.to(self.labels.device)
        return to_data_units(self.pixels[indices], black), self.labels[indices]

    def first_of_each(self, labels: list[int]) -> UInt8[Tensor, "m c h w"]:
        """Real images to compare with generated ones: for each label in turn its first, second, ... image."""
        seen: dict[int, int] = {}
        rows = []
        for label in labels:
            of_class = (self.labels == label).nonzero()[:, 0]
            nth = seen[label] = seen.get(label, -1) + 1
            rows.append(of_class[nth % len(of_class)])
        return self.pixels[torch.stack(rows)]


@dataclass(frozen=True)
class Dataset:
    """A data set with a train and a test split."""

    train: Images
    test: Images
    info: DataInfo
    source: str = "arrays"
    """The name or path it was read from; "arrays" if it was not read."""

    @staticmethod
    def from_arrays(
        images: Array, labels: Array, test_images: Array | None = None, test_labels: Array | None = None, *,
        classes: Sequence[str] | None = None, size: Size | None = None, seed: int = 0,
    ) -> "Dataset":  # fmt: skip
        """A data set from numpy arrays or tensors, with the same checks as files. The data are copied.

        Args:
            images: uint8, (n, h, w), (n, h, w, c) or (n, c, h, w), with c = 1 (grey) or 3 (RGB).
            labels: Integers (n,).
            test_images: Images of the test split; without them it is held out from ``images``, as in `load_data`.
            test_labels: Labels of the test split.
            classes: Names of the labels 0, 1, 2, ...; by default the names are the labels themselves.
            size: As in `load_data`.
            seed: As in `load_data`.

        Raises:
            DataError: If anything is wrong: one sentence that names the argument.
        """
        test = None if test_images is None and test_labels is None else Split(test_images, test_labels)
        return _dataset(Source(Split(images, labels), test, classes), "arrays", size, seed)


def to_data_units(pixels: UInt8[Tensor, "*shape"], black: float = -1.0) -> Float[Tensor, "*shape"]:
    """Bytes 0..255 to data units ``black``..1."""
    return pixels.float() / (255 / (1 - black)) + black


def to_uint8(x: Float[Tensor, "*shape"], black: float = -1.0) -> UInt8[Tensor, "*shape"]:
    """Data units to bytes, rounded; values outside [``black``, 1] are clipped."""
    return ((x.clamp(black, 1) - black) * (255 / (1 - black))).round().to(torch.uint8)


def load_data(source: str = "mnist", size: Size | None = None, seed: int = 0) -> Dataset:
    """Reads a data set and checks it.

    Args:
        source: A key of ``DATASETS`` or a path: a folder of IDX files in MNIST's layout; a folder with one sub-folder
            of PNG or JPEG images for each class, or with ``train`` and ``test`` folders of this kind; or an ``.npz``
            file with the arrays of `Dataset.from_arrays`.
        size: (height, width) for all images: they are scaled until they cover it, then cropped at the center. None: the
            size that all images have if it is 16 to 64 pixels a side; otherwise one is chosen from the images' own
            sizes (`common_size`), and a line of the log says which.
        seed: Decides which images are held out if the source has no test split: a tenth of each class, at least one.

    Raises:
        DataError: If anything is wrong: one sentence with the file, the fault and the remedy.
    """
    try:
        path = Path(source).expanduser()
        if source in DATASETS.names():
            raw = DATASETS.find(source)()
        elif not path.exists():
            raise DataError(f"{source}: no such file or folder, and no data set ({', '.join(DATASETS.names())})")
        elif is_idx_folder(path):
            raw = read_idx_folder(path)
        elif path.is_dir() and any(child.is_dir() for child in path.iterdir()):
            raw = read_image_folder(path, size)
        elif path.is_file() and path.suffix == ".npz":
            raw = read_npz(path)
        else:
            raise DataError(
                f"{source}: holds no data set; give a folder of IDX files in MNIST's layout, a folder with one "
                "sub-folder of PNG or JPEG images for each class, or an .npz file"
            )
    except (OSError, RuntimeError) as error:  # Circular links and an unknown ~user are RuntimeErrors.
        raise DataError(f"{source}: cannot be read ({error}); correct the path or its permissions") from error
    return _dataset(raw, source, size, seed)


def load_images(source: str, info: DataInfo) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"] | None]:
    """Reads images that are not a data set, such as generated ones that are scored against the data.

    Args:
        source: An ``.npz`` file with ``images`` and optionally ``labels``, class indices; or a folder of PNG or JPEG
            images of the data's size, optionally in sub-folders with the names of classes.
        info: The data they are compared with, which decides between grey and RGB, and the class indices.

    Raises:
        DataError: If they cannot be read: one sentence with the file, the fault and the remedy.
    """
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            split = read_loose_images(path, info.classes, (info.height, info.width))
        elif path.is_file() and path.suffix == ".npz":
            split = read_npz(path).train
        else:
            raise DataError(f"{source}: holds no images; give an .npz file or a folder of PNG or JPEG files")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{source}: cannot be read ({error}); correct the path or its permissions") from error
    images = check_images(split.images, f"{path}: images")
    labels = None if split.labels is None else check_labels(split.labels, f"{path}: labels", len(images))
    if info.channels == 1 and (images[..., :1] == images).all():
        images = images[..., :1]
    elif info.channels == 3 and images.shape[3] == 1:
        images = images.repeat(3, axis=3)
    return _pixels(images), None if labels is None else torch.tensor(labels)


def _dataset(raw: Source, source: str, size: Size | None, seed: int) -> Dataset:
    """Checks what was read and builds the data set; ``source`` begins each message."""
    starts = (f"{source}: ", f"{source}: test_")
    checked = [_checked(split, start) for split, start in zip(raw[:2], starts, strict=True) if split is not None]
    if size is None:
        size = common_size(np.concatenate([np.full((len(x), 2), x.shape[1:3]) for x, _ in checked]), source)
    elif not MIN_SIDE <= min(size) <= max(size) <= MAX_SIDE:
        raise DataError(f"{source}: size is {size[0]} x {size[1]} pixels; use {MIN_SIDE} to {MAX_SIDE} a side")
    images, values = zip(*((_pixels(resize(each, size, source)), values) for each, values in checked), strict=True)
    labels = sorted(set(values[0])) if raw.classes is None else range(len(raw.classes))
    try:
        classes = plain_names(tuple(str(name) for name in (labels if raw.classes is None else raw.classes)))
    except ValueError as error:
        raise DataError(f"{source}: {error}; rename the class") from error
    fault = f"is not one of the {len(labels)} classes; give it a name"
    train = _images(images[0], values[0], labels, source, fault)
    if (counts := train.labels.bincount(minlength=len(classes))).min() < 2:
        few = classes[int(counts.argmin())]
        raise DataError(f"{source}: class {few!r} has fewer than two training images; add some or remove the class")
    if raw.test is None:
        train, test = _split(train, seed)
    else:
        fault = "is in the test split but not in the training split; remove it"
        test = _images(images[1], values[1], labels, source, fault)
    channels, height, width = train.pixels.shape[1:]
    if test.pixels.shape[1:] != train.pixels.shape[1:]:
        raise DataError(f"{source}: train and test images differ in color; convert them")
    ink = channels == 1 and float(train.pixels.float().mean()) < 127.5
    info = DataInfo(
        channels=channels, height=height, width=width, classes=classes, ink=ink, train_images=len(train),
        test_images=len(test), sha256=_sha256(train, test),
    )  # fmt: skip
    return Dataset(train, test, info, source)


def _checked(split: Split, start: str) -> tuple[UInt8[np.ndarray, "n h w c"], list[int]]:
    """A split's images and labels; ``start`` begins each message."""
    images = check_images(split.images, f"{start}images")
    return images, check_labels(split.labels, f"{start}labels", len(images)).tolist()


def _images(pixels: Tensor, values: list[int], labels: Sequence[int], source: str, fault: str) -> Images:
    """A split with class indices; ``fault`` says what is wrong with a value that is not one of ``labels``."""
    index = {label: number for number, label in enumerate(labels)}
    if unknown := set(values) - index.keys():
        raise DataError(f"{source}: label {min(unknown)} {fault}")
    return Images(pixels, torch.tensor([index[value] for value in values]))


def _pixels(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[Tensor, "n c h w"]:
    return torch.tensor(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()


def _split(images: Images, seed: int) -> tuple[Images, Images]:
    """A stratified split: holds out a tenth of each class, at least one image."""
    held = torch.zeros(len(images), dtype=torch.bool)
    for label in set(images.labels.tolist()):
        of_class = (images.labels == label).nonzero()[:, 0]
        order = permutation(seed, Stream.SPLIT, label, len(of_class))
        held[of_class[order[: max(1, len(of_class) // 10)]]] = True
    return Images(images.pixels[~held], images.labels[~held]), Images(images.pixels[held], images.labels[held])


def _sha256(*splits: Images) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(str(tuple(split.pixels.shape)).encode())
        digest.update(split.pixels.numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()
