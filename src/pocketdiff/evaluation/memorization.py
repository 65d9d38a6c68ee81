"""Nearest training images: does a model generate, or does it copy its training data?

The distance between two images is the root mean square difference of their pixels, in grey levels (0 to 255), minimized
over circular shifts by up to two pixels in each direction. For strokes on an empty border a circular shift is a plain
shift.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

_SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
_CANDIDATES = 200
_MAGNITUDES = 64
_MIN_TYPICAL = 10
"""The fewest test images for a class's own typical distance; a class with fewer uses that of all test images."""
QUANTILE = 0.01
"""The share of test images that count as near a training image, which sets the threshold."""
_FEW, _SOME, _MANY = 20, 100, 2000
"""Batch sizes: comparing pixels with candidates, comparing bounds with all training images, and computing bounds."""


class Nearest(NamedTuple):
    """For each query image, its nearest image in a set."""

    distance: Float[Tensor, " m"]
    which: Int[Tensor, " m"]
    """Its index in the set."""

    @classmethod
    def joined(cls, parts: list["Nearest"]) -> "Nearest":
        """The concatenation of several."""
        return cls(torch.cat([part.distance for part in parts]), torch.cat([part.which for part in parts]))

    def at(self, order: Int[Tensor, " m"]) -> "Nearest":
        """The entries at these indices."""
        return Nearest(self.distance[order], self.which[order])


class NearestImages:
    """Finds the nearest image of a set.

    A circular shift does not change the magnitudes of an image's Fourier transform. So the distance between magnitudes
    is a lower bound of the distance between images at any shift (Parseval). The 200 images with the smallest bounds are
    compared pixel by pixel. A copy, shifted or not, has bound 0, so it is found unless more than 200 training images
    are shifts of each other. For 99.5% of MNIST's test digits the true nearest image is among the 200.

    The transforms of the set are computed when a query first needs them.
    """

    def __init__(self, images: UInt8[Tensor, "n c h w"]) -> None:
        self.images = images

    @cached_property
    def energy(self) -> Float[Tensor, " n"]:
        """The sum of each image's squared pixels."""
        return torch.cat([chunk.flatten(1).float().square().sum(1) for chunk in self.images.split(_MANY)])

    @cached_property
    def strongest(self) -> Int[Tensor, " s"]:
        """Which magnitudes vary most."""
        return _magnitudes(self.images[:_MANY]).var(0, correction=0).argsort(descending=True)[:_MAGNITUDES]

    @cached_property
    def bounds(self) -> Float[Tensor, "n s"]:
        """What the lower bounds of distances are computed from."""
        return torch.cat([self._bound(chunk) for chunk in self.images.split(_MANY)])

    @cached_property
    def bound_energy(self) -> Float[Tensor, " n"]:
        """The sum of their squares."""
        return self.bounds.square().sum(1)

    def of(self, queries: UInt8[Tensor, "m c h w"]) -> Iterator[Nearest]:
        """Yields the nearest image of each query, batch by batch."""
        for chunk in queries.split(_SOME):
            apart = torch.addmm(self.bound_energy[None], self._bound(chunk), self.bounds.T, alpha=-2)
            found = apart.topk(min(_CANDIDATES, len(self.images)), largest=False, sorted=False).indices
            parts = zip(chunk.split(_FEW), found.split(_FEW), strict=True)
            yield Nearest.joined([self._among(few, candidates) for few, candidates in parts])

    def _bound(self, images: UInt8[Tensor, "m c h w"]) -> Float[Tensor, "m s"]:
        """The strongest magnitudes and the norm of all others: their distance is a lower bound of the images'."""
        magnitudes = _magnitudes(images)
        strongest = magnitudes[:, self.strongest]
        rest = magnitudes.index_fill(1, self.strongest, 0).norm(dim=1, keepdim=True)
        return torch.cat([strongest, rest], 1)

    def _among(self, queries: UInt8[Tensor, "m c h w"], candidates: Int[Tensor, "m k"]) -> Nearest:
        """The nearest of each query's candidates over all shifts."""
        shifted = torch.stack([queries.roll(shift, (2, 3)) for shift in _SHIFTS], 1).flatten(2).float()
        products = torch.bmm(shifted, self.images[candidates].flatten(2).float().mT).amax(1)
        energy = shifted[:, 0].square().sum(1, keepdim=True)
        best = (energy + self.energy[candidates] - 2 * products).argmin(1, keepdim=True)
        which = candidates.gather(1, best)[:, 0]
        # Those sums are too large for float32 to hold exactly; differences give a copy the distance 0.
        apart = (shifted - self.images[which].flatten(1).float()[:, None]).square().mean(2).amin(1)
        return Nearest(apart.sqrt(), which)


def nearest_features(queries: Float[Tensor, "m d"], features: Float[Tensor, "n d"]) -> Nearest:
    """The nearest row of ``features`` for each query, by Euclidean distance."""
    energy = features.square().sum(1)
    parts = []
    for rows in queries.split(_MANY):
        which = torch.addmm(energy[None], rows, features.T, alpha=-2).argmin(1)
        parts.append(Nearest((rows - features[which]).norm(dim=1), which))
    return Nearest.joined(parts)


class Nearness(NamedTuple):
    """A scale for distances, and a threshold for "near", both from the test split, which no model has seen.

    A thin stroke is near many others and a wide one near few. So each distance is divided by the typical distance of
    the test images whose nearest training image has the same class.
    """

    test: Nearest
    """The nearest training image of each test image."""
    labels: Int[Tensor, " n"]
    """Labels of the training images."""
    typical: Float[Tensor, " k"]
    """Median distance of the test images whose nearest training image has this class; over all classes if these are
    few."""
    threshold: float
    """The 1% quantile of the test images' relative distances."""

    @classmethod
    def of(cls, test: Nearest, labels: Int[Tensor, " n"]) -> "Nearness":
        """The scale and the threshold that these test images give."""
        classes = labels[test.which]
        parts = [test.distance[classes == label] for label in range(int(labels.max()) + 1)]
        typical = torch.stack([(part if len(part) >= _MIN_TYPICAL else test.distance).median() for part in parts])
        typical = typical.clamp(min=1e-6)  # Where most test images are copies, a copy's relative distance is still 0.
        return cls(test, labels, typical, float((test.distance / typical[classes]).quantile(QUANTILE)))

    def relative(self, nearest: Nearest) -> Float[Tensor, " m"]:
        """Distances divided by the typical one: 1 is the median of the test images."""
        return nearest.distance / self.typical[self.labels[nearest.which]]

    def near(self, nearest: Nearest) -> Bool[Tensor, " m"]:
        """Whether each relative distance is at most the threshold, as it is for 1% of the test images."""
        return self.relative(nearest) <= self.threshold


def _magnitudes(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n s"]:
    """Magnitudes of each image's Fourier transform, weighted so that their norm is that of the pixels."""
    width = images.shape[3]
    spectrum = torch.fft.rfft2(images.float(), norm="ortho").abs()
    weight = torch.full((spectrum.shape[3],), 2.0).sqrt()  # The other half of the spectrum is its mirror image,
    weight[0] = 1.0
    if width % 2 == 0:
        weight[-1] = 1.0  # except for the columns that mirror themselves.
    return (spectrum * weight).flatten(1)
