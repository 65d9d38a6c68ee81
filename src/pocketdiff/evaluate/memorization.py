"""The nearest training image of an image: whether a model draws, or remembers.

Distances are root mean square differences of pixels, of 255 grey levels, at the best of all shifts by up to two pixels
each way; what is shifted out on one side comes in on the other, which for strokes on an empty border changes nothing.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

_SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
_CANDIDATES = 200
_MAGNITUDES = 64
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
    pixel by pixel. A copy, shifted or not, has the same magnitudes and is always found; of MNIST's test digits 99.5%
    have their true nearest among the 200 that are compared.

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
        best = (energy + self.energy[candidates] - 2 * products).min(1)
        distance = (best.values.clamp(min=0) / self.images.shape[1]).sqrt()
        return Nearest(distance, candidates.gather(1, best.indices[:, None])[:, 0])


def nearest_features(queries: Float[Tensor, "m d"], features: Float[Tensor, "n d"]) -> Float[Tensor, " m"]:
    """The distance of each query to the nearest of a set of features, in float32."""
    energy = features.square().sum(1)
    return torch.cat([
        (rows.square().sum(1) + torch.addmm(energy[None], rows, features.T, alpha=-2).amin(1)).clamp(min=0).sqrt()
        for rows in queries.split(1000)
    ])  # fmt: skip


def _magnitudes(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n s"]:
    """The magnitudes of each image's Fourier transform, weighted so that their distances are bounds for pixels'."""
    width = images.shape[3]
    spectrum = torch.fft.rfft2(images.float(), norm="ortho").abs()
    weight = torch.full((spectrum.shape[3],), 2.0).sqrt()  # Half of the spectrum stands for both halves
    weight[0] = 1.0
    if width % 2 == 0:
        weight[-1] = 1.0  # but for the columns that are their own mirror image.
    return (spectrum * weight).flatten(1)
