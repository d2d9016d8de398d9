"""Released image classifiers load strictly, and compute what timm computes with them."""

import pytest
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from vision_files import DEIT3, SWIN, VIT, released, released_low_rank, timm_twin

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.vision import convert_vision, load_vision
from pela_vl.lowrank import low_rank_layers, rank_plan
from pela_vl.models.vision import VisionConfig

KINDS = {"deit_base": VIT, "deit_3": DEIT3, "swin": SWIN}


def images(config):
    size = config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def changed(config, **changes):
    return VisionConfig(**(config.as_dict() | changes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["released", "timm", "safetensors", "folder", "backbone"])
def test_every_form_of_file_gives_timms_logits(kind, form, tmp_path):
    config = KINDS[kind]
    twin = timm_twin(config)
    state = twin.state_dict() if form in ("timm", "safetensors", "folder") else released(twin, config.backbone)
    if form == "backbone":
        state = {f"backbone.{name}": value for name, value in state.items()}
    source = tmp_path / "weights.pth"
    if form in ("safetensors", "folder"):
        (tmp_path / "hub").mkdir()
        source = tmp_path / "hub" / "model.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, source)
        source = source.parent if form == "folder" else source
    else:
        torch.save({"model": state}, source)
    model, notes = load_vision(source, config)
    torch.testing.assert_close(model.eval()(images(config)).logits, twin(images(config)))
    if kind == "swin" and form == "released":
        assert sum("relative_position_index: ignored" in note for note in notes) == 6
        assert sum("attn_mask: ignored" in note for note in notes) == 2


@pytest.mark.parametrize("kind", ["deit_base", "swin"])  # timm has no map of DeiT-III's gamma_1: see the logits above
def test_names_are_those_that_timm_gives_a_released_file(kind):
    config = KINDS[kind]
    twin = timm_twin(config)
    state = released(twin, config.backbone)
    theirs = (swin_filter if kind == "swin" else vit_filter)(dict(state), twin)
    ours = convert_vision(state)
    assert {name.removeprefix("backbone.") for name in ours.weights} == set(theirs)
    assert ours.classes == 7 and not ours.ranks
    for name, value in theirs.items():
        torch.testing.assert_close(ours.weights["backbone." + name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_released_factors_load_with_their_ranks(kind):
    config = KINDS[kind]
    state = released_low_rank(released(timm_twin(config), config.backbone))
    model, _ = load_vision({"model": state}, config)
    layers = low_rank_layers(model)
    assert len(layers) == 4 * sum(config.depths) and set(rank_plan(model).values()) == {3}
    dense = released(timm_twin(config), config.backbone)
    first = "layers.0.blocks.1.mlp.fc1" if kind == "swin" else "blocks.1.mlp.fc1"
    expected = state[first + ".1.weight"] @ state[first + ".0.weight"]
    torch.testing.assert_close(layers["backbone." + first].dense_weight(), expected)
    torch.testing.assert_close(layers["backbone." + first].up.bias, dense[first + ".bias"])


def test_a_downsample_goes_to_the_stage_that_it_leads_to():
    twin = timm_twin(SWIN)
    state = released(twin, SWIN.backbone)
    assert "layers.0.downsample.norm.weight" in state and "layers.2.downsample.norm.weight" not in state
    weights = convert_vision(state).weights
    torch.testing.assert_close(
        weights["backbone.layers.2.downsample.reduction.weight"], state["layers.1.downsample.reduction.weight"]
    )
    # a file without the first downsample is timm's, not one whose names are to be shifted
    assert convert_vision(twin.state_dict()).weights.keys() == weights.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_classes_starts_the_head_alone_anew(kind):
    config = KINDS[kind]
    state = released(timm_twin(config), config.backbone)
    model, notes = load_vision(state, changed(config, classes=3))
    assert model(images(config)).logits.shape == (2, 3) and any(note.startswith("head: starts anew") for note in notes)
    headless = {name: value for name, value in state.items() if not name.startswith("head.")}
    model, notes = load_vision(headless, config)
    assert any("no classifier" in note for note in notes)


def test_positions_of_another_size_are_resampled_as_timm_does():
    import timm

    for config, size in ((VIT, 80), (DEIT3, 80)):
        model, _ = load_vision(released(timm_twin(config), config.backbone), changed(config, image_size=size))
        twin = timm.create_model(
            config.backbone, num_classes=7, img_size=size, embed_dim=32, depth=2, num_heads=2, dynamic_img_size=True
        )
        other = timm_twin(config)
        expected = vit_filter(dict(other.state_dict()), twin)["pos_embed"]
        torch.testing.assert_close(model.backbone.pos_embed, expected)
        assert model.backbone.pos_embed.shape[1] == 25 + (config is VIT)
    wider, _ = load_vision(released(timm_twin(SWIN), SWIN.backbone), changed(SWIN, window=8))
    assert wider.backbone.layers[0].blocks[0].attn.relative_position_bias_table.shape == (225, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"blocks.0.attn.extra": torch.zeros(1)}), "1 keys of this vit checkpoint are unknown"),
        (lambda s: s.pop("blocks.1.norm1.bias"), "1 tensors missing: backbone.blocks.1.norm1.bias"),
        (lambda s: s.update({"norm.bias": torch.zeros(5)}), r"of another shape: backbone.norm.bias \[5\]"),
        (lambda s: s.update({"blocks.0.attn.qkv.0.weight": torch.zeros(2, 32)}), "expected two factors"),
        (lambda s: s.update({"backbone.norm.bias": s["norm.bias"]}), "name one parameter twice"),
        (lambda s: [s.pop(name) for name in list(s) if "patch_embed" in name], "no checkpoint of a ViT"),
        (lambda s: s.update({"blocks.2.norm1.bias": s["norm.bias"]}), "unknown: backbone.blocks.2.norm1.bias"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    state = dict(released(timm_twin(VIT), VIT.backbone))
    change(state)
    torch.save({"model": state}, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=message) as error:
        load_vision(tmp_path / "broken.pth", VIT)
    assert "broken.pth" in str(error.value)


def test_a_file_for_another_model_is_refused():
    state = released(timm_twin(SWIN), SWIN.backbone)
    with pytest.raises(UserError, match="does not fit deit_base"):
        load_vision(state, VIT)


@pytest.mark.parametrize("name", ["deit_base_patch16_224", "deit3_large_patch16_224", "swin_base_patch4_window7_224"])
def test_every_name_of_the_full_size_files_is_mapped(name):
    """On the meta device: the names of the real models, with no left-over."""
    import timm

    with torch.device("meta"):
        twin = timm.create_model(name)
    state = released(twin, name)
    converted = convert_vision(state)
    assert len(converted.weights) == len(twin.state_dict()) and converted.classes == 1000
    if "swin" in name:
        ignored = sum("ignored" in note for note in converted.notes)
        assert ignored == 24 + 11  # an index in each block, a mask in each shifted one (none in the last stage)
