"""Images to score: drawn by a model, or of any other origin."""

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from pocketdiff import pictures, rng
from pocketdiff.data import DataInfo, Dataset, load_data
from pocketdiff.errors import DataError, EvaluationError
from pocketdiff.evaluation.classifiers import MIN_IMAGES
from pocketdiff.evaluation.records import Drawing, printable
from pocketdiff.evaluation.reference import Choice, Reference, choose, gathered
from pocketdiff.model import ImageModel
from pocketdiff.progress import Progress, silent
from pocketdiff.records import hardware

log = logging.getLogger(__name__)
MAX_IMAGES = 1_000_000
"""The most images of a score: all of them are in memory."""
_MUST_MATCH = {"channels", "height", "width", "classes"}


@dataclass(frozen=True, eq=False)
class Sample:
    """Images to score, and the class that each should show, if it is known."""

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def at(self, indices: Int[Tensor, " m"]) -> "Sample":
        """The images at these indices."""
        return Sample(self.pixels[indices], None if self.labels is None else self.labels[indices])

    def canonical_order(self) -> Int[Tensor, " n"]:
        """Indices that sort the images by label and content, so that their given order does not matter."""
        n = len(self)
        labels = np.zeros(n, np.int64) if self.labels is None else self.labels.numpy()
        columns = [labels.astype(">i8").view(np.uint8).reshape(n, 8), self.pixels.flatten(1).numpy()]
        rows = np.ascontiguousarray(np.hstack(columns))
        return torch.from_numpy(rows.view(f"V{rows.shape[1]}")[:, 0].argsort(kind="stable"))

    def some(self, n: int, seed: int) -> "Sample":
        """At most n of the images, chosen by the seed, independent of their order."""
        if len(self) <= n:
            return self
        return self.at(self.canonical_order()[choose(len(self), n, Choice.GIVEN, seed)].sort().values)

    @classmethod
    def of(
        cls, target: "ImageModel | Sample", reference: Reference, n: int, seed: int, progress: Progress = silent
    ) -> "tuple[Sample, Drawing | None]":
        """At most n images of a sample, or n new ones of a model with the facts of their drawing."""
        if isinstance(target, Sample):
            return target.some(n, seed), None
        began = time.perf_counter()
        sample = draw(target, reference, n, seed, progress)
        seconds = time.perf_counter() - began
        if fault := pictures.health(sample.pixels):
            log.warning("%s", fault)
        facts, machine = target.sampling_facts(), hardware(target.device)
        return sample, Drawing(how=printable(target.how()), sampling=facts, seconds=seconds, hardware=machine)


def check_request(
    target: ImageModel | Sample, data: Dataset, n: int, seed: int, name: str = "", cas: bool = False,
    augment: bool = False,
) -> None:  # fmt: skip
    """Raises EvaluationError, before any work, if n or the seed is out of range, the images cannot be scored, the model
    was trained on other data, or a classifier cannot learn from the images because they have no labels.
    """
    if n < MIN_IMAGES:
        raise EvaluationError(f"n = {n}: a score needs {MIN_IMAGES} images or more")
    if n > MAX_IMAGES:
        raise EvaluationError(f"n = {n}: a score takes at most {MAX_IMAGES:,} images")
    if not 0 <= seed < 2**31:
        raise EvaluationError(f"seed = {seed}: must be from 0 to 2^31 - 1")
    if isinstance(target, Sample):
        check_sample(target, data.info)
    else:
        mine, theirs = (info.model_dump(include=_MUST_MATCH) for info in (target.info, data.info))
        if mine != theirs or target.info.sha256 not in {None, data.info.sha256}:
            remedy = "use its own (on the command line: --data, --size and --split-seed)"
            raise EvaluationError(f"{name or 'the model'}: was not trained on these data; {remedy}")
    if (cas or augment) and (target.labels is None if isinstance(target, Sample) else not target.conditional):
        flag = "cas" if cas else "augment"
        raise EvaluationError(f"{flag}: {name or 'the target'} has no labels for a classifier to learn from")


def check_sample(sample: Sample, info: DataInfo) -> None:
    """Raises EvaluationError if there are fewer than `MIN_IMAGES` images, all are equal, their shape is not that of the
    data, or a label is not a class index.
    """
    shape, wanted, k = tuple(sample.pixels.shape[1:]), (info.channels, info.height, info.width), len(info.classes)
    if shape != wanted:
        raise EvaluationError(f"the images are {_shape(shape)}, but those of the data {_shape(wanted)}; resize them")
    if len(sample) < MIN_IMAGES:
        raise EvaluationError(f"{len(sample):,} images are too few: a score needs {MIN_IMAGES} or more")
    if bool((sample.pixels == sample.pixels[0]).all()):
        raise EvaluationError(f"the {len(sample):,} images are all equal; a constant set has no score")
    low, high = (0, 0) if sample.labels is None else map(int, sample.labels.aminmax())
    if low < 0 or high >= k:
        raise EvaluationError(f"the labels are {low} to {high}, but the classes 0 to {k - 1}; use class indices")


def own_data(model: ImageModel) -> Dataset:
    """The data set that a model's config names, in the model's own size. Raises DataError if it cannot be read."""
    try:
        return load_data(model.config.data, (model.info.height, model.info.width), model.config.seed)
    except DataError as error:
        raise DataError(f"{error}; the model was trained on it: say where it is now (--data)") from error


def draw(model: ImageModel, reference: Reference, n: int, seed: int, progress: Progress = silent) -> Sample:
    """Draws n images with the class frequencies of the training split; without labels if the model knows none.

    Image i has the seed ``seed * 2^32 + i``, so two seeds below 2^31 share no noise.
    """
    labels = labels_like(reference.data.train.labels, n) if model.conditional else [model.null] * n
    chunks = model.chunks(labels, range(seed << 32, (seed << 32) + n))
    pixels = torch.cat(gathered(chunks, "drawing", n, progress))
    return Sample(pixels, torch.tensor(labels) if model.conditional else None)


def labels_like(labels: Int[Tensor, " t"], n: int) -> list[int]:
    """Sorted labels for n images, with the class frequencies of ``labels``."""
    return labels.sort().values[((torch.arange(n) + 0.5) * len(labels) / n).long()].tolist()


def control_samples(reference: Reference, n: int, seed: int = 0) -> dict[str, Sample]:
    """Images that must score worse than real ones, made from n test images (all if there are fewer).

    Noise: every pixel drawn independently. Blurred: a Gaussian blur of one pixel. Shuffled labels: unchanged images
    with permuted labels, which only the accuracy and the distance within classes can detect.
    """
    part, drawn = reference.test_part(n), rng.generator(seed, rng.Stream.CONTROL)
    pixels, labels = reference.data.test.pixels[part], reference.data.test.labels[part]
    noise = torch.from_numpy(drawn.integers(0, 256, tuple(pixels.shape), dtype=np.uint8))
    shuffled = Sample(pixels, labels[torch.from_numpy(drawn.permutation(len(labels)))])
    return {"noise": Sample(noise, labels), "blurred": Sample(_blurred(pixels), labels), "shuffled_labels": shuffled}


def _blurred(pixels: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    taps = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    flat = F.pad(pixels.flatten(0, 1)[:, None].float(), (3, 3, 3, 3), mode="replicate")
    return F.conv2d(flat, kernel).round().to(torch.uint8).reshape(pixels.shape)


def _shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height} x {width} pixels {'in grey' if channels == 1 else f'with {channels} channels'}"
