"""Mixup and CutMix: timm's for the same draws, and functions of the seed and the samples alone."""

import numpy as np
import pytest
import torch
from timm.data import Mixup

from pela_vl.data.mixing import Mix, Mixing, mix_images, mixing_generator

CASES = {
    "both": {},
    "mixup": {"cutmix": 0.0},
    "cutmix": {"mixup": 0.0, "cutmix": 0.7},
    "at times": {"probability": 0.4, "switch": 0.2, "smoothing": 0.0},
    "none": {"mixup": 0.0, "cutmix": 0.0},
}


def batch(count=6, height=17, width=23):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, height, width, generator=generator), torch.arange(count) % 5


@pytest.mark.parametrize("name", [case for case in CASES if case != "none"])
def test_timms_mixup_for_the_same_draws(name):
    mixing = Mixing(5, **CASES[name])
    theirs = Mixup(
        mixing.mixup,
        mixing.cutmix,
        prob=mixing.probability,
        switch_prob=mixing.switch,
        label_smoothing=mixing.smoothing,
        num_classes=5,
    )
    kinds = set()
    for seed in range(40):
        images, targets = batch()
        mix = mixing.draw(np.random.RandomState(seed), 17, 23)
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            expected, labels = theirs(batch()[0], targets)
        finally:
            np.random.set_state(state)
        assert torch.equal(mix_images(images, mix), expected)
        torch.testing.assert_close(mixing.labels(targets, mix), labels)
        kinds.add("cut" if mix.box else "same" if mix.weight == 1 else "blend")
    assert (
        kinds
        == {
            "both": {"cut", "blend"},
            "mixup": {"blend"},
            "cutmix": {"cut"},
            "at times": {"cut", "blend", "same"},
        }[name]
    )


@pytest.mark.parametrize("name", CASES)
def test_labels_are_distributions_and_say_what_is_seen(name):
    mixing = Mixing(5, **CASES[name])
    for seed in range(20):
        mix = mixing.draw(np.random.RandomState(seed), 16, 16)
        labels = mixing.labels(torch.arange(5), mix)
        torch.testing.assert_close(labels.sum(1), torch.ones(5))
        seen = mix_images(torch.arange(5.0)[:, None, None, None].expand(-1, 3, 16, 16).clone(), mix)
        # the middle sample is its own partner
        torch.testing.assert_close(seen[2], torch.full_like(seen[2], 2.0))
        torch.testing.assert_close(seen[0].mean(), torch.tensor(4 * (1 - mix.weight)), rtol=1e-4, atol=1e-4)


def test_a_draw_depends_on_seed_and_samples_alone():
    mixing = Mixing(5)

    def drawn(seed, keys):
        return mixing.draw(mixing_generator(seed, 1, keys), 32, 32)

    keys = [(0, 3), (0, 8)]
    torch.manual_seed(0), np.random.seed(0)
    assert drawn(0, keys) == drawn(0, keys)
    assert len({drawn(seed, [(epoch, i), (epoch, 1)]) for seed in (0, 1) for epoch in (0, 1) for i in (3, 4)}) == 8
    assert np.random.random_sample() == pytest.approx(0.5488135)  # numpy's own stream was not moved


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"mixup": -1}, {"switch": 2}, {"smoothing": 1.5}])
def test_numbers_that_make_no_mixing(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Mixing(**{"classes": 5} | wrong)


def test_no_mix_leaves_the_images():
    images, _ = batch()
    assert torch.equal(mix_images(images.clone(), Mix()), images)
