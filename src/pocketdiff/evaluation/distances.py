"""Distances between generated and real images: pure functions of their features, computed in float64.

Every function takes two sets of features, one row per image, as numpy arrays or tensors. Both are keyword arguments,
``real=`` (the reference) and ``fake=`` (the images to score), because swapping them swaps precision and recall. It
raises EvaluationError if a set has fewer than two images per feature, is constant, or has a value that is not finite,
or if the sets differ in their number of features.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pocketdiff import rng
from pocketdiff.errors import EvaluationError

Features = Float[np.ndarray, "_ _"] | Float[Tensor, "_ _"]
_ROWS = 256
"""Rows of a pairwise matrix in memory at once. The allocator reuses blocks of this size: three times as fast."""
_NORMAL_95 = 1.959964
"""The 97.5% quantile of the standard normal distribution."""


class Estimate(NamedTuple):
    """A figure with its 95% confidence interval."""

    value: float
    low: float
    high: float


class Gaussian(NamedTuple):
    """Mean and covariance of a set of features."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Features) -> "Gaussian":
        """Mean and unbiased covariance."""
        x = _checked(features, "the")
        return _weighted_gaussian(x, torch.ones(len(x), dtype=torch.float64))


def frechet_between(a: Gaussian, b: Gaussian, root_a: Float[Tensor, "d d"] | None = None) -> float:
    """The squared Fréchet distance between two normal distributions, in closed form.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)``. The matrix roots come from symmetric
    eigendecompositions, so they stay real for singular matrices. ``root_a`` is C_a^1/2, if it is known already.
    Source: Dowson and Landau 1982, eq. 4.
    """
    root = _root(a.covariance) if root_a is None else root_a
    product = root @ b.covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, float(apart))


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(*, real: Features, fake: Features) -> float:
    """The squared Fréchet distance between the normal distributions fitted to two sets of features.

    With Inception features this is the FID (Heusel et al. 2017, eq. 6); with other features it is not. It is
    nonnegative, symmetric, and 0 for equal sets. It is biased: it grows as the number of images shrinks, so compare
    only values for equal numbers of images.
    """
    _check_width(real, fake)
    return frechet_between(Gaussian.of(real), Gaussian.of(fake))


def frechet_estimate(*, real: Features | Gaussian, fake: Features, seed: int = 0, resamples: int = 200) -> Estimate:
    """`frechet_distance` with a bootstrap 95% confidence interval over the fake images; ``real`` is held fixed.

    Resampling increases the distance, so the spread of the resampled distances around their own mean is centred on the
    distance itself. If the fake images follow the real distribution, the interval is up to twice too wide; otherwise
    its width is about right.
    """
    _check_width(real, fake)
    reference = real if isinstance(real, Gaussian) else Gaussian.of(real)
    x = _checked(fake, "the fake")
    root = _root(reference.covariance)
    value = frechet_between(reference, Gaussian.of(x), root)
    drawn, distances = rng.generator(seed, rng.Stream.BOOTSTRAP), np.empty(resamples)
    for i in range(resamples):
        counts = torch.from_numpy(drawn.multinomial(len(x), np.full(len(x), 1 / len(x)))).double()
        distances[i] = frechet_between(reference, _weighted_gaussian(x, counts), root)
    low, high = np.quantile(distances - distances.mean(), [0.025, 0.975])
    return Estimate(value, min(value, max(0.0, value + float(low))), max(value, value + float(high)))


def kernel_distance(*, real: Features, fake: Features) -> float:
    """The squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^3``: the unbiased estimate over all pairs.

    With Inception features this is the KID (Bińkowski et al. 2018, section 4). Its expected value is 0 if both sets
    follow the same distribution, for any number of images; so it can be slightly negative.
    """
    return kernel_estimate(real=real, fake=fake).value


def kernel_estimate(*, real: Features, fake: Features) -> Estimate:
    """`kernel_distance` with its 95% confidence interval over the fake images; ``real`` is held fixed.

    The interval is that of a mean, from the first-order term of the statistic: each fake image contributes twice the
    difference between its mean kernel with the other fake images and with the real ones.
    """
    _check_width(real, fake)
    x, y = _checked(real, "the real"), _checked(fake, "the fake")
    within_real = _mean_kernels(x, x, same=True).mean()
    within_fake, across = _mean_kernels(y, y, same=True), _mean_kernels(y, x)
    value = float(within_real + within_fake.mean() - 2 * across.mean())
    margin = _NORMAL_95 * float((2 * (within_fake - across)).std()) / len(y) ** 0.5
    return Estimate(value, value - margin, value + margin)


def _mean_kernels(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], same: bool = False) -> Float[Tensor, " m"]:
    """Each row's mean kernel with the rows of y; without itself if both are the ``same`` set."""
    means = []
    for at, rows in enumerate(x.split(_ROWS)):
        products = torch.addmm(torch.ones(1, dtype=x.dtype), rows, y.T, alpha=1 / x.shape[1])
        kernels = products.square().mul_(products)
        if same:
            kernels.diagonal(at * _ROWS).zero_()
        means.append(kernels.sum(1) / (len(y) - same))
    return torch.cat(means)


class Neighbours(NamedTuple):
    """Metrics of neighbourhoods: balls around images, out to the k-th nearest neighbour in the image's own set."""

    precision: Estimate
    """Share of the fake images in the neighbourhood of a real one (Kynkäänniemi et al. 2019, eq. 2)."""
    recall: Estimate
    """Share of the real images in the neighbourhood of a fake one (Kynkäänniemi et al. 2019, eq. 2)."""
    density: Estimate
    """Mean number of real neighbourhoods around a fake image, divided by k; about 1 at best (Naeem et al. 2020)."""
    coverage: Estimate
    """Share of the real neighbourhoods that contain a fake image (Naeem et al. 2020)."""
    realism: Float[Tensor, " m"]
    """For each fake image: the maximum of radius(real) / distance(real, fake) over the half of the real images with the
    smallest radius; larger is more realistic (Kynkäänniemi et al. 2019, eq. 3)."""


def neighbours(*, real: Features, fake: Features, k: int = 5) -> Neighbours:
    """Precision, recall, density, coverage and realism, all with the same neighbourhoods.

    Recall and coverage depend on the numbers of images: compare only values for equal numbers in both sets. Also raises
    EvaluationError if a set has fewer than k + 1 images.
    """
    _check_width(real, fake)
    x, y = _checked(real, "the real"), _checked(fake, "the fake")
    if k < 1:
        raise EvaluationError(f"k = {k} must be at least 1")
    if (n := min(len(x), len(y))) <= k:
        raise EvaluationError(f"k = {k} needs at least {k + 1} images; got {n}")
    x, y = x - x.mean(0), y - x.mean(0)  # Smaller numbers lose fewer digits when squared.
    slack = 1e-9 * float(x.square().sum(1).mean())  # Counts an image on the edge as inside, whatever the rounding.
    real_radius, fake_radius = _squared_radius(x, k), _squared_radius(y, k)
    small = real_radius <= real_radius.median()
    around, realism = [], []
    recalled, covered = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for rows, radius in zip(y.split(_ROWS), fake_radius.split(_ROWS), strict=True):
        distance = _squared_distances(rows, x)
        inside = distance <= real_radius + slack
        around.append(inside.double().sum(1) / k)
        covered |= inside.any(0)
        recalled |= (distance <= radius[:, None] + slack).any(0)
        realism.append((real_radius[small] / distance[:, small].clamp(min=slack)).amax(1).sqrt())
    density = torch.cat(around)
    shares = share_estimate(density > 0), share_estimate(recalled), mean_estimate(density), share_estimate(covered)
    return Neighbours(*shares, torch.cat(realism))


def share_estimate(hits: Bool[Tensor, " n"]) -> Estimate:
    """A share of independent images with its 95% confidence interval (Wilson 1927)."""
    n, share, z = len(hits), float(hits.double().mean()), _NORMAL_95
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(share, max(0.0, min(share, centre - margin)), min(1.0, max(share, centre + margin)))


def mean_estimate(values: Float[Tensor, " n"]) -> Estimate:
    """A mean over independent images with its 95% confidence interval."""
    mean, margin = float(values.mean()), _NORMAL_95 * float(values.std()) / len(values) ** 0.5
    return Estimate(mean, mean - margin, mean + margin)


def _weighted_gaussian(x: Float[Tensor, "n d"], counts: Float[Tensor, " n"]) -> Gaussian:
    """Mean and unbiased covariance of a set that contains row i ``counts[i]`` times."""
    total = counts.sum()
    mean = counts @ x / total
    centred = x - mean
    return Gaussian(mean, centred.T @ (centred * counts[:, None]) / (total - 1))


def _squared_radius(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Squared distance of each row to its k-th nearest other row."""
    return torch.cat([_squared_distances(rows, x).topk(k + 1, largest=False).values[:, -1] for rows in x.split(_ROWS)])


def _squared_distances(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """Squared distance of every row of x to every row of y."""
    return torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2).add_(x.square().sum(1)[:, None]).clamp_(min=0)


def _checked(features: Features, whose: str) -> Float[Tensor, "n d"]:
    """Features in float64, after checks."""
    x = features.cpu().double() if isinstance(features, Tensor) else torch.from_numpy(np.array(features, np.float64))
    n, d = x.shape
    if n < 2 * d:
        raise EvaluationError(f"{whose} {n:,} images are too few for {d} features: a score needs {2 * d:,} or more")
    if not x.isfinite().all():
        raise EvaluationError(f"{whose} images' features are not all finite; fix the images")
    if bool((x == x[0]).all()):
        raise EvaluationError(f"{whose} {n:,} images are all equal; a constant set has no score")
    return x


def _check_width(real: Features | Gaussian, fake: Features) -> None:
    width = len(real.mean) if isinstance(real, Gaussian) else real.shape[1]
    if width != fake.shape[1]:
        raise EvaluationError(
            f"the real images have {width} features and the fake ones {fake.shape[1]}; use the same network for both"
        )
