"""Tones of backgrounds and images: means over so many pixels that rounding does not count, and a step of one does."""

import numpy as np
import pytest

from pela_vl.data.scenes import render, sample_scene
from pela_vl.data.scenes.backgrounds import _brick, canvas, grain

# means, then deviations, of red, green and blue
TONES = {
    "grass": (105.099, 147.100, 78.613, 12.984, 14.573, 9.359),
    "sand": (218.206, 196.172, 146.235, 11.582, 11.840, 12.316),
    "sky": (157.521, 201.635, 241.081, 29.164, 16.379, 6.360),
    "night": (26.867, 28.860, 62.884, 12.427, 12.423, 13.866),
    "brick": (175.347, 125.039, 109.599, 17.622, 44.223, 47.807),
    "wood": (164.144, 121.800, 76.227, 29.093, 24.827, 18.812),
    "water": (65.764, 133.147, 166.891, 16.634, 17.098, 16.209),
    "snow": (224.924, 230.800, 240.536, 8.328, 7.244, 5.986),
}


@pytest.mark.parametrize("kind", TONES)
def test_a_change_of_a_background_raises_the_version(kind):
    pixels = canvas(kind, 64)
    assert pixels.shape == (256, 256, 3) and pixels.dtype == np.float32 and grain(64).shape == (128, 128, 3)
    assert [*pixels.mean((0, 1), dtype=float), *pixels.std((0, 1), dtype=float)] == pytest.approx(TONES[kind], abs=0.01)


def test_a_change_of_what_lies_on_it_raises_the_version():
    pixels = np.stack([render(sample_scene(1, "train", k), 64) for k in range(64)]).astype(float)
    assert pixels[:8].mean((1, 2, 3)) == pytest.approx(
        [118.031, 117.778, 123.867, 116.02, 98.78, 145.893, 137.699, 190.912], abs=0.02
    )
    assert [*pixels.mean((0, 1, 2)), *pixels.std((0, 1, 2))] == pytest.approx(
        [136.658, 135.141, 124.175, 72.699, 65.035, 67.958], abs=0.01
    )


def test_a_joint_ends_where_the_brick_begins():
    found = _brick(40, 5.0, np.random.default_rng(0))  # joints of exactly six pixels
    mortar = (found == (196, 188, 178)).all(2)
    assert mortar[:6].all() and mortar[:, :6].all() and not mortar[6:, 6:].any()
