"""Distances between sets of features: closed forms, peers, and statistics over many draws."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from pocketdiff.data import Dataset
from pocketdiff.errors import EvaluationError
from pocketdiff.evaluation import distances
from pocketdiff.evaluation.classifiers import SHIPPED, features, find_classifier
from pocketdiff.evaluation.distances import (
    Features,
    Gaussian,
    Neighbours,
    frechet_between,
    frechet_distance,
    frechet_estimate,
    kernel_distance,
    kernel_estimate,
    mean_estimate,
    neighbours,
    share_estimate,
)

D = 6
SCORES: dict[str, Callable[..., object]] = {
    "frechet_distance": frechet_distance,
    "frechet_estimate": frechet_estimate,
    "kernel_distance": kernel_distance,
    "kernel_estimate": kernel_estimate,
    "neighbours": neighbours,
}


@pytest.fixture(scope="module")
def digits(mnist: Dataset) -> Tensor:
    """The features of 2,000 real images."""
    classifier = find_classifier("features", mnist.info, [SHIPPED])
    assert classifier is not None
    return torch.cat(list(features(classifier.net, mnist.test.pixels[:2000])))


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, n: int, d: int = D) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=source(seed))


def stretched(seed: int, n: int, d: int = D) -> Tensor:
    """Draws from a normal distribution with another mean and covariance."""
    return draw(seed, n, d) @ draw(100 + d, d, d) + draw(200 + d, 1, d)


def shuffled(n: int) -> Tensor:
    return torch.randperm(n, generator=source(n))


def rotation(seed: int, d: int = D) -> Tensor:
    return torch.linalg.qr(draw(seed, d, d)).Q


def mixed(seed: int, d: int = D) -> Tensor:
    """A covariance that is not diagonal and differs between seeds."""
    root = draw(seed, d, d)
    return root @ root.T


def as_arrays(found: object) -> list[np.ndarray]:
    """Any result as a list of arrays."""
    parts = found if isinstance(found, tuple) else (found,)
    return [np.asarray(part, dtype=np.float64) for part in parts]


def agree(a: object, b: object, rtol: float = 1e-9) -> None:
    for left, right in zip(as_arrays(a), as_arrays(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol)


# The Fréchet distance


def test_frechet_of_independent_features_is_a_sum_over_features() -> None:
    a, b = (
        Gaussian(draw(0, 1)[0], draw(1, 1)[0].square().diag()),
        Gaussian(draw(2, 1)[0], draw(3, 1)[0].square().diag()),
    )
    deviations = a.covariance.diagonal().sqrt() - b.covariance.diagonal().sqrt()
    expected = (a.mean - b.mean).square().sum() + deviations.square().sum()
    assert frechet_between(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_frechet_of_commuting_covariances_depends_on_their_eigenvalues() -> None:
    turn, variances, others = rotation(0), draw(1, 1)[0].square(), draw(2, 1)[0].square()
    a = Gaussian(torch.zeros(D, dtype=torch.float64), turn @ variances.diag() @ turn.T)
    b = Gaussian(torch.ones(D, dtype=torch.float64), turn @ others.diag() @ turn.T)
    expected = D + (variances.sqrt() - others.sqrt()).square().sum()
    assert frechet_between(a, b) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_frechet_of_any_covariances_equals_scipys_matrix_root(seed: int) -> None:
    from scipy.linalg import sqrtm  # type: ignore[import-untyped]

    a, b = Gaussian(draw(seed, 1)[0], mixed(seed)), Gaussian(draw(seed + 10, 1)[0], mixed(seed + 10))
    root = sqrtm((a.covariance @ b.covariance).numpy())
    expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * np.trace(root).real
    assert frechet_between(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_equals_torchmetrics_fid(digits: Tensor) -> None:
    from torchmetrics.image.fid import _compute_fid

    real, fake = digits[:1200].double(), digits[1200:].double().square()
    expected = _compute_fid(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov())
    assert frechet_distance(real=real, fake=fake) == pytest.approx(expected.item(), rel=1e-9)


def test_the_distance_of_a_set_to_itself_is_0(digits: Tensor) -> None:
    assert frechet_distance(real=digits, fake=digits) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real=digits, fake=digits.flip(0)) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_symmetric(digits: Tensor) -> None:
    a, b = digits[:900], 1.5 * digits[900:]
    there, back = frechet_distance(real=a, fake=b), frechet_distance(real=b, fake=a)
    assert there == pytest.approx(back, rel=1e-9)
    assert there > 1


@pytest.mark.parametrize("name", ["frechet_distance", "frechet_estimate", "neighbours"])
def test_distances_are_invariant_to_rotation_and_translation(name: str) -> None:
    real, fake, turn, move = draw(0, 100), stretched(1, 90), rotation(2), 10 * draw(3, 1)
    agree(SCORES[name](real=real, fake=fake), SCORES[name](real=real @ turn + move, fake=fake @ turn + move), 1e-8)


@pytest.mark.parametrize("rank", [1, 3])
def test_linearly_dependent_features_do_not_change_the_frechet_distance(rank: int) -> None:
    real, fake, turn = draw(0, 100, rank), 2 * draw(1, 100, rank) + 1, rotation(2)[:rank]
    within = frechet_distance(real=real, fake=fake)
    assert frechet_distance(real=real @ turn, fake=fake @ turn) == pytest.approx(within, rel=1e-6)


def test_frechet_with_a_singular_covariance() -> None:
    flat = Gaussian(torch.zeros(2, dtype=torch.float64), torch.tensor([[4.0, 0], [0, 0]], dtype=torch.float64))
    full = Gaussian(torch.zeros(2, dtype=torch.float64), torch.tensor([[1.0, 0], [0, 9]], dtype=torch.float64))
    assert frechet_between(flat, full) == pytest.approx(1 + 9, rel=1e-12)
    assert frechet_between(full, flat) == pytest.approx(1 + 9, rel=1e-12)


@given(seed=st.integers(0, 2**32), scale=st.floats(1e-3, 1e3), noise=st.floats(0, 1e-6), rank=st.integers(1, D))
@settings(max_examples=50, deadline=None)
def test_frechet_distance_is_never_negative(seed: int, scale: float, noise: float, rank: int) -> None:
    x = scale * draw(seed, 20, rank) @ draw(seed + 1, rank, D)
    found = frechet_distance(real=x, fake=x + noise * scale * draw(seed + 2, 20))
    assert 0 <= found <= 1e-4 * scale**2


def test_the_bias_of_the_frechet_distance_is_inverse_to_the_number_of_images() -> None:
    def bias(n: int) -> float:
        return float(np.mean([frechet_distance(real=draw(2 * i, n), fake=draw(2 * i + 1, n)) for i in range(20)]))

    assert bias(100) > 0
    assert bias(100) / bias(400) == pytest.approx(4, rel=0.25)
    assert bias(400) / bias(1600) == pytest.approx(4, rel=0.25)


def test_the_frechet_interval_contains_the_distance(digits: Tensor) -> None:
    real, fake = digits[:1000], digits[1000:]
    found = frechet_estimate(real=real, fake=fake)
    assert found.value == pytest.approx(frechet_distance(real=real, fake=fake), rel=1e-12)
    assert 0 < found.low < found.value < found.high
    assert found == frechet_estimate(real=Gaussian.of(real), fake=fake)


@pytest.mark.parametrize(("stretch", "least", "most"), [(1.3, 0.75, 1.5), (1.0, 0.95, 2.0)])
def test_the_frechet_interval_is_as_wide_as_the_spread_over_draws(
    digits: Tensor, stretch: float, least: float, most: float
) -> None:
    """For equal distributions the distance is of second order, and a bootstrap interval is sqrt(3) times too wide; it
    must never be too narrow."""
    real, choice = Gaussian.of(digits), source(0)

    def redrawn() -> Tensor:
        return stretch * digits[torch.randint(len(digits), (500,), generator=choice)]

    values = [frechet_between(real, Gaussian.of(redrawn())) for _ in range(150)]
    widths = []
    for _ in range(4):
        found = frechet_estimate(real=real, fake=redrawn())
        widths.append(found.high - found.low)
    assert least < np.mean(widths) / (2 * 1.96 * np.std(values)) < most


def test_the_frechet_interval_covers_the_mean_of_many_draws_in_95_percent() -> None:
    real = Gaussian.of(draw(0, 1000, 3))
    fakes = [1.3 * draw(seed, 100, 3) for seed in range(1, 201)]
    mean = np.mean([frechet_between(real, Gaussian.of(fake)) for fake in fakes])
    found = [frechet_estimate(real=real, fake=fake, resamples=60) for fake in fakes[:100]]
    assert np.mean([low < mean < high for _, low, high in found]) == pytest.approx(0.95, abs=0.05)


def test_the_seed_decides_the_frechet_interval() -> None:
    real, fake = draw(0, 100), stretched(1, 100)
    first = frechet_estimate(real=real, fake=fake, seed=1)
    assert first == frechet_estimate(real=real, fake=fake, seed=1)
    other = frechet_estimate(real=real, fake=fake, seed=2)
    assert first.value == other.value
    assert first.low != other.low
    assert first.high != other.high


# The kernel distance


def kernels(x: Tensor, y: Tensor) -> np.ndarray:
    from sklearn.metrics.pairwise import polynomial_kernel

    found: np.ndarray = polynomial_kernel(x.double().numpy(), y.double().numpy(), degree=3, gamma=None, coef0=1)
    return found


def off_diagonal_mean(kernel: np.ndarray) -> float:
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))


def test_kernel_distance_equals_scikit_learns_kernel(digits: Tensor) -> None:
    real, fake = digits[:700], digits[700:] + 0.1
    expected = off_diagonal_mean(kernels(real, real)) + off_diagonal_mean(kernels(fake, fake))
    expected -= 2 * kernels(real, fake).mean()
    assert kernel_distance(real=real, fake=fake) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_equals_torchmetrics_kid_of_one_subset(digits: Tensor) -> None:
    from torchmetrics.image.kid import poly_mmd

    real, fake = digits[:1000], digits[1000:] + 0.1
    expected = poly_mmd(real.double(), fake.double()).item()
    assert kernel_distance(real=real, fake=fake) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_halves_of_one_set_is_0_on_average(digits: Tensor) -> None:
    """The mean over all ways to halve a set is exactly 0; the biased statistic fails this test."""
    pool, choice = digits[:600], source(0)
    kernel = torch.from_numpy(kernels(pool, pool))
    unbiased, biased = [], []
    for _ in range(150):
        a, b = torch.randperm(len(pool), generator=choice).chunk(2)
        unbiased.append(kernel_distance(real=pool[a], fake=pool[b]))
        within_a, within_b, across = kernel[a][:, a], kernel[b][:, b], kernel[a][:, b]
        biased.append((within_a + within_b - 2 * across).mean().item())
    errors = [np.std(values) / len(values) ** 0.5 for values in (unbiased, biased)]
    assert abs(np.mean(unbiased)) < 4 * errors[0]
    assert abs(np.mean(biased)) > 4 * errors[1]


@pytest.mark.parametrize(("move", "most"), [(0.2, 0.98), (0.0, 1.0)])
def test_the_kernel_interval_covers_the_expected_value_in_95_percent(move: float, most: float) -> None:
    """The fake images are drawn from a pool, so the expected value is known. For equal distributions the first order
    almost vanishes, and the interval can be too wide, but not too narrow."""
    real, pool, choice = draw(0, 150), draw(1, 2000) + move, source(0)
    expected = off_diagonal_mean(kernels(real, real)) + kernels(pool, pool).mean() - 2 * kernels(real, pool).mean()
    trials = [
        kernel_estimate(real=real, fake=pool[torch.randint(len(pool), (150,), generator=choice)]) for _ in range(1000)
    ]
    assert np.mean([found.value for found in trials]) == pytest.approx(
        expected, abs=4 * float(np.std([found.value for found in trials])) / 1000**0.5
    )
    assert 0.92 < np.mean([found.low < expected < found.high for found in trials]) <= most


# Neighbours


def independent(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float, np.ndarray]:
    """Precision, recall, density, coverage and realism as in their papers, with scikit-learn's neighbours."""
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    def radius(x: Tensor) -> np.ndarray:
        found: np.ndarray = NearestNeighbors(n_neighbors=k).fit(x.numpy()).kneighbors()[0][:, -1]
        return found

    apart = pairwise_distances(fake.numpy(), real.numpy())
    reals, fakes = radius(real), radius(fake)
    within = apart <= reals
    trusted = reals <= np.median(reals)
    realism = (reals[trusted] / apart[:, trusted]).max(1)
    recalled = (apart <= fakes[:, None]).any(0)
    return within.any(1).mean(), recalled.mean(), within.sum() / (k * len(fake)), within.any(0).mean(), realism


def four(found: Neighbours) -> tuple[float, float, float, float]:
    return found.precision.value, found.recall.value, found.density.value, found.coverage.value


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("sizes", [(300, 300), (280, 531), (531, 280)])
def test_neighbours_equal_scikit_learns(k: int, sizes: tuple[int, int]) -> None:
    real, fake = draw(0, sizes[0]), 1.2 * draw(1, sizes[1]) + 0.7
    found = neighbours(real=real, fake=fake, k=k)
    *expected, realism = independent(real, fake, k)
    assert len({*four(found), 0, 1}) == 6
    assert four(found) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found.realism, realism, rtol=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_a_collapsed_generator_has_high_precision_and_low_recall(digits: Tensor, k: int) -> None:
    real = digits[:1000]
    fake = real[:5].repeat(200, 1).double() + 1e-4 * draw(0, 1000, real.shape[1])
    found = neighbours(real=real, fake=fake, k=k)
    assert found.precision.value == 1
    assert found.recall.value <= 5 / 1000
    assert found.coverage.value < 0.05
    assert bool((found.realism > 1).any())


def test_swapping_the_sets_swaps_precision_and_recall(digits: Tensor) -> None:
    real, fake = digits[:800], 1.2 * digits[800:]
    there, back = neighbours(real=real, fake=fake), neighbours(real=fake, fake=real)
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert there.precision != there.recall


@pytest.mark.parametrize("k", [3, 5])
def test_a_set_lies_in_its_own_neighbourhoods(digits: Tensor, k: int) -> None:
    assert four(neighbours(real=digits, fake=digits, k=k)) == pytest.approx((1, 1, (k + 1) / k, 1), rel=1e-12)


def test_distant_sets_share_no_neighbourhoods(digits: Tensor) -> None:
    found = neighbours(real=digits[:1000], fake=digits[1000:] + 100)
    assert four(found) == (0, 0, 0, 0)
    assert found.realism.max() < 0.1


def test_realism_is_above_1_for_real_images_and_falls_with_the_distance() -> None:
    real = draw(0, 300)
    own = neighbours(real=real, fake=real).realism
    assert (own > 1).sum() >= 150
    steps = torch.arange(40, dtype=torch.float64)[:, None] * torch.ones(D, dtype=torch.float64)
    outward = neighbours(real=real, fake=real.mean(0) + 5 + steps).realism
    assert outward[0] < 1
    assert (outward.diff() < 0).all()


def test_the_order_of_the_images_changes_no_neighbourhood() -> None:
    real, fake = draw(0, 300), 1.2 * draw(1, 290) + 0.5
    found, other_order = neighbours(real=real, fake=fake), shuffled(290)
    other = neighbours(real=real[shuffled(300)], fake=fake[other_order])
    agree(found[:4], other[:4], 1e-12)
    torch.testing.assert_close(found.realism[other_order], other.realism, rtol=1e-9, atol=0)


def test_intervals_are_over_the_images_that_are_counted() -> None:
    found = neighbours(real=draw(0, 300), fake=1.2 * draw(1, 290) + 0.5)
    assert len(found.realism) == 290
    for estimate, n in ((found.precision, 290), (found.recall, 300), (found.coverage, 300)):
        assert estimate == share_estimate(torch.arange(n) < round(estimate.value * n))
    assert found.density.low < found.density.value < found.density.high
    assert found.density.value >= found.precision.value / 5


# Intervals of shares and means


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_wilsons(hits: int, of: int, low: float, high: float) -> None:
    """The examples of Newcombe 1998, table I, method 3, and the same for the misses."""
    found = share_estimate(torch.arange(of) < hits)
    assert found == pytest.approx((hits / of, low, high), abs=5e-5)
    assert share_estimate(torch.arange(of) >= hits) == pytest.approx((1 - hits / of, 1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 20, 1000])
def test_the_interval_of_a_share_contains_it_and_stays_between_0_and_1(n: int) -> None:
    for hits in range(0, n + 1, max(1, n // 20)):
        value, low, high = share_estimate(torch.arange(n) < hits)
        assert -1e-15 <= low <= value <= high <= 1 + 1e-15
        assert high - low > 0.5 / n


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_interval_of_a_share_covers_the_true_share_in_95_percent(share: float) -> None:
    draws = torch.rand(3000, 1000, generator=source(0)) < share
    found = [share_estimate(hits) for hits in draws]
    assert np.mean([low < share < high for _, low, high in found]) == pytest.approx(0.95, abs=0.02)


def test_the_interval_of_a_mean_covers_the_mean_in_95_percent() -> None:
    values = draw(0, 3000, 100) + 3
    first = mean_estimate(values[0])
    error = np.std(values[0].numpy(), ddof=1) / 10
    mean = values[0].mean().item()
    assert first == pytest.approx((mean, mean - 1.96 * error, mean + 1.96 * error), abs=1e-5)
    held = [low < 3 < high for _, low, high in map(mean_estimate, values)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


# All of them


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_and_tensors_give_equal_results(name: str, dtype: torch.dtype) -> None:
    real, fake = draw(0, 60).to(dtype), stretched(1, 50).to(dtype)
    found = SCORES[name](real=real, fake=fake)
    agree(found, SCORES[name](real=real.numpy(), fake=fake.numpy()), 0)
    agree(found, SCORES[name](real=real, fake=np.asfortranarray(fake.numpy())))
    agree(found, SCORES[name](real=real.double(), fake=fake.double()), 0)
    assert real.dtype == dtype  # Neither argument is changed.
    assert torch.equal(fake, stretched(1, 50).to(dtype))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("rows", [1, 7, 100, 5000])
def test_the_block_size_does_not_matter(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = draw(0, 600), stretched(1, 513)
    found = SCORES[name](real=real, fake=fake)
    monkeypatch.setattr(distances, "_ROWS", rows)
    agree(found, SCORES[name](real=real, fake=fake), 1e-10)


@pytest.mark.parametrize("name", ["frechet_distance", "kernel_distance", "kernel_estimate"])
def test_the_order_of_the_images_does_not_matter(name: str) -> None:
    real, fake = draw(0, 100), stretched(1, 90)
    agree(SCORES[name](real=real, fake=fake), SCORES[name](real=real[shuffled(100)], fake=fake[shuffled(90)]))


def broken(value: float) -> Tensor:
    x = draw(1, 50)
    x[17, 2] = value
    return x


BAD = {
    "too few for 6 features": draw(1, 2 * D - 1),
    "all equal": torch.full((50, D), 0.3, dtype=torch.float64),
    "not all finite; fix": broken(math.nan),
    "not all finite": broken(math.inf),
    "features are not": broken(-math.inf),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("fault", BAD)
def test_bad_sets_are_refused_on_either_side(name: str, fault: str) -> None:
    sets: list[dict[str, Features]] = [
        {"real": draw(0, 50), "fake": BAD[fault]},
        {"real": BAD[fault].float().numpy(), "fake": draw(0, 50)},
    ]
    for both in sets:
        refused(fault, partial(SCORES[name], **both))


@pytest.mark.parametrize("name", SCORES)
def test_different_numbers_of_features_are_refused(name: str) -> None:
    refused("6 features and the fake ones 5", lambda: SCORES[name](real=draw(0, 50), fake=draw(1, 50, 5)))
    refused("5 features and the fake ones 6", lambda: SCORES[name](real=draw(0, 50, 5), fake=draw(1, 50)))


@pytest.mark.parametrize("k", [-1, 0, 40, 50, 1000])
def test_k_must_be_positive_and_below_the_number_of_images(k: int) -> None:
    fault = f"k = {k} needs at least {k + 1} images; got 40" if k > 0 else f"k = {k} must be at least 1"
    refused(fault, lambda: neighbours(real=draw(0, 50), fake=draw(1, 40), k=k))
    refused(fault, lambda: neighbours(real=draw(0, 40), fake=draw(1, 50), k=k))


def test_the_smallest_valid_set_is_accepted() -> None:
    real, fake = draw(0, 2 * D), draw(1, 2 * D)
    assert frechet_distance(real=real, fake=fake) > 0
    assert neighbours(real=real, fake=fake, k=2 * D - 1).precision.value > 0


def refused(fault: str, score: Callable[[], object]) -> None:
    with pytest.raises(EvaluationError, match=fault) as caught:
        score()
    assert "\n" not in str(caught.value)
