"""Single objects: a function of (seed, split, index), balanced, and read as a folder a class."""

import numpy as np
import pytest

from pela_vl.base.errors import UserError
from pela_vl.data.scenes import render
from pela_vl.data.scenes.objects import ObjectRequest, build_objects, sample_object
from pela_vl.data.sets.labelled import load_labelled

SMALL = ObjectRequest(train=230, val=100, seed=2, image_size=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects") / "set"
    assert build_objects(SMALL, folder, report=False)
    return folder


def test_the_folders_are_the_classes(made):
    train, val = load_labelled([made / "train"]), load_labelled([made / "val"])
    assert list(train.classes) == SMALL.classes == list(val.classes) and len(train.classes) == 100
    assert set(np.bincount(train.targets)) == {2, 3} and set(np.bincount(val.targets)) == {1}
    assert not (made / "test").exists()


def test_the_class_is_what_is_drawn_and_splits_differ():
    for textured in (False, True):
        names = set()
        for index in range(400):
            scene, name = sample_object(0, "train", index, textured)
            (thing,) = scene.things
            assert name.split("_")[:2] == [thing.colour, thing.shape] and (not textured or name.endswith(thing.texture))
            names.add(name)
        assert len(names) == (400 if textured else 100) and names == set(ObjectRequest(1, 1, textured=textured).classes)
    images = [render(sample_object(0, split, 5)[0], 32) for split in ("train", "val")]
    assert not np.array_equal(*images) and images[0].shape == (32, 32, 3)
    assert np.array_equal(render(sample_object(0, "train", 5)[0], 32), images[0])


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"image_size": 16}, {"seed": -1}])
def test_requests_that_make_no_set(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        ObjectRequest(**{"train": 1, "val": 1} | wrong)
