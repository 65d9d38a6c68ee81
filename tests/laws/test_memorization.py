"""Nearest training images against brute force, on small sets and on all of MNIST."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from pocketdiff.data import Dataset
from pocketdiff.evaluation import memorization
from pocketdiff.evaluation.memorization import Nearest, NearestImages, nearest_features

SHAPES = [(1, 28, 28), (3, 17, 22), (1, 16, 31), (3, 32, 16), (1, 19, 19)]
SHIFTS = [(down, right) for down in (-2, -1, 0, 1, 2) for right in (-2, -1, 0, 1, 2)]
NEAR_0 = 0.1
"""Grey levels: the error of sums of squares in float32."""


@pytest.fixture(scope="module")
def everything(mnist: Dataset) -> NearestImages:
    return NearestImages(mnist.train.pixels)


@pytest.fixture(scope="module")
def held_out(mnist: Dataset) -> Tensor:
    """A hundred test images."""
    return mnist.test.pixels[::100]


@pytest.fixture(scope="module")
def truth(mnist: Dataset, held_out: Tensor) -> Tensor:
    """The distance of each to the nearest of all training images, over all shifts."""
    shifted = torch.stack([held_out.roll(shift, (2, 3)) for shift in SHIFTS], 1).flatten(0, 1).flatten(1).float()
    best = torch.full((len(held_out),), math.inf)
    for chunk in mnist.train.pixels.flatten(1).split(2000):
        rows = chunk.float()
        squares = rows.square().sum(1) - 2 * shifted @ rows.T
        best = torch.minimum(best, squares.amin(1).view(-1, len(SHIFTS)).amin(1))
    return ((best + held_out.flatten(1).float().square().sum(1)) / 784).sqrt()


def noise(seed: int, n: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def blobs(seed: int, n: int, shape: tuple[int, int, int]) -> Tensor:
    """Smooth images, whose distance depends on the shift, unlike that of noise."""
    coarse = torch.rand(n, shape[0], 6, 6, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def found(images: Tensor, queries: Tensor) -> Nearest:
    return Nearest.joined(list(NearestImages(images).of(queries)))


def by_pixels(query: Tensor, images: Tensor) -> Tensor:
    """Root mean square difference in grey levels at the best shift, in float64."""
    apart = torch.stack([images.double() - query.roll(shift, (1, 2)).double() for shift in SHIFTS])
    return apart.square().mean((2, 3, 4)).sqrt().amin(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [noise, blobs])
def test_the_nearest_image_of_a_small_set_equals_brute_force(make, shape: tuple[int, int, int]) -> None:
    images, queries = make(0, 200, shape), make(1, 9, shape)
    queries[:4] = images[50:54].roll((2, -1), (2, 3))
    distance, which = found(images, queries)
    expected = torch.stack([by_pixels(query, images) for query in queries])
    torch.testing.assert_close(distance.double(), expected.amin(1), rtol=1e-4, atol=NEAR_0)
    assert torch.equal(which, expected.argmin(1))
    assert which[:4].tolist() == [50, 51, 52, 53]


def test_the_distance_is_the_root_mean_square_of_grey_levels() -> None:
    black = torch.zeros(1, 3, 20, 16, dtype=torch.uint8)
    half = black.clone()
    half[:, :, ::2] = 100
    assert found(black, black + 30).distance.item() == pytest.approx(30, abs=1e-3)
    assert found(black, half).distance.item() == pytest.approx(100 / 2**0.5, abs=1e-3)


@pytest.mark.parametrize("shift", [(2, 2), (-2, 1), (0, -2)])
def test_shifts_are_circular(shift: tuple[int, int]) -> None:
    images = noise(0, 5, (1, 28, 28))
    distance, which = found(images, images.roll(shift, (2, 3)))
    assert distance.max() < NEAR_0
    assert which.tolist() == list(range(5))


@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(16, 33), st.integers(16, 33)),
    seed=st.integers(0, 2**31),
    smooth=st.booleans(),
    shift=st.tuples(st.integers(-40, 40), st.integers(-40, 40)),
    share=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_the_bound_is_at_most_the_distance_at_any_shift(
    shape: tuple[int, int, int], seed: int, smooth: bool, shift: tuple[int, int], share: float
) -> None:
    make = blobs if smooth else noise
    images = make(seed, 8, shape)
    others = (share * images.roll(shift, (2, 3)).float() + (1 - share) * make(seed + 1, 8, shape).float()).byte()
    nearest = NearestImages(images)
    bound = (nearest._bound(images) - nearest._bound(others)).norm(dim=1)
    pixels = (images.roll(shift, (2, 3)).float() - others.float()).flatten(1).norm(dim=1)
    assert (bound <= pixels * (1 + 1e-4) + 1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bound_to_a_black_image_is_exact(shape: tuple[int, int, int]) -> None:
    """Parseval: the norm of the magnitudes is that of the pixels."""
    images = torch.cat([noise(0, 20, shape), blobs(1, 20, shape)])
    length = NearestImages(images)._bound(images).norm(dim=1)
    torch.testing.assert_close(length, images.float().flatten(1).norm(dim=1), rtol=1e-4, atol=0)


def test_the_bound_of_digits_is_over_a_third_of_their_distance(mnist: Dataset, everything: NearestImages) -> None:
    a, b = mnist.train.pixels[:500], mnist.train.pixels[500:1000]
    bound = (everything._bound(a) - everything._bound(b)).norm(dim=1)
    pixels = (a.float() - b.float()).flatten(1).norm(dim=1)
    assert (bound / pixels).mean() > 0.3


@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (-2, 1), (1, -2)])
def test_a_shifted_copy_is_found(mnist: Dataset, everything: NearestImages, shift: tuple[int, int]) -> None:
    chosen = torch.arange(0, len(mnist.train), 600)
    copies = mnist.train.pixels[chosen].roll(shift, (2, 3))
    distance, which = Nearest.joined(list(everything.of(copies)))
    assert distance.max() < NEAR_0
    assert torch.equal(which, chosen)


def test_a_copy_with_a_larger_shift_is_not_found(mnist: Dataset, everything: NearestImages) -> None:
    copies = mnist.train.pixels[::600].roll((0, 5), (2, 3))
    assert Nearest.joined(list(everything.of(copies))).distance.min() > 10


def test_the_nearest_of_all_training_images_is_found_for_97_percent(
    everything: NearestImages, held_out: Tensor, truth: Tensor
) -> None:
    distance, _ = Nearest.joined(list(everything.of(held_out)))
    assert (distance >= truth - 1e-2).all()
    assert (distance <= truth + 1e-2).double().mean() >= 0.97


def test_index_and_distance_belong_together(mnist: Dataset, everything: NearestImages, held_out: Tensor) -> None:
    distance, which = Nearest.joined(list(everything.of(held_out)))
    expected = [
        by_pixels(query, mnist.train.pixels[index, None]).item() for query, index in zip(held_out, which, strict=True)
    ]
    np.testing.assert_allclose(distance, expected, atol=1e-2)


def test_one_percent_of_copies_among_real_images_are_the_nearest(mnist: Dataset, everything: NearestImages) -> None:
    queries, planted = mnist.test.pixels[1000:1300].clone(), torch.tensor([7, 150, 299])
    queries[planted] = mnist.train.pixels[[123, 4567, 59999]].roll((-1, 2), (2, 3))
    distance, which = Nearest.joined(list(everything.of(queries)))
    assert distance.argsort()[:3].sort().values.tolist() == planted.tolist()
    assert which[planted].tolist() == [123, 4567, 59999]
    others = torch.ones(300, dtype=torch.bool).index_fill(0, planted, False)
    assert distance[others].min() > 10 * distance[planted].max()


def test_a_query_does_not_depend_on_other_queries(everything: NearestImages, held_out: Tensor) -> None:
    whole = Nearest.joined(list(everything.of(held_out)))
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    alone = [Nearest.joined(list(everything.of(held_out[[index]]))) for index in order[:7].tolist()]
    for other, chosen in [
        (Nearest.joined(list(everything.of(held_out[order]))), order),
        (Nearest.joined(alone), order[:7]),
        (Nearest.joined(list(everything.of(held_out[order[:33]].repeat(4, 1, 1, 1)))), order[:33].repeat(4)),
    ]:
        assert torch.equal(other.which, whole.at(chosen).which)
        torch.testing.assert_close(other.distance, whole.at(chosen).distance, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["_FEW", "_SOME", "_MANY"])
@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_size_does_not_matter(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, queries = blobs(0, 40, (1, 28, 28)), blobs(1, 30, (1, 28, 28))
    whole = found(images, queries)
    monkeypatch.setattr(memorization, name, size)
    other = found(images, queries)
    assert torch.equal(other.which, whole.which)
    torch.testing.assert_close(other.distance, whole.distance, rtol=0, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_sets_with_fewer_images_than_candidates_are_searched(n: int) -> None:
    images, query = blobs(0, n, (1, 16, 16)), blobs(1, 3, (1, 16, 16))
    distance, which = found(images, query)
    expected = torch.stack([by_pixels(one, images) for one in query])
    torch.testing.assert_close(distance.double(), expected.amin(1), rtol=1e-4, atol=NEAR_0)
    assert torch.equal(which, expected.argmin(1))


def test_entries_at_indices() -> None:
    nearest = found(blobs(0, 20, (1, 16, 16)), blobs(1, 5, (1, 16, 16)))
    turned = nearest.at(torch.tensor([4, 0]))
    assert turned.distance.tolist() == [nearest.distance[4], nearest.distance[0]]
    assert turned.which.tolist() == [nearest.which[4], nearest.which[0]]


@pytest.mark.parametrize("queries", [1, 2500])
def test_nearest_features_equal_torch_cdist(queries: int) -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(queries, 64, generator=source), torch.randn(700, 64, generator=source)
    b[5] = a[0]
    apart = torch.cdist(a.double(), b.double())
    nearest = nearest_features(a, b)
    torch.testing.assert_close(nearest.distance, apart.amin(1).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(nearest.which, apart.argmin(1))
    assert nearest.distance[0] == 0, "a copy has distance 0"
