"""A detector's start: from our classifier dense and low rank, a released Swin, one of its own, and what does not fit."""

import pytest
import torch
from coco_files import CLASSES
from vision_files import released, timm_twin

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.detection_loading import load_detector
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import load_ours
from pela_vl.checkpoints.ours import save_model
from pela_vl.lowrank import compress, rank_plan
from pela_vl.models.vision import VisionConfig, build_vision
from pela_vl.settings import DetectionSettings, ModelSettings

SWIN = VisionConfig("swin_base_patch4_window7_224", 7, 128, width=8, depths=(1, 1, 2, 1), heads=(1, 2, 4, 4), window=4)
SIZES = {"width": 8, "depths": [1, 1, 2, 1], "heads": [1, 2, 4, 4], "window": 4}
SMALL = DetectionSettings(channels=8, box_convs=1, box_width=16, mask_convs=1, proposals=[50, 20], samples=16)


def load(checkpoint, classes=CLASSES, detection=SMALL, **model):
    return load_detector(ModelSettings(**{"image_size": 128, **model}), detection, checkpoint, classes)


def classifier(path, kappa=None):
    """A file of ours with an image classifier, and its weights."""
    torch.manual_seed(1)
    model = build_vision(SWIN)
    if kappa:
        compress(model, kappa, exclude=["backbone.head", "backbone.patch_embed", "*.downsample"])
    save_model(
        path, model.state_dict(), Header("classification", SWIN, rank_plan(model), notes={"classes": list("abcdefg")})
    )
    return str(path), model.state_dict()


@pytest.mark.parametrize("kappa", [None, 1.5])
def test_a_classifier_gives_its_backbone_dense_or_low_rank(tmp_path, kappa):
    path, weights = classifier(tmp_path / "swin.safetensors", kappa)
    loaded = load(path)
    own = loaded.model.state_dict()
    taken = [name for name in own if name.startswith("backbone.")]
    assert all(torch.equal(own[name], weights[name]) for name in taken) and len(taken) > 40
    assert bool(loaded.header.ranks) == bool(kappa) and set(weights) - set(own) == {
        f"backbone.{part}.{kind}" for part in ("norm", "head.fc") for kind in ("weight", "bias")
    }
    assert loaded.header.kind == "detection" and loaded.header.notes["classes"] == list(CLASSES)
    assert any("backbone.norm: left behind" in note for note in loaded.notes)
    assert any("box_heads: starts anew" in note for note in loaded.notes)
    assert loaded.model.rules.proposals == (50, 20)
    save_model(tmp_path / "detector.safetensors", own, loaded.header)
    again = load_ours(tmp_path / "detector.safetensors").model.state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own) and own.keys() == again.keys()


def test_a_released_swin_gives_its_backbone(tmp_path):
    twin = timm_twin(SWIN)
    torch.save({"model": released(twin, "swin")}, tmp_path / "swin.pth")
    loaded = load(str(tmp_path / "swin.pth"), size=SWIN.backbone, overrides=dict(SIZES))
    own, theirs = loaded.model.state_dict(), twin.state_dict()
    shared = [name for name in theirs if f"backbone.{name}" in own]
    assert len(shared) > 40 and all(torch.equal(own[f"backbone.{name}"], theirs[name]) for name in shared)
    images = torch.randn(1, 3, 128, 128)
    maps = loaded.model.eval().pyramid(images, keep_hidden=True).hidden
    expected = twin.forward_features(images)
    normed = twin.norm(maps[-1].unflatten(1, (4, 4)))
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-4)


def test_other_classes_start_the_layers_of_the_classes_anew(tmp_path):
    torch.manual_seed(3)
    first = load(None, size=SWIN.backbone, overrides=dict(SIZES))
    save_model(tmp_path / "one.safetensors", first.model.state_dict(), first.header)
    same = load(str(tmp_path / "one.safetensors"))
    assert not same.notes and all(torch.equal(a, b) for a, b in zip(
        same.model.state_dict().values(), first.model.state_dict().values(), strict=True))  # fmt: skip
    loaded = load(str(tmp_path / "one.safetensors"), ("x", "y"))
    own, old = loaded.model.state_dict(), first.model.state_dict()
    changed = {name for name in own if own[name].shape != old[name].shape}
    assert changed == {
        f"{head}.{stage}.{layer}.{kind}"
        for head, layer in (("box_heads", "logits"), ("box_heads", "deltas"), ("mask_heads", "logits"))
        for stage in range(3)
        for kind in ("weight", "bias")
    }
    assert len(loaded.notes) == 9 and loaded.header.config.classes == 2
    assert load(str(tmp_path / "one.safetensors"), None).header.notes["classes"] == list(CLASSES)


def test_what_does_not_go_together_is_said(tmp_path):
    path, _ = classifier(tmp_path / "swin.safetensors")
    with pytest.raises(UserError, match="holds no detector, and data.train names no categories"):
        load(path, None)
    with pytest.raises(UserError, match="leave them out"):
        load(path, size="swin_tiny_patch4_window7_224")
    with pytest.raises(UserError, match="a new detector wants model.size"):
        load(None)
    with pytest.raises(UserError, match="stages of a Swin Transformer"):
        load(None, size="deit_tiny_patch16_224")
    torch.save({"model": timm_twin(VisionConfig("deit_base_patch16_224", 7, 48, width=32, depths=(2,), heads=(2,))).state_dict()},
               tmp_path / "vit.pth")  # fmt: skip
    with pytest.raises(UserError, match="Swin Transformer"):
        load(str(tmp_path / "vit.pth"), size="deit_base_patch16_224")
