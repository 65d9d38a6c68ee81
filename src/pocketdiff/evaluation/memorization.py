"""The nearest training image of an image: whether a model draws, or remembers.

Distances are root mean square differences of pixels, of 255 grey levels, at the best of all shifts by up to two pixels
each way; what is shifted out on one side comes in on the other, which for strokes on an empty border changes nothing.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

_SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
_CANDIDATES = 200
_MAGNITUDES = 64
_USUAL = 10
"""How many test images a class's usual distance is made of at least."""
QUANTILE = 0.01
"""The share of the test split that counts as near to the training split."""
_FEW, _SOME, _MANY = 20, 100, 2000
"""Images at once where each meets its candidates, where each meets all, and where each is alone."""


class Nearest(NamedTuple):
    """The nearest of a set of images, for each of some others."""

    distance: Float[Tensor, " m"]
    which: Int[Tensor, " m"]

    @classmethod
    def joined(cls, parts: list["Nearest"]) -> "Nearest":
        """Many as one."""
        return cls(torch.cat([part.distance for part in parts]), torch.cat([part.which for part in parts]))

    def at(self, order: Int[Tensor, " m"]) -> "Nearest":
        """The same in another order."""
        return Nearest(self.distance[order], self.which[order])


class NearestImages:
    """Finds the nearest of a set of images.

    A shift leaves the magnitudes of an image's Fourier transform as they are, so no shift brings two images nearer to
    one another than their magnitudes are (Parseval). The training images whose magnitudes are nearest are then compared
    pixel by pixel. A copy, shifted or not, has the same magnitudes, so it is found unless over 200 training images are
    themselves shifts of one another; of MNIST's test digits 99.5% have their true nearest among the 200.

    Args:
        images: The training images.
    """

    def __init__(self, images: UInt8[Tensor, "n c h w"]) -> None:
        self.images = images.flatten(1)
        self.energy = torch.cat([chunk.float().square().sum(1) for chunk in self.images.split(_MANY)])
        some = _magnitudes(images[:_MANY])
        self.strongest = some.var(0, correction=0).argsort(descending=True)[:_MAGNITUDES]
        self.bounds = torch.cat([self._bound(chunk) for chunk in images.split(_MANY)])
        self.bound_energy = self.bounds.square().sum(1)

    def of(self, queries: UInt8[Tensor, "m c h w"]) -> Iterator[Nearest]:
        """The nearest image of each query, some at a time."""
        for chunk in queries.split(_SOME):
            apart = torch.addmm(self.bound_energy[None], self._bound(chunk), self.bounds.T, alpha=-2)
            found = apart.topk(min(_CANDIDATES, len(self.images)), largest=False, sorted=False).indices
            parts = zip(chunk.split(_FEW), found.split(_FEW), strict=True)
            yield Nearest.joined([self._among(few, candidates) for few, candidates in parts])

    def _bound(self, images: UInt8[Tensor, "m c h w"]) -> Float[Tensor, "m s"]:
        """The strongest magnitudes, and the length of all the others: points that are no farther apart than images."""
        magnitudes = _magnitudes(images)
        strongest = magnitudes[:, self.strongest]
        rest = magnitudes.index_fill(1, self.strongest, 0).norm(dim=1, keepdim=True)
        return torch.cat([strongest, rest], 1)

    def _among(self, queries: UInt8[Tensor, "m c h w"], candidates: Int[Tensor, "m k"]) -> Nearest:
        """The nearest of each query's candidates, over all shifts."""
        shifted = torch.stack([queries.roll(shift, (2, 3)) for shift in _SHIFTS], 1).flatten(2).float()
        products = torch.bmm(shifted, self.images[candidates].float().mT).amax(1)
        energy = shifted[:, 0].square().sum(1, keepdim=True)
        best = (energy + self.energy[candidates] - 2 * products).argmin(1, keepdim=True)
        which = candidates.gather(1, best)[:, 0]
        # Once more by differences, for those sums are beyond what float32 holds exactly, and a copy is at distance 0.
        apart = (shifted - self.images[which].float()[:, None]).square().mean(2).amin(1)
        return Nearest(apart.sqrt(), which)


def nearest_features(queries: Float[Tensor, "m d"], features: Float[Tensor, "n d"]) -> Nearest:
    """The nearest of a set of features, for each query."""
    energy = features.square().sum(1)
    parts = []
    for rows in queries.split(_MANY):
        which = torch.addmm(energy[None], rows, features.T, alpha=-2).argmin(1)
        parts.append(Nearest((rows - features[which]).norm(dim=1), which))
    return Nearest.joined(parts)


class Nearness(NamedTuple):
    """How near is near: a measure made of what the test images, of which none was copied, come to.

    A thin stroke is near to many others and a wide one to few, so every distance is taken relative to what is usual
    among the test images that are nearest to the same class.
    """

    test: Nearest
    """Each test image's nearest training image."""
    labels: Int[Tensor, " n"]
    """Of the training images."""
    usual: Float[Tensor, " k"]
    """The test images' median distance to a nearest image of each class; of any class where they are few."""
    threshold: float
    """The relative distance that one test image in a hundred does not exceed."""

    @classmethod
    def of(cls, test: Nearest, labels: Int[Tensor, " n"]) -> "Nearness":
        """Measures the test images."""
        classes = labels[test.which]
        parts = [test.distance[classes == label] for label in range(int(labels.max()) + 1)]
        usual = torch.stack([(part if len(part) >= _USUAL else test.distance).median() for part in parts])
        usual = usual.clamp(min=1e-6)  # Where most test images are copies, a copy is still at no distance.
        return cls(test, labels, usual, float((test.distance / usual[classes]).quantile(QUANTILE)))

    def relative(self, nearest: Nearest) -> Float[Tensor, " m"]:
        """Distances by what is usual: 1 for half of the test images."""
        return nearest.distance / self.usual[self.labels[nearest.which]]

    def near(self, nearest: Nearest) -> Bool[Tensor, " m"]:
        """Which images are as near to a training image as one test image in a hundred."""
        return self.relative(nearest) <= self.threshold


def _magnitudes(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n s"]:
    """The magnitudes of each image's Fourier transform, weighted so that their distances are bounds for pixels'."""
    width = images.shape[3]
    spectrum = torch.fft.rfft2(images.float(), norm="ortho").abs()
    weight = torch.full((spectrum.shape[3],), 2.0).sqrt()  # Half of the spectrum stands for both halves
    weight[0] = 1.0
    if width % 2 == 0:
        weight[-1] = 1.0  # but for the columns that are their own mirror image.
    return (spectrum * weight).flatten(1)
