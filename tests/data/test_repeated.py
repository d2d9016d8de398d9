"""Repeated augmentation: DeiT's batches, in the house's sampler."""

from collections import Counter

import numpy as np
import pytest
from timm.data.distributed_sampler import RepeatAugSampler

from pela_vl.data.loader import EpochSampler
from pela_vl.data.repeated import repeat_views, repeated_order


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_global_batches_hold_the_views_of_timms_sampler(world):
    n, each = 300, 12
    samplers = [RepeatAugSampler(range(n), world, rank, num_repeats=3, selected_round=0) for rank in range(world)]
    theirs = [list(sampler) for sampler in samplers]
    permutation = np.asarray(list(RepeatAugSampler(range(n), 1, 0, num_repeats=1, selected_round=0)))
    ours = repeat_views(permutation, 3, each * world) % n
    for batch in range(n // world // each):
        expected = Counter(i for part in theirs for i in part[batch * each : (batch + 1) * each])
        assert Counter(ours[batch * each * world : (batch + 1) * each * world].tolist()) == expected


def test_every_image_that_comes_comes_with_all_its_views():
    order = repeated_order(90, 3)(0, 1, 18)
    assert len(order) == 90 and len(set(order.tolist())) == 90
    assert Counter((order % 90).tolist()).most_common()[-1][1] == 3
    for start in range(0, 90, 18):
        part = order[start : start + 18]
        copies = part // 90
        assert (np.diff(copies) >= 0).all() and Counter(copies.tolist()) == {0: 6, 1: 6, 2: 6}
        # three processes see the three views of the same six images
        assert (part[:6] % 90).tolist() == (part[6:12] % 90).tolist() == (part[12:] % 90).tolist()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_in_the_sampler_any_number_of_processes_sees_the_same_batches_from_any_position(world):
    def keys(start=0, epoch=2):
        parts = []
        for process in range(world):
            sampler = EpochSampler(70, 12 // world, process, world, seed=4, drop_last=True, order=repeated_order(70, 3))
            sampler.set_position(epoch, start)
            parts.append(list(sampler))
        return [sum(batches, []) for batches in zip(*parts, strict=True)]

    whole = repeated_order(70, 3)(4, 2, 12)
    assert keys() == [[(2, int(i)) for i in whole[b * 12 : b * 12 + 12]] for b in range(5)]
    assert keys(3) == keys()[3:] and keys(epoch=1) != keys()


def test_once_is_a_permutation():
    assert sorted(repeated_order(17, 1)(0, 0, 4).tolist()) == list(range(17))
    with pytest.raises(ValueError, match="times 0"):
        repeated_order(5, 0)
