"""ImageNet's transforms: timm's for the same seeds, the same in any process, and the global generators left alone."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_augment
from timm.data import create_transform

from pela_vl.data.vision_transforms import AugmentTransform, CentreTransform, draw_seeds


def photograph(width=61, height=47, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("options", [{}, {"erasing": 1.0, "rand_augment": ""}, {"hflip": 0.0, "min_scale": 0.5}])
def test_a_view_is_timms_for_the_same_seeds(options):
    ours = AugmentTransform(32, **options)
    theirs = create_transform(
        32,
        is_training=True,
        scale=(options.get("min_scale", 0.08), 1.0),
        hflip=options.get("hflip", 0.5),
        color_jitter=None,
        auto_augment=options.get("rand_augment", "rand-m9-mstd0.5-inc1") or None,
        interpolation="bicubic",
        re_prob=options.get("erasing", 0.25),
        re_mode="pixel",
    )
    for seed in range(12):
        found, flipped = ours(photograph(), np.random.default_rng([seed, 1, 2]))
        first, second, third = draw_seeds(np.random.default_rng([seed, 1, 2]))
        random.seed(first), np.random.seed(second), torch.manual_seed(third)
        assert torch.equal(found, theirs(photograph())) and flipped is False
        assert found.shape == (3, 32, 32)


def test_a_view_depends_on_its_generator_alone_and_moves_no_other():
    transform = AugmentTransform(24)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = [transform(photograph(), np.random.default_rng([0, 0, i]))[0] for i in range(6)]
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1]) and torch.equal(torch.get_rng_state(), before[2])
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again = pickle.loads(pickle.dumps(transform))
    for i, view in enumerate(first):
        assert torch.equal(again(photograph(), np.random.default_rng([0, 0, i]))[0], view)
    assert len({view.sum().item() for view in first}) == 6


@pytest.mark.parametrize("policy", ["rnd-m9", "rand-x9", "rand-m9.5", "random-m9"])
def test_a_policy_that_timm_does_not_know_is_named(policy):
    with pytest.raises(ValueError, match=f"rand_augment '{policy}': is no policy of timm"):
        AugmentTransform(24, rand_augment=policy)


def test_generators_are_put_back_when_a_view_fails():
    random.seed(5)
    before = random.getstate()
    with pytest.raises((TypeError, AttributeError)):
        AugmentTransform(24)(None, np.random.default_rng(0))
    assert random.getstate() == before


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (224, 224), (36, 32)])
def test_the_centre_is_timms(resize, size):
    theirs = create_transform(size, is_training=False, crop_pct=size / resize, interpolation="bicubic")
    for picture in (photograph(300, 257), photograph(257, 300), photograph(40, 400)):
        found, _ = CentreTransform(size, resize)(picture)
        assert torch.equal(found, theirs(picture)) and found.shape == (3, size, size)


def test_a_crop_larger_than_the_resized_image_is_refused():
    with pytest.raises(ValueError, match="from 1 to resize"):
        CentreTransform(224, 200)


@pytest.mark.parametrize("name", timm_augment._RAND_INCREASING_TRANSFORMS)
@pytest.mark.parametrize("magnitude", [0, 3, 9, 10])
def test_no_operation_fails_at_any_magnitude_that_may_be_drawn(name, magnitude):
    transform = AugmentTransform(32, rand_augment="rand-m9-mstd0.5-inc1")
    policy = next(part for part in transform._transform.transforms if hasattr(part, "ops"))
    operation = next(op for op in policy.ops if op.name == name)
    operation.prob, operation.magnitude, operation.magnitude_std = 1.0, magnitude, 0
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    found = np.asarray(operation(image))
    assert found.shape == (32, 32, 3)
    if (name, magnitude) == ("PosterizeIncreasing", 10):
        assert not found.any()  # 0 bits are kept
    if (name, magnitude) == ("PosterizeIncreasing", 9):
        assert set(np.unique(found)) <= {0, 128}  # 1 bit
