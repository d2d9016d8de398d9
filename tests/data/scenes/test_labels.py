"""Labels of every pixel: where objects are drawn, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from pela_vl.data.scenes import Thing, boxes, render, sample_scene
from pela_vl.data.scenes.draw import object_masks
from pela_vl.data.scenes.labels import OTHER, SEGMENTATION_CLASSES, instance_map, label_map, visible_masks
from pela_vl.data.scenes.scene import BACKGROUNDS, SHAPES

SCENES = [sample_scene(4, split, index) for split in ("train", "val", "test") for index in range(12)]


def test_classes_are_the_shapes_then_the_backgrounds():
    assert len(SEGMENTATION_CLASSES) == 18 and SEGMENTATION_CLASSES == SHAPES + BACKGROUNDS and OTHER == 0


@pytest.mark.parametrize("size", [64, 128])
def test_a_label_map_holds_the_scenes_classes_alone(size):
    for scene in SCENES:
        found = label_map(scene, size)
        names = {SEGMENTATION_CLASSES[label - 1] for label in np.unique(found) if label}
        shapes = {thing.shape for thing in scene.things}
        assert found.dtype == np.uint8 and found.shape == (size, size)
        assert scene.background in names and names <= shapes | {scene.background}
        seen = instance_map(scene, size)
        background = 1 + SEGMENTATION_CLASSES.index(scene.background)
        assert np.array_equal(seen == 0, found == background)
        for number, thing in enumerate(scene.things, 1):
            assert set(np.unique(found[seen == number])) <= {OTHER, 1 + SHAPES.index(thing.shape)}


def test_labels_lie_where_the_image_changes_when_an_object_is_taken_away():
    """The renderer draws in order from one stream, so the last object's removal changes its own pixels and the specks."""
    for scene in SCENES[:12]:
        less = replace(scene, things=scene.things[:-1])
        inside = visible_masks(scene, 128)[-1]
        changed = (render(scene, 128).astype(int) != render(less, 128).astype(int)).any(-1)
        assert changed[inside].mean() > 0.98
        assert changed[~inside].mean() < 0.02  # specks, drawn last, and the anti-aliased border


def test_what_a_later_object_hides_is_not_seen():
    scene = SCENES[0]
    under, over = (
        Thing("red", "square", "large", "plain", 0.5, 0.5, 0.4),
        Thing("blue", "circle", "small", "plain", 0.5, 0.5, 0.2),
    )
    stacked = replace(scene, things=(under, over))
    masks = visible_masks(stacked, 128)
    whole = object_masks(stacked, 128)
    assert not (masks[0] & masks[1]).any()
    assert masks[1].sum() == whole[1].area and masks[0].sum() == whole[0].area - whole[1].area
    hidden = visible_masks(replace(scene, things=(over, under)), 128)
    assert not hidden[0].any() and hidden[1].sum() == whole[0].area


def test_visible_masks_lie_within_the_boxes():
    for scene in SCENES:
        for mask, (x, y, width, height) in zip(visible_masks(scene, 64), boxes(scene, 64), strict=True):
            assert not np.delete(mask, np.s_[y : y + height], 0).any()
            assert not np.delete(mask, np.s_[x : x + width], 1).any()
