"""How far generated images are from real ones, as pure functions of their features, in float64.

Every function takes two sets of features, one row an image, as numpy arrays or tensors, by name: ``real=`` is what is
compared with and ``fake=`` what is judged, for precision and recall change places when the two do.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pocketdiff import rng
from pocketdiff.errors import PocketdiffError

Features = Float[np.ndarray, "_ _"] | Float[Tensor, "_ _"]
"""A row for each image; two sets need not be equally many."""
_ROWS = 256
"""Rows of a matrix of pairs that are in memory at once: blocks that the allocator hands out again are three times as
fast as fresh ones."""
_NORMAL_95 = 1.959964
"""A normal variable stays within so many standard deviations 95% of the time."""


class EvaluationError(PocketdiffError):
    """Images, or a request, of which no sound score can be made."""


class Estimate(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


class Gaussian(NamedTuple):
    """The normal distribution with the mean and the covariance of a set of features."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Features) -> "Gaussian":
        """Mean and unbiased covariance.

        Raises:
            EvaluationError: If there are fewer than two images for each feature, all are alike, or a value is not
                finite.
        """
        x = _checked(features, "the")
        return _weighted_gaussian(x, torch.ones(len(x), dtype=torch.float64))


def frechet_between(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance of two normal distributions, in closed form.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)``, the roots by symmetric eigenvalues, which stay
    real where a matrix is singular. Source: Dowson and Landau 1982, equation 4.
    """
    return _frechet(a, _root(a.covariance), b)


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _frechet(a: Gaussian, root: Float[Tensor, "d d"], b: Gaussian) -> float:
    """`frechet_between`, given the root of a's covariance."""
    product = root @ b.covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, float(apart))


def frechet_distance(*, real: Features, fake: Features) -> float:
    """The squared Fréchet distance of the normal distributions fitted to two sets of features.

    With Inception's features this is the FID of Heusel et al. 2017, equation 6; with others it is not. It is never
    below 0, is 0 for equal sets, is symmetric, and is too large for few images: compare only figures of equally many.

    Raises:
        EvaluationError: If a set has fewer than two images for each feature, is all alike, or holds a value that is
            not finite; or the two have not as many features.
    """
    _check_width(real, fake)
    return frechet_between(Gaussian.of(real), Gaussian.of(fake))


def frechet_estimate(*, real: Features | Gaussian, fake: Features, seed: int = 0, resamples: int = 200) -> Estimate:
    """`frechet_distance` with its bootstrap 95% interval: how much another draw of the fake images would change it.

    Drawing with replacement makes the distance larger, so the resampled distances' spread about their own mean is laid
    around the distance itself. ``real`` is held fixed. Where the fake images are as good as real ones, the interval is
    up to twice as wide as need be; elsewhere it is about right.

    Raises:
        EvaluationError: As `frechet_distance`.
    """
    _check_width(real, fake)
    reference = real if isinstance(real, Gaussian) else Gaussian.of(real)
    x = _checked(fake, "the fake")
    root = _root(reference.covariance)
    value = _frechet(reference, root, Gaussian.of(x))
    drawn = rng.generator(seed, rng.Stream.BOOTSTRAP)
    shares = np.full(len(x), 1 / len(x))
    distances = np.array([
        _frechet(reference, root, _weighted_gaussian(x, torch.from_numpy(drawn.multinomial(len(x), shares)).double()))
        for _ in range(resamples)
    ])  # fmt: skip
    low, high = np.quantile(distances - distances.mean(), [0.025, 0.975])
    return Estimate(value, max(0.0, value + float(low)), value + float(high))


def kernel_distance(*, real: Features, fake: Features) -> float:
    """The squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^3``, unbiased, over all pairs.

    With Inception's features this is the KID of Bińkowski et al. 2018, section 4. Its mean is 0, whatever the number of
    images, where both sets come from one distribution, so it may be a little below 0.

    Raises:
        EvaluationError: As `frechet_distance`.
    """
    return kernel_estimate(real=real, fake=fake).value


def kernel_estimate(*, real: Features, fake: Features) -> Estimate:
    """`kernel_distance` with its 95% interval: how much another draw of the fake images would change it.

    The interval is that of a mean: each fake image adds twice the difference of its mean kernel with the other fake
    images and with the real ones (the first order of the statistic). ``real`` is held fixed.

    Raises:
        EvaluationError: As `frechet_distance`.
    """
    _check_width(real, fake)
    x, y = _checked(real, "the real"), _checked(fake, "the fake")
    within_real = _mean_kernels(x, x, same=True).mean()
    within_fake, across = _mean_kernels(y, y, same=True), _mean_kernels(y, x)
    value = float(within_real + within_fake.mean() - 2 * across.mean())
    margin = _NORMAL_95 * float((2 * (within_fake - across)).std()) / len(y) ** 0.5
    return Estimate(value, value - margin, value + margin)


def _mean_kernels(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], same: bool = False) -> Float[Tensor, " m"]:
    """Each row's mean kernel with the rows of y; without itself where both are the ``same`` set."""
    means = []
    for at, rows in enumerate(x.split(_ROWS)):
        products = torch.addmm(torch.ones(1, dtype=x.dtype), rows, y.T, alpha=1 / x.shape[1])
        kernels = products.square().mul_(products)
        if same:
            kernels.diagonal(at * _ROWS).zero_()
        means.append(kernels.sum(1) / (len(y) - same))
    return torch.cat(means)


class Neighbours(NamedTuple):
    """Who lies in whose neighbourhood: an image's reaches as far as its k-th nearest of its own set."""

    k: int
    faithful: Bool[Tensor, " m"]
    """Of each fake image: whether it lies in a real one's neighbourhood."""
    recalled: Bool[Tensor, " n"]
    """Of each real image: whether it lies in a fake one's neighbourhood."""
    crowd: Float[Tensor, " m"]
    """Of each fake image: in how many real neighbourhoods it lies, of k."""
    covered: Bool[Tensor, " n"]
    """Of each real image: whether a fake one lies in its neighbourhood."""
    realism: Float[Tensor, " m"]
    """Of each fake image: the most by which the reach of a real image exceeds its distance, over the half of the real
    images that reach least (Kynkäänniemi et al. 2019, equation 3)."""

    @property
    def precision(self) -> float:
        """Share of the fake images that look real (Kynkäänniemi et al. 2019)."""
        return float(self.faithful.double().mean())

    @property
    def recall(self) -> float:
        """Share of the real images that the fake ones could have been (Kynkäänniemi et al. 2019)."""
        return float(self.recalled.double().mean())

    @property
    def density(self) -> float:
        """Mean number of real neighbourhoods that a fake image lies in, of k; about 1 at best (Naeem et al. 2020)."""
        return float(self.crowd.mean())

    @property
    def coverage(self) -> float:
        """Share of the real images with a fake one in their neighbourhood (Naeem et al. 2020)."""
        return float(self.covered.double().mean())


def neighbours(*, real: Features, fake: Features, k: int = 5) -> Neighbours:
    """Precision, recall, density and coverage, all of one neighbourhood size.

    Recall and coverage depend on how many images there are: compare only figures of equally many on each side.

    Raises:
        EvaluationError: As `frechet_distance`, or if a set has no k + 1 images.
    """
    _check_width(real, fake)
    x, y = _checked(real, "the real"), _checked(fake, "the fake")
    if not 1 <= k < min(len(x), len(y)):
        raise EvaluationError(f"k = {k} neighbours of {min(len(x), len(y)):,} images there are not; take a smaller k")
    x, y = x - x.mean(0), y - x.mean(0)  # Closer to 0, the squares below lose fewer digits.
    slack = 1e-9 * float(x.square().sum(1).mean())  # What lies on the edge lies within, however the squares round.
    real_reach, fake_reach = _reach(x, k), _reach(y, k)
    trusted = real_reach <= real_reach.median()
    faithful, crowd, realism = [], [], []
    recalled, covered = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for rows, reach in zip(y.split(_ROWS), fake_reach.split(_ROWS), strict=True):
        apart = _squares(rows, x)
        within = apart <= real_reach + slack
        faithful.append(within.any(1))
        crowd.append(within.double().sum(1) / k)
        covered |= within.any(0)
        recalled |= (apart <= reach[:, None] + slack).any(0)
        realism.append((real_reach[trusted] / apart[:, trusted].clamp(min=slack)).amax(1).sqrt())
    return Neighbours(k, torch.cat(faithful), recalled, torch.cat(crowd), covered, torch.cat(realism))


def share_estimate(hits: Bool[Tensor, " n"]) -> Estimate:
    """A share of independent images with its 95% interval (Wilson 1927)."""
    n, share, z = len(hits), float(hits.double().mean()), _NORMAL_95
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(share, max(0.0, min(share, centre - margin)), min(1.0, max(share, centre + margin)))


def mean_estimate(values: Float[Tensor, " n"]) -> Estimate:
    """A mean over independent images with its 95% interval."""
    mean, margin = float(values.mean()), _NORMAL_95 * float(values.std()) / len(values) ** 0.5
    return Estimate(mean, mean - margin, mean + margin)


def _weighted_gaussian(x: Float[Tensor, "n d"], counts: Float[Tensor, " n"]) -> Gaussian:
    """Mean and unbiased covariance of a set in which row i is there ``counts[i]`` times."""
    total = counts.sum()
    mean = counts @ x / total
    centred = x - mean
    return Gaussian(mean, centred.T @ (centred * counts[:, None]) / (total - 1))


def _reach(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Squared distance of each row to its k-th nearest other row."""
    return torch.cat([_squares(rows, x).topk(k + 1, largest=False).values[:, -1] for rows in x.split(_ROWS)])


def _squares(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """Squared distances of every row to every row."""
    return torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2).add_(x.square().sum(1)[:, None]).clamp_(min=0)


def _checked(features: Features, whose: str) -> Float[Tensor, "n d"]:
    """Features in float64, if a distance of them can be sound."""
    x = features.cpu().double() if isinstance(features, Tensor) else torch.from_numpy(np.array(features, np.float64))
    n, d = x.shape
    if n < 2 * d:
        raise EvaluationError(
            f"{whose} {n:,} images are too few for {d} features: a sound score needs {2 * d:,} or more"
        )
    if not x.isfinite().all():
        raise EvaluationError(f"{whose} images' features are not all finite; mend the images")
    if bool((x == x[0]).all()):
        raise EvaluationError(f"{whose} {n:,} images are all alike; there is no score of a constant set")
    return x


def _check_width(real: Features | Gaussian, fake: Features) -> None:
    width = len(real.mean) if isinstance(real, Gaussian) else real.shape[1]
    if width != fake.shape[1]:
        raise EvaluationError(
            f"the real images have {width} features and the fake ones {fake.shape[1]}; take both of one network"
        )
