"""An image classifier for a run: from a released file, from a checkpoint of ours, and anew."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from vision_files import SWIN, VIT, released, timm_twin

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.ours import save_model
from pela_vl.checkpoints.segmentation_loading import Heads, load_uper
from pela_vl.checkpoints.vision import ConvertedVision
from pela_vl.checkpoints.vision_loading import load_classifier, released_name
from pela_vl.data.normalization import CLIP, IMAGENET
from pela_vl.settings import ModelSettings

SIZES = {
    "vit": {"width": 32, "depths": [2], "heads": [2]},
    "swin": {"width": 8, "depths": [2, 2, 2], "heads": [1, 2, 4], "window": 4},
}


def released_file(kind, folder):
    config = VIT if kind == "vit" else SWIN
    file = folder / "released.pth"
    torch.save({"model": released(timm_twin(config), config.backbone)}, file)
    settings = ModelSettings(size=config.backbone, image_size=config.image_size, overrides=dict(SIZES[kind]))
    return config, str(file), settings


@pytest.mark.parametrize("kind", SIZES)
def test_a_released_file_ours_of_it_and_another_image_size(kind, tmp_path):
    config, file, settings = released_file(kind, tmp_path)
    loaded = load_classifier(settings, file, None)
    images = torch.randn(2, 3, config.image_size, config.image_size)
    expected = timm_twin(config)(images)
    torch.testing.assert_close(loaded.model.eval()(images).logits, expected)
    ours = tmp_path / "ours.safetensors"
    loaded.header.notes["classes"] = [*"abcdefg"]
    save_model(ours, loaded.model, loaded.header)
    again = load_classifier(ModelSettings(drop_path=0.2, drop_path_rule="constant"), str(ours), [*"abcdefg"])
    torch.testing.assert_close(again.model.eval()(images).logits, expected)
    assert not again.notes and again.header.config.drop_path == 0.2
    assert all(block.drop_path1.drop_prob == 0.2 for block in again.model.blocks)
    larger = load_classifier(ModelSettings(image_size=2 * config.image_size), str(ours), None)
    assert larger.header.config.image_size == 2 * config.image_size and larger.header.config.classes == 7
    assert larger.model(torch.randn(1, 3, *[2 * config.image_size] * 2)).logits.shape == (1, 7)


def test_as_many_classes_of_other_names_get_a_new_classifier(tmp_path):
    _, file, settings = released_file("vit", tmp_path)
    loaded = load_classifier(settings, file, [*"abcdefg"])
    assert not loaded.notes  # a released file names none: its seven are taken for these
    save_model(tmp_path / "ours.safetensors", loaded.model, loaded.header)
    other = load_classifier(ModelSettings(), str(tmp_path / "ours.safetensors"), [*"tuvwxyz"])
    assert any("head: starts anew" in note for note in other.notes) and other.header.notes["classes"] == [*"tuvwxyz"]
    name = "backbone.head.weight"
    assert not torch.equal(other.model.state_dict()[name], loaded.model.state_dict()[name])


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("vit_tiny_patch16_224", (0.5, 0.5, 0.5)),
        ("vit_base_patch16_clip_224.openai", CLIP.mean),
        ("deit_tiny_patch16_224", IMAGENET.mean),
    ],
)
def test_images_are_normalised_as_timm_does_it_for_the_model(tmp_path, name, mean):
    sizes = {"patch_size": 16, "width": 24, "depths": [2], "heads": [2]}
    loaded = load_classifier(ModelSettings(size=name, image_size=32, overrides=sizes), None, ("a", "b"))
    assert loaded.header.normalization.mean == pytest.approx(mean)
    torch.save(loaded.model.backbone.state_dict(), tmp_path / "timm.pth")
    foreign = load_classifier(
        ModelSettings(size=name, image_size=32, overrides=sizes), str(tmp_path / "timm.pth"), None
    )
    save_model(tmp_path / "ours.safetensors", foreign.model, foreign.header)
    ours = load_classifier(ModelSettings(), str(tmp_path / "ours.safetensors"), None)
    assert foreign.header.normalization == ours.header.normalization == loaded.header.normalization
    heads = Heads(16, 8, 0.0)
    for checkpoint in (None, str(tmp_path / "timm.pth"), str(tmp_path / "ours.safetensors")):
        settings = (
            ModelSettings() if str(checkpoint).endswith("safetensors") else ModelSettings(size=name, overrides=sizes)
        )
        settings.image_size = 32
        uper = load_uper(settings, checkpoint, ("x", "y", "z"), heads)
        assert uper.header.normalization == loaded.header.normalization


@pytest.mark.parametrize(
    ("kind", "width", "scaled", "name"),
    [
        ("vit", 768, False, "deit_base_patch16_224"),
        ("vit", 1024, True, "deit3_large_patch16_224"),
        ("swin", 128, False, "swin_base_patch4_window7_224"),
        ("vit", 384, False, None),
    ],
)
def test_the_three_released_files_need_no_size(kind, width, scaled, name):
    weights = {"backbone.patch_embed.proj.weight": torch.empty(width, 1)}
    weights |= {"backbone.blocks.0.ls1.gamma": torch.empty(1)} if scaled else {}
    if name is not None:
        assert released_name(ConvertedVision(kind, weights), "x.pth") == name
        return
    with pytest.raises(UserError, match="x.pth: a vit of width 384; set model.size"):
        released_name(ConvertedVision(kind, weights), "x.pth")


def test_what_does_not_go_together_is_said(tmp_path):
    _, file, settings = released_file("vit", tmp_path)
    ours = str(tmp_path / "ours.safetensors")
    loaded = load_classifier(settings, file, None)
    save_model(ours, loaded.model, loaded.header)
    for given, checkpoint, message in (
        (ModelSettings(), None, "wants model.size"),
        (ModelSettings(size="deit_tiny_patch16_224"), ours, "fixes them"),
        (ModelSettings(size=VIT.backbone, overrides={"layers": 2}), file, "'layers' is none of"),
        (ModelSettings(size=VIT.backbone, overrides={"depths": 2}), file, "model.overrides.depths"),
        (ModelSettings(size="resnet50"), file, "resnet50"),
    ):
        with pytest.raises(UserError, match=message):
            load_classifier(given, checkpoint, None)


DAMAGED = {
    "classes": (8, "classes is 8 and the tensors say 7"),
    "depths": ([10**9], "depths, added up, is 1000000000"),
    "width": (64, "width is 64 and the tensors say"),
    "image_size": (10**6, "positions of image_size"),
    "heads": (["2"], "heads .*want whole numbers"),
    "window": (2.5, "window 2.5: want whole numbers"),
    "drop_path": (1.5, "drop_path 1.5"),
    "backbone": ("resnet18", "resnet18: cannot be built"),
}


@pytest.mark.parametrize(
    ("kind", "entry"),
    [(kind, entry) for kind in SIZES for entry in DAMAGED if (kind, entry) != ("swin", "image_size")],  # any fits there
)
def test_a_damaged_header_is_one_line_that_names_the_file(kind, entry, tmp_path):
    value, match = DAMAGED[entry]
    _, file, settings = released_file(kind, tmp_path)
    loaded, path = load_classifier(settings, file, None), tmp_path / "ours.safetensors"
    save_model(path, loaded.model, loaded.header)
    with safe_open(path, "pt") as opened:
        content = json.loads(opened.metadata()["pela_vl"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    content["header"]["config"][entry] = value
    save_file(tensors, path, {"pela_vl": json.dumps(content)})
    with pytest.raises(UserError, match=match) as error:
        load_classifier(ModelSettings(), str(path), None)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_classifier_starts_from_the_image_encoder_of_an_albef(tmp_path):
    torch.manual_seed(4)
    albef = load_model(ModelSettings(size="albef_test"), None, False, 60)
    save_model(tmp_path / "albef.safetensors", albef.model, albef.header)
    source = str(tmp_path / "albef.safetensors")
    loaded = load_classifier(ModelSettings(), source, ("a", "b", "c"))
    size = albef.header.config.image_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        tokens = albef.model.eval().visual_encoder(images).tokens
        torch.testing.assert_close(loaded.model.eval().backbone.forward_features(images), tokens)
        assert loaded.model(images).logits.shape == (2, 3)
    assert loaded.untrained == ["head"] and loaded.header.normalization == albef.header.normalization == CLIP
    smaller = load_classifier(ModelSettings(image_size=size // 2), source, ("a", "b")).model
    assert smaller(images[:, :, : size // 2, : size // 2]).logits.shape == (2, 2)
    with pytest.raises(UserError, match="has no classifier"):
        load_classifier(ModelSettings(), source, None)
    with pytest.raises(UserError, match="model.size"):
        load_classifier(ModelSettings(size="vit_tiny_patch16_224"), source, ("a",))
