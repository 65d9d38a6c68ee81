"""Data sets: uint8 images in memory, with labels, in a train and a test split.

`load_data` takes the name of a built-in set, a folder of IDX files in MNIST's layout, a folder with a sub-folder of
PNG or JPEG images for each class, or an ``.npz`` file. Whatever is wrong with them is a `DataError`.

To add a built-in set, name its reader in ``DATASETS``.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import field_validator
from torch import Tensor

from pocketdiff.data.arrays import read_loose_npz, read_npz
from pocketdiff.data.folder import is_image_folder, read_image_folder, read_loose_images
from pocketdiff.data.idx import is_idx_folder, read_idx_folder, read_mnist
from pocketdiff.data.source import Size, Source, Split
from pocketdiff.errors import DataError
from pocketdiff.frozen import Frozen
from pocketdiff.rng import Stream, permutation

__all__ = [
    "DATASETS", "DataError", "DataInfo", "Dataset", "Images", "load_data", "load_images", "to_data_units", "to_uint8",
]  # fmt: skip

MIN_SIDE, MAX_SIDE = 16, 64
"""The image sizes this package is made for, in pixels."""

DATASETS: dict[str, Callable[[], Source]] = {"mnist": read_mnist}


def plain_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of classes, if they can be names of folders; a model file, which holds them, may come from a stranger.

    Raises:
        ValueError: If one is empty, leads elsewhere or cannot be printed.
    """
    for name in classes:
        if not name.isprintable() or name in {"", ".", ".."} or "/" in name or "\\" in name:
            raise ValueError(f"{name!r} cannot be the name of a class")
    return classes


class DataInfo(Frozen):
    """What a model must know of the data it learned from; kept in its file."""

    channels: int
    """1 for grey, 3 for RGB."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    classes: tuple[str, ...]
    """A name for each class index."""
    ink: bool
    """Whether the images are light strokes on black, which pictures show as dark ink on white."""
    train_images: int | None
    """Size of the training split; None for a model that came without its data."""
    test_images: int | None
    """Size of the test split; None likewise."""
    sha256: str | None
    """Of every pixel and label: two runs with the same hash saw the same data; None likewise."""

    _plain_names = field_validator("classes")(plain_names)


@dataclass(frozen=True)
class Images:
    """A split: every image and its class index, on one device."""

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
        """Real images to set beside generated ones: for each label in turn its first, second, ... image."""
        seen: dict[int, int] = {}
        rows = []
        for label in labels:
            of_class = (self.labels == label).nonzero()[:, 0]
            nth = seen[label] = seen.get(label, -1) + 1
            rows.append(of_class[nth % len(of_class)])
        return self.pixels[torch.stack(rows)]


@dataclass(frozen=True)
class Dataset:
    """A data set in its two splits."""

    train: Images
    test: Images
    info: DataInfo


def to_data_units(pixels: UInt8[Tensor, "*shape"], black: float = -1.0) -> Float[Tensor, "*shape"]:
    """Bytes 0..255 to data units ``black``..1."""
    return pixels.float() / (255 / (1 - black)) + black


def to_uint8(x: Float[Tensor, "*shape"], black: float = -1.0) -> UInt8[Tensor, "*shape"]:
    """Data units to bytes, rounded; what lies outside [``black``, 1] is clipped."""
    return ((x.clamp(black, 1) - black) * (255 / (1 - black))).round().to(torch.uint8)


def load_data(source: str = "mnist", size: Size | None = None, seed: int = 0) -> Dataset:
    """Reads a data set and checks it.

    Args:
        source: A key of ``DATASETS`` or a path: a folder of IDX files in MNIST's layout; a folder with one sub-folder
            of PNG or JPEG images for each class, or with ``train`` and ``test`` folders of such; or an ``.npz`` file
            with ``images`` (n, h, w) or (n, h, w, c) and ``labels`` (n,), perhaps ``test_images`` and ``test_labels``.
        size: (height, width) to bring every image to: scaled until it covers that size, then cut to it about the
            centre. Without it all images must have one size already.
        seed: Decides which images are held out where the source has no test split: a tenth of each class, at least one.

    Raises:
        DataError: If anything is wrong: one sentence with the file, the fault and the remedy.
    """
    try:
        raw = _read(source, size)
    except (OSError, RuntimeError) as error:  # Links in a circle and an unknown ~user are RuntimeErrors.
        raise DataError(f"{source}: cannot be read ({error}); mend the path or its permissions") from error
    names = {label: index for index, label in enumerate(sorted(set(raw.train.labels.tolist())))}
    classes = tuple(raw.classes[label] if raw.classes else str(label) for label in names)
    train = _checked(raw.train, names, source)
    if raw.test is not None:
        test = _checked(raw.test, names, source)
        if test.pixels.shape[1:] != train.pixels.shape[1:]:
            raise DataError(f"{source}: the test images' shape differs from the training images'; make them equal")
    if (counts := np.bincount(train.labels)).min() < 2:
        name = classes[int(counts.argmin())]
        raise DataError(f"{source}: class {name!r} has one image, and each needs two or more; add some or remove it")
    if raw.test is None:
        train, test = _split(train, seed)
    channels, height, width = train.pixels.shape[1:]
    try:
        plain_names(classes)
    except ValueError as error:
        raise DataError(f"{source}: {error}; name it with letters and digits") from error
    info = DataInfo(
        channels=channels,
        height=height,
        width=width,
        classes=classes,
        ink=channels == 1 and float(train.pixels.float().mean()) < 127.5,
        train_images=len(train),
        test_images=len(test),
        sha256=_sha256(train, test),
    )
    return Dataset(train, test, info)


def load_images(source: str, info: DataInfo) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"] | None]:
    """Reads images that are no data set: those of a model, say, that are to be judged beside the data's own.

    Args:
        source: An ``.npz`` file with ``images`` and perhaps ``labels``, class indices; or a folder of PNG or JPEG
            images, perhaps in sub-folders that are named after the classes.
        info: Of the data they belong to, which decides between grey and RGB.

    Returns:
        The images, and the index of each one's class where that is known.

    Raises:
        DataError: If they cannot be read: one sentence with the file, the fault and the remedy.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            images, labels = read_loose_images(path, info.classes)
        elif path.is_file() and path.suffix == ".npz":
            images, labels = read_loose_npz(path)
        else:
            raise DataError(f"{source}: holds no images; give an .npz file or a folder of PNG or JPEG files")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{source}: cannot be read ({error}); mend the path or its permissions") from error
    if info.channels == 1 and (images[..., :1] == images).all():
        images = images[..., :1]
    elif info.channels == 3 and images.shape[3] == 1:
        images = images.repeat(3, axis=3)
    pixels = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    return pixels, None if labels is None else torch.tensor(labels)


def _read(source: str, size: Size | None) -> Source:
    if source in DATASETS:
        raw = DATASETS[source]()
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(f"{source}: no such file or folder, nor the name of a data set ({', '.join(DATASETS)})")
        if is_idx_folder(path):
            raw = read_idx_folder(path)
        elif is_image_folder(path):
            return read_image_folder(path, size)
        elif path.is_file() and path.suffix == ".npz":
            raw = read_npz(path)
        else:
            raise DataError(
                f"{source}: holds no data set; give a folder of IDX files in MNIST's layout, a folder with one "
                "sub-folder of PNG or JPEG images for each class, or an .npz file"
            )
    return raw.resized(size)


def _checked(split: Split, names: dict[int, int], source: str) -> Images:
    n, height, width, _ = split.images.shape
    if n != len(split.labels):
        raise DataError(f"{source}: {n:,} images but {len(split.labels):,} labels; they must be equally many")
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise DataError(
            f"{source}: the images are {height} x {width} pixels, and sides of {MIN_SIDE} to {MAX_SIDE} are supported; "
            "--size 32 brings them to 32 x 32"
        )
    if strange := set(split.labels.tolist()) - names.keys():
        raise DataError(f"{source}: label {min(strange)} is in the test split but not in the training split; remove it")
    labels = torch.tensor([names[label] for label in split.labels.tolist()])
    return Images(torch.tensor(split.images).permute(0, 3, 1, 2).contiguous(), labels)


def _split(images: Images, seed: int) -> tuple[Images, Images]:
    """Holds out a tenth of each class, at least one image, by the seed."""
    held = torch.zeros(len(images), dtype=torch.bool)
    for label in set(images.labels.tolist()):
        of_class = (images.labels == label).nonzero()[:, 0]
        order = permutation(seed, Stream.SPLIT, label, len(of_class))
        held[of_class[order[: max(1, len(of_class) // 10)]]] = True
    return (
        Images(images.pixels[~held], images.labels[~held]),
        Images(images.pixels[held], images.labels[held]),
    )


def _sha256(*splits: Images) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(str(tuple(split.pixels.shape)).encode())
        digest.update(split.pixels.numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()
