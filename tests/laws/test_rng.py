import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from pocketdiff import rng
from pocketdiff.rng import Stream

SEEDS = st.integers(-(2**70), 2**70)


@given(SEEDS, st.sampled_from(list(Stream)), st.lists(st.integers(0, 2**64), min_size=1, max_size=5))
def test_a_draw_depends_on_its_own_index_only(seed: int, stream: int, indices: list[int]) -> None:
    together = rng.normal(seed, stream, indices, (1, 3, 3))
    for row, index in zip(together, indices, strict=True):
        assert torch.equal(row, rng.normal(seed, stream, [index], (1, 3, 3))[0])


def test_seed_stream_and_index_all_matter() -> None:
    draws = [rng.normal(seed, stream, [index], (4,)) for seed in (0, 1, 2**32) for stream in (1, 2) for index in (0, 7)]
    values = torch.cat(draws).flatten().tolist()
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("large", [2**53, 2**63, 2**64 - 2])
def test_every_bit_of_a_large_number_matters(large: int) -> None:
    draws = [
        rng.normal(seed, 1, [index], (4,)) for seed, index in [(large, 0), (large + 1, 0), (0, large), (0, large + 1)]
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4


def test_successive_indices_are_independent() -> None:
    x = rng.normal(5, Stream.NOISE, range(2000), (50,))
    assert x.mean().item() == pytest.approx(0, abs=0.02)
    assert x.std().item() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(x.T)[0, 1:].abs().max() < 0.1
    assert np.corrcoef(x[:-1].flatten(), x[1:].flatten())[0, 1] == pytest.approx(0, abs=0.02)


def test_the_same_in_every_process_and_version() -> None:
    """Model files and published figures depend on these numbers."""
    assert rng.uniform(1, 2, [3, 2**64 - 1]).tolist() == [0.06344102965932141, 0.056598779259343646]
    assert rng.normal(3, 4, [5], (2,))[0].tolist() == [0.23567427694797516, 0.6485132575035095]
    assert rng.permutation(6, 7, 8, 10).tolist() == [6, 4, 3, 5, 1, 9, 2, 8, 0, 7]
    assert rng.stratified(9, 10, range(2)).tolist() == [0.8015989601945431, 0.41963294894443814]


def test_a_permutation_has_every_index_once_and_differs_by_epoch() -> None:
    first, second = (rng.permutation(0, Stream.ORDER, epoch, 1000) for epoch in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)


@given(SEEDS, st.integers(0, 10**9))
def test_stratified_numbers_cover_the_interval_from_any_index(seed: int, first: int) -> None:
    n = 64
    x = rng.stratified(seed, Stream.LEVEL, range(first, first + n)).sort().values
    assert ((x >= 0) & (x < 1)).all()
    gaps = torch.cat([x.diff(), (x[:1] + 1 - x[-1:])])
    assert gaps.max() < 2.7 / n  # for independent draws the largest gap is about 4.7 / n


def test_stratified_numbers_are_uniform_in_the_long_run() -> None:
    counts = torch.histc(rng.stratified(1, Stream.LEVEL, range(10_000)), 10, 0, 1)
    assert (counts - 1000).abs().max() <= 3


def test_a_tenth_of_uniform_numbers_is_below_a_tenth() -> None:
    share = (rng.uniform(1, Stream.DROP, range(5000)) < 0.1).double().mean().item()
    assert share == pytest.approx(0.1, abs=0.0127)  # three standard errors


@given(SEEDS, st.integers(1, 20), st.integers(1, 5))
def test_each_epoch_visits_every_image_once(seed: int, n: int, epochs: int) -> None:
    order = rng.visit_order(seed, range(n * epochs), n)
    assert torch.equal(order.view(epochs, n).sort().values, torch.arange(n).expand(epochs, n))
    alone = [rng.visit_order(seed, [index], n) for index in reversed(range(n * epochs))]
    assert torch.equal(torch.cat(alone).flip(0), order)


def test_epochs_differ_in_their_order() -> None:
    first, second = rng.visit_order(0, range(200), 100).view(2, 100)
    assert not torch.equal(first, second)
