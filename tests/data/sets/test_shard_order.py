"""The order of an epoch over shards: a permutation, bounded, the same for every number of processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pela_vl.data.loader import EpochSampler
from pela_vl.data.sets.shard_order import bounded_shuffle, epoch_order

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(SIZES, st.integers(0, 3), st.integers(0, 3), st.integers(1, 50), st.integers(1, 9), st.integers(1, 60))
def test_an_epoch_has_every_sample_once(sizes, seed, epoch, batch, lanes, window):
    order = epoch_order(sizes, seed, epoch, batch, lanes, window)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(sum(sizes)))
    assert order.tolist() == epoch_order(sizes, seed, epoch, batch, lanes, window).tolist()


@given(st.integers(0, 300), st.integers(1, 400), st.integers(0, 5))
def test_the_shuffle_moves_nothing_further_than_its_window(n, window, seed):
    moved = bounded_shuffle(np.arange(n), window, np.random.default_rng(seed))
    assert sorted(moved.tolist()) == list(range(n))
    assert np.abs(moved - np.arange(n)).max(initial=0) < window


def test_the_shuffle_does_shuffle():
    moved = bounded_shuffle(np.arange(10_000), 1000, np.random.default_rng(0))
    distance = np.abs(moved - np.arange(10_000))
    assert 200 < distance.mean() < 500  # two draws from the window lie a third of it apart
    whole = epoch_order([100] * 20, 0, 0, 16, window=800)
    assert whole.tolist() != epoch_order([100] * 20, 0, 1, 16, window=800).tolist()
    assert whole.tolist() != epoch_order([100] * 20, 1, 0, 16, window=800).tolist()


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_batches_of_one_rank_with_no_loss(world, drop_last):
    sizes = [37, 50, 11, 64, 29, 41]

    def sampler(rank, world):
        def order(seed, epoch, batch):
            return epoch_order(sizes, seed, epoch, batch, window=64)

        return EpochSampler(232, 16 // world, rank, world, seed=3, drop_last=drop_last, order=order)

    alone = [[i for _, i in batch] for batch in sampler(0, 1)]
    processes = [[[i for _, i in batch] for batch in sampler(rank, world)] for rank in range(world)]
    for step, batch in enumerate(alone):
        union = [i for batches in processes for i in batches[step]]
        assert union[: len(batch)] == batch
    seen = [i for batches in processes for batch in batches for i in batch]
    if drop_last:
        assert len(seen) == len(set(seen)) == 232 // 16 * 16
    else:
        assert set(seen) == set(range(232)) and len(seen) - 232 == -(232 % 16) % world
    late = sampler(0, world)
    late.set_position(0, 9)
    assert [[i for _, i in batch] for batch in late] == processes[0][9:]


def test_a_rank_needs_its_share_of_the_shards_and_few_at_a_time():
    sizes, world, batch = [100] * 80, 4, 8
    edges = np.cumsum([0, *sizes])
    total = 0
    for rank in range(world):
        sampler = EpochSampler(
            8000, batch, rank, world, seed=1, order=lambda s, e, b: epoch_order(sizes, s, e, b, window=800)
        )
        batches = [np.searchsorted(edges, [i for _, i in keys], side="right") for keys in sampler]
        touched = set(np.concatenate(batches).tolist())
        assert len(touched) <= 80 / world + 2
        total += len(touched)
        for start in range(0, len(batches), 5):  # two lanes, each within a window of 100 places: two or three shards
            assert len(set(np.concatenate(batches[start : start + 5]).tolist())) <= 8
    assert total <= 80 + 2 * world
