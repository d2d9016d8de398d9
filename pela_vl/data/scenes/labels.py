"""A scene's labels for every pixel: which object is seen there, and its class for segmentation.

Shapes: s image side, n objects.
"""

import numpy as np

from .draw import object_masks, outline_width, pose
from .masks import shape_masks
from .scene import BACKGROUNDS, SHAPES, Scene

OTHER = 0  # ADE20K's label of pixels that are of no class
SEGMENTATION_CLASSES = (*SHAPES, *BACKGROUNDS)  # label k of a label map is SEGMENTATION_CLASSES[k - 1]


def instance_map(scene: Scene, image_size: int) -> np.ndarray:
    """uint8 [s, s]: 1 + the number in `scene.things` of the object, outline included, that is seen there; 0 for none.

    Objects are drawn in order, so a later one hides an earlier one.
    """
    found = np.zeros((image_size, image_size), np.uint8)
    for number, mask in enumerate(object_masks(scene, image_size), 1):
        height, width = mask.inside.shape
        found[mask.top : mask.top + height, mask.left : mask.left + width][mask.inside] = number
    return found


def visible_masks(scene: Scene, image_size: int) -> np.ndarray:
    """bool [n, s, s]: the pixels of each object, outline included, that no later object hides. One may be empty."""
    numbers = np.arange(1, len(scene.things) + 1)
    return np.asarray(instance_map(scene, image_size)[None] == numbers[:, None, None])


def label_map(scene: Scene, image_size: int) -> np.ndarray:
    """uint8 [s, s] in ADE20K's form: 1 .. 18 of `SEGMENTATION_CLASSES`, and `OTHER` where an object's outline is seen."""
    found = np.full((image_size, image_size), 1 + len(SHAPES) + BACKGROUNDS.index(scene.background), np.uint8)
    for thing in scene.things:
        top, left, diameter, angle = pose(thing, image_size)
        fill, whole = shape_masks(thing.shape, diameter, angle, outline_width(image_size))
        window = found[top : top + len(fill), left : left + fill.shape[1]]
        window[whole[:, :, 0] > 0.5] = OTHER
        window[fill[:, :, 0] > 0.5] = 1 + SHAPES.index(thing.shape)
    return found
