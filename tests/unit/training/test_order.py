import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from scratchlm.training import order
from scratchlm.training.order import MOST_IN_MEMORY, batch_indices, permuted

SIZES = [*range(1, 70), 255, 256, 257, 1_000, 4_096, 4_097, 65_537, 100_003]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_each_example_has_one_place_whatever_their_number(seed: int) -> None:
    for n in SIZES:
        assert np.array_equal(np.sort(permuted(np.arange(n), n, seed)), np.arange(n))


@pytest.mark.long
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_a_shuffle_in_blocks_takes_each_example_at_most_once_an_epoch(
    n: int, batch_size: int, block: int, seed: int
) -> None:
    per_epoch = n // batch_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "MOST_IN_MEMORY", 0)
        patch.setattr(order, "BLOCK", block)
        order._block_of_order.cache_clear()
        batches = [batch_indices(step, n, batch_size, seed) for step in range(2 * per_epoch)]
        again = [batch_indices(step, n, batch_size, seed) for step in reversed(range(2 * per_epoch))][::-1]
    order._block_of_order.cache_clear()
    assert [*map(len, batches)] == [batch_size] * 2 * per_epoch
    assert all(map(np.array_equal, batches, again))
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        taken = np.concatenate([*epoch, np.empty(0, dtype=np.int64)]).tolist()
        assert len(set(taken)) == len(taken) and set(taken) <= set(range(n))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    n = MOST_IN_MEMORY + 1
    per_epoch = n // 64
    firsts = [batch_indices(epoch * per_epoch, n, 64, seed) for epoch in range(3) for seed in range(3)]
    assert len(np.unique(np.stack(firsts))) > 9 * 64 - 3  # 576 of 16.8 million: about 0.01 pairs


def test_an_order_has_no_visible_structure() -> None:
    """Numbers, their differences and neighbours over many orders: p-values are uniform, correlations normal."""
    size, values, differences, correlations = 1 << 16, [], [], []
    for n in (MOST_IN_MEMORY + 1, 97_656_250, 3 * 10**9):  # the first needs the most cycles
        for seed in range(20):
            found = permuted(np.arange(size) + seed * size, n, seed)
            for pvalues, numbers in ((values, found), (differences, np.diff(found) % n)):
                pvalues.append(chisquare(np.histogram(numbers, bins=256, range=(0, n))[0]).pvalue)
            correlations.append(np.corrcoef(found[:-1], found[1:])[0, 1] * size**0.5)
    assert kstest(values, "uniform").pvalue > 0.001
    assert kstest(differences, "uniform").pvalue > 0.001
    assert kstest(correlations, "norm").pvalue > 0.001


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert batch_indices(0, 97_656_250, 4, seed=1).tolist() == [69864649, 7113415, 4686921, 33544086]
    assert batch_indices(10**10, 10**11, 3, seed=2).tolist() == [17364494372, 96150245496, 75672238405]
