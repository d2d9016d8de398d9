"""Label images: values to classes and back, and the file that pairs them."""

import json

import numpy as np
import pytest
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import ImageError
from pela_vl.data.label_images import (
    IGNORED,
    LabelValues,
    label_image_names,
    read_label_image,
    read_label_values,
    to_png,
)

VALUES = LabelValues(("a", "b", "c"), (3, 7, 1), (0, 255))


def test_decode_and_encode_are_inverse():
    pixels = np.array([[3, 7, 1], [0, 255, 3]], np.uint8)
    found = VALUES.decode(pixels, "x.png")
    assert found.tolist() == [[0, 1, 2], [IGNORED, IGNORED, 0]] and found.dtype == np.uint8
    assert VALUES.encode(np.array([[0, 1], [2, 2]])).tolist() == [[3, 7], [1, 1]]


def test_ade20ks_values():
    ade = LabelValues(tuple(str(k) for k in range(150)), tuple(range(1, 151)), (0,))
    pixels = np.arange(151, dtype=np.uint8)[None]
    assert ade.decode(pixels, "x")[0].tolist() == [255, *range(150)]
    assert np.array_equal(ade.encode(np.arange(150)), np.arange(1, 151))
    whole = LabelValues(tuple(map(str, range(254))), tuple(range(254)), (255,))
    assert whole.decode(np.arange(256, dtype=np.uint8)[None, [0, 253, 255]], "x")[0].tolist() == [0, 253, 255]
    with pytest.raises(ImageError, match="value 254"):
        whole.decode(np.array([[254]], np.uint8), "x")


def test_a_value_of_no_class_is_named():
    with pytest.raises(ImageError, match=r"x\.png: value 9 is no class's"):
        VALUES.decode(np.array([[3, 9]], np.uint8), "x.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": [{"name": "a", "value": 1}, {"name": "b", "value": 1}]}, "different whole numbers"),
        ({"classes": [{"name": "a", "value": 1}, {"name": "a", "value": 2}]}, "one name"),
        ({"classes": [{"name": "a", "value": 1}], "ignored": [1]}, "different whole numbers"),
        ({"classes": [{"name": "a", "value": 256}]}, "from 0 to 255"),
        ({"classes": [{"name": "a", "value": 1}], "ignored": 0}, "wants a list"),
        ({"classes": [{"name": "a"}]}, "value: is missing"),
        ({"classes": []}, "0 classes"),
        ([], "no list 'classes'"),
    ],
)
def test_a_file_that_names_no_classes(tmp_path, content, message):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_label_values(tmp_path / "classes.json")
    assert "classes.json" in str(caught.value) and "\n" not in str(caught.value)


def test_label_images_are_read_as_stored(tmp_path):
    pixels = np.array([[0, 3], [7, 255]], np.uint8)
    (tmp_path / "grey.png").write_bytes(to_png(pixels))
    palette = Image.fromarray(pixels, "P")
    palette.putpalette([255 - k // 3 for k in range(768)])
    palette.save(tmp_path / "palette.png")
    for name in ("grey.png", "palette.png"):
        assert np.array_equal(read_label_image(tmp_path, name), pixels)
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name, message in (("colour.png", "one 8-bit channel"), ("broken.png", "broken"), ("none.png", "none")):
        with pytest.raises(ImageError, match=message):
            read_label_image(tmp_path, name)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_is_read_as_stored(tmp_path, bits):
    """Programs that shrink PNG files write it; Pillow reads it as fractions of white."""
    values = np.arange(min(2**bits, 32), dtype=np.uint8).reshape(2, -1)
    Image.fromarray(values).save(tmp_path / "x.png", bits=bits)
    with Image.open(tmp_path / "x.png") as image:
        assert bits == 1 or (image.mode == "L" and image.tile[0].args == ("L" if bits == 8 else f"L;{bits}"))
    if bits == 1:
        pytest.raises(ImageError, read_label_image, tmp_path, "x.png")
    else:
        assert read_label_image(tmp_path, "x.png").tolist() == values.tolist()


def test_names_of_predictions_are_the_images_own_and_never_two_alike():
    assert label_image_names(["x/a.jpg", "y/b.JPEG"]) == ["a.png", "b.png"]
    assert label_image_names(["x/a.jpg", "y/a.jpg"]) == ["x__a.png", "y__a.png"]
    assert len(set(label_image_names(["x/a.jpg", "x/a.png"]))) == 2
