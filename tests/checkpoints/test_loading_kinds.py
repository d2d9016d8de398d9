"""Every kind of published checkpoint loads strictly into its model; a task's model starts from a pre-trained one."""

import argparse
import re
from dataclasses import replace

import pytest
import torch
from published_files import DEPTH, DIM, FUSION, bert, fill, mlm, published_shapes, vit
from safetensors.torch import save_file
from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints import interpolate_pos_embed
from pela_vl.checkpoints.albef import describe, load_entailment, load_model, load_vqa
from pela_vl.checkpoints.ours import save_model
from pela_vl.checkpoints.unimodal import start_from_bert, start_from_deit
from pela_vl.lowrank import rank_plan
from pela_vl.models.albef.vqa import AlbefVqa
from pela_vl.models.ema import EmaModel
from pela_vl.settings import ModelSettings

LAYERS = 4 * DEPTH + 6 * DEPTH + 4 * FUSION
"""Linears of both encoders."""
TEXT_PARTS = ("text_encoder.", "text_decoder.", "mlm_head.")


def ema_weights(loaded, without=()):
    """What an EMA model of the loaded model starts from."""
    ema = EmaModel(loaded.model, without)
    assert ema.start_from(loaded.ema)
    return ema.model.state_dict()


def without_ema(state):
    return {name: value for name, value in state.items() if "_m." not in name and "queue" not in name}


def saved(folder, content, name="published.pth") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def published(name: str) -> str:
    """The published name of one of our parameters, without `bert.`, which only some files have."""
    name = name.replace("text_decoder.mlm_head.", "text_decoder.cls.predictions.")
    name = re.sub(r"^mlm_head\.", "text_encoder.cls.predictions.", name)
    for ours, theirs in ((".down.weight", ".0.weight"), (".up.weight", ".1.weight"), (".up.bias", ".1.bias")):
        name = name.removesuffix(ours) + theirs if name.endswith(ours) else name
    return name


def assert_equal_to_file(values: dict[str, torch.Tensor], state: dict[str, torch.Tensor], ema: bool = False):
    """Every one of our tensors is the file's of that name, and the names differ for different tensors."""
    bare = {name.replace("bert.", ""): value for name, value in state.items()}
    for name, value in values.items():
        key = published(name)
        if ema:
            part, _, rest = key.partition(".")
            key = f"{part}_m.{rest}"
        assert torch.equal(value, bare[key]), name


FILES = {
    "pretrain": ("pretrain", "model", load_model, True),
    "pretrain, released low rank": ("pretrain_lowrank", "model", load_model, True),
    "retrieval": ("retrieval", "model", load_model, True),
    "retrieval fine-tuned (mscoco, flickr30k)": ("retrieval", "model", load_model, False),
    "grounding (refcoco)": ("retrieval", None, load_model, True),
    "entailment": ("ve", "model", load_entailment, True),
    "entailment, no EMA weights": ("ve", None, load_entailment, False),
    "vqa": ("vqa", "model", load_vqa, True),
    "vqa, no EMA weights": ("vqa", "model", load_vqa, False),
}


def load_kind(load, settings, path):
    return load(settings, path, None) if load is load_model else load(settings, path)


@pytest.mark.parametrize("kind", FILES)
def test_published_file_loads(kind, tmp_path):
    file, top, load, ema = FILES[kind]
    state = fill(published_shapes(file))
    state = state if ema else without_ema(state)
    path = saved(tmp_path, {top: state, "epoch": 3} if top else state)
    loaded = load_kind(load, ModelSettings(), path)
    own = loaded.model.state_dict()
    assert_equal_to_file(own, state)
    assert bool(loaded.ema) is ema
    if ema:
        heads = ("itm_head", "temp") if load is load_model else ()
        wanted = ema_weights(loaded, heads)
        assert set(wanted) == {name for name in own if not name.startswith(("itm_head", "temp"))}
        assert_equal_to_file(wanted, state, ema=True)
    assert rank_plan(loaded.model) == loaded.header.ranks
    assert len(loaded.header.ranks) == (LAYERS if "low rank" in kind else 0)
    word = {load_model: "retrieval" if file == "retrieval" else "pretrain", load_vqa: "vqa"}.get(load, "entailment")
    assert loaded.header.kind == word
    rank = f"low rank ({LAYERS} layers)" if loaded.header.ranks else "dense"
    assert f"{word}, {rank}, {16 if word == 'pretrain' else 24} px" in describe(path)


@pytest.mark.parametrize("kind", FILES)
def test_round_trip_through_our_file_and_another_resolution(kind, tmp_path):
    file, top, load, _ = FILES[kind]
    first = load_kind(load, ModelSettings(), saved(tmp_path, fill(published_shapes(file))))
    ours = str(tmp_path / "ours.safetensors")
    save_model(ours, first.model, first.header, extra={"momentum." + k: v.contiguous() for k, v in first.ema.items()})
    again = load_kind(load, ModelSettings(), ours)
    assert again.header == first.header
    for before, after in ((first.model.state_dict(), again.model.state_dict()), (first.ema, again.ema)):
        assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    larger = load_kind(load, ModelSettings(image_size=32), ours)
    name = "visual_encoder.pos_embed"
    expected = interpolate_pos_embed(first.model.state_dict()[name], 8)
    assert torch.equal(larger.model.state_dict()[name], expected)
    assert torch.equal(larger.ema[name], interpolate_pos_embed(first.ema[name], 8))
    assert larger.header.config == replace(first.header.config, image_size=32)


@pytest.mark.parametrize("load", [load_model, load_entailment, load_vqa])
def test_a_stray_key_and_a_missing_one_are_named(load, tmp_path):
    file = {load_model: "pretrain", load_entailment: "ve", load_vqa: "vqa"}[load]
    state = without_ema(fill(published_shapes(file)))
    stray = saved(tmp_path, state | {"text_encoder.extra.weight": torch.zeros(2)}, "stray.pth")
    with pytest.raises(UserError, match=r"stray\.pth: 1 keys .* unknown: text_encoder\.extra\.weight$"):
        load_kind(load, ModelSettings(), stray)
    gone = "visual_encoder.blocks.3.norm1.bias"
    short = saved(tmp_path, {name: value for name, value in state.items() if name != gone}, "short.pth")
    with pytest.raises(
        UserError, match=r"short\.pth does not fit the model: 1 missing: visual_encoder\.blocks\.3\.norm1\.bias$"
    ):
        load_kind(load, ModelSettings(), short)


@pytest.mark.parametrize("load", [load_model, load_entailment, load_vqa])
def test_a_pickle_that_wants_code_is_refused(load, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for extra in (Trap(), argparse.Namespace(lr=1.0)):
        path = saved(tmp_path, {"model": fill(published_shapes("vqa")), "args": extra})
        with pytest.raises(UserError, match="would have to run code"):
            load_kind(load, ModelSettings(), path)
    assert not (tmp_path / "sprung").exists()


def test_the_wrong_kind_is_said(tmp_path):
    vqa, bert_file = (
        saved(tmp_path, fill(published_shapes("vqa")), "vqa.pth"),
        saved(tmp_path, bert_state(), "bert.pth"),
    )
    with pytest.raises(UserError, match="vqa.pth is of kind vqa; this task starts from a pre-trained or a retrieval"):
        load_model(ModelSettings(), vqa, None)
    with pytest.raises(UserError, match="is of kind vqa"):
        load_entailment(ModelSettings(), vqa)
    with pytest.raises(UserError, match="bert.pth is of kind bert"):
        load_vqa(ModelSettings(), bert_file)
    retrieval = saved(tmp_path, fill(published_shapes("retrieval")), "retrieval.pth")
    with pytest.raises(UserError, match="retrieval.pth has no MLM head"):
        load_vqa(ModelSettings(), retrieval)
    ours = str(tmp_path / "ours.safetensors")
    loaded = load_vqa(ModelSettings(), vqa)
    save_model(ours, loaded.model, loaded.header)
    with pytest.raises(UserError, match="ours.safetensors is of kind vqa"):
        load_model(ModelSettings(), ours, None)


@pytest.mark.parametrize("file", ["pretrain", "pretrain_lowrank"])
def test_an_answer_decoder_starts_from_the_fusion_layers(file, tmp_path):
    state = fill(published_shapes(file))
    loaded = load_vqa(ModelSettings(image_size=24), saved(tmp_path, {"model": state}))
    own, ema = loaded.model.state_dict(), loaded.ema
    bare = {name.replace("bert.", ""): value for name, value in state.items()}
    assert loaded.header.config.decoder_depth == DEPTH - FUSION and loaded.header.config.joint_dim is None
    assert loaded.header.kind == "vqa" and not loaded.queues
    assert rank_plan(loaded.model) == loaded.header.ranks
    assert len(loaded.header.ranks) == ((LAYERS + 10 * FUSION) if "low" in file else 0)
    assert set(ema) == set(own)
    for values, mark in ((own, ""), (ema, "_m")):
        for name, value in values.items():
            part, _, rest = published(name).partition(".")
            if part == "text_decoder":  # layer i of the decoder is layer i + 6 of the text encoder
                rest = re.sub(r"layer\.(\d+)", lambda m: f"layer.{int(m[1]) + FUSION}", rest)
                part = "text_encoder"
            expected = bare[f"{part}{mark}.{rest}"]
            if name == "visual_encoder.pos_embed":
                expected = interpolate_pos_embed(expected, 6)
            assert torch.equal(value, expected), name
    left = {note.partition(":")[0] for note in loaded.notes if "left behind" in note}
    assert left == {"itm_head", "temp", "text_proj", "vision_proj"}
    # The copies are the decoder's own: training it does not change the text encoder.
    with torch.no_grad():
        loaded.model.text_decoder.embeddings.word_embeddings.weight.add_(1)
    assert torch.equal(
        loaded.model.text_encoder.embeddings.word_embeddings.weight,
        bare["text_encoder.embeddings.word_embeddings.weight"],
    )


@pytest.mark.parametrize("file", ["pretrain", "pretrain_lowrank", "retrieval"])
def test_a_classifier_starts_on_the_encoders(file, tmp_path):
    state = fill(published_shapes(file))
    loaded = load_entailment(ModelSettings(), saved(tmp_path, {"model": state}))
    encoders = {k: v for k, v in loaded.model.state_dict().items() if not k.startswith("cls_head.")}
    assert_equal_to_file(encoders, state)
    ema = ema_weights(loaded)
    assert_equal_to_file({k: ema[k] for k in encoders}, state, ema=True)
    assert torch.equal(ema["cls_head.2.weight"], loaded.model.cls_head[2].weight)
    assert ema["cls_head.2.weight"].data_ptr() != loaded.model.cls_head[2].weight.data_ptr()
    assert loaded.header.kind == "entailment" and len(loaded.header.ranks) == (LAYERS if "low" in file else 0)
    assert any(note.startswith("itm_head: left behind") for note in loaded.notes)


def test_new_task_models_take_a_named_size():
    settings = ModelSettings(size="albef_test", overrides={"text_depth": 5, "fusion_layer": 3})
    vqa, entailment = load_vqa(settings, None, vocab_size=40), load_entailment(settings, None, vocab_size=40)
    assert vqa.header.config.decoder_depth == len(vqa.model.text_decoder.encoder.layer) == 2
    assert vqa.header.kind == "vqa" and entailment.header.kind == "entailment"
    assert len(entailment.model.text_encoder.encoder.layer) == 5
    other = load_vqa(ModelSettings(size="albef_test", overrides={"decoder_depth": 1}), None, vocab_size=40)
    assert len(other.model.text_decoder.encoder.layer) == 1
    with pytest.raises(UserError, match="'joint_dim' is none of"):
        load_vqa(ModelSettings(size="albef_test", overrides={"joint_dim": 8}), None, vocab_size=40)


def bert_state(head: bool = True) -> dict[str, torch.Tensor]:
    """bert-base-uncased's names: an MLM and a next-sentence head, a pooler, no cross-attention, the old norm names."""
    shapes = bert("bert.", fusion=DEPTH) | (mlm("cls.") if head else {})
    shapes |= {"bert.pooler.dense.weight": (DIM, DIM), "bert.pooler.dense.bias": (DIM,)}
    state = fill(shapes, seed=1)
    for name in [name for name in state if "LayerNorm." in name]:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[old] = state.pop(name)
    return state


def small(kind: str, tmp_path) -> nn.Module:
    """A model of the files' widths, with weights of its own."""
    load, file = {
        "pretrain": (load_model, "pretrain"),
        "retrieval": (load_model, "retrieval"),
        "entailment": (load_entailment, "ve"),
        "vqa": (load_vqa, "vqa"),
    }[kind]
    return load_kind(load, ModelSettings(), saved(tmp_path, fill(published_shapes(file)), "own.pth")).model


@pytest.mark.parametrize("form", ["safetensors folder", "bin folder", "file", "no head"])
@pytest.mark.parametrize("kind", ["pretrain", "retrieval", "entailment", "vqa"])
def test_bert_goes_into_every_text_part(kind, form, tmp_path):
    model, state, folder = small(kind, tmp_path), bert_state(head=form != "no head"), tmp_path / "bert"
    folder.mkdir()
    if form == "safetensors folder":
        save_file({name: value.clone() for name, value in state.items()}, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    notes = start_from_bert(model, folder if "folder" in form else folder / "pytorch_model.bin")
    named = {k.replace("bert.", "").replace("gamma", "weight").replace("beta", "bias"): v for k, v in state.items()}
    changed = 0
    for name, value in model.state_dict().items():
        key = re.sub(r"^text_(en|de)coder\.", "", name)
        key = re.sub(r"^mlm_head\.", "cls.predictions.", key)
        if key in named and name.startswith(TEXT_PARTS):  # an answer decoder takes BERT's lower layers
            assert torch.equal(value, named[key]), name
            changed += 1
        else:
            assert torch.equal(value, before[name]), name
            fresh = "mlm_head." in name and form == "no head"
            assert fresh or ".crossattention." in name or not name.startswith(TEXT_PARTS), name
    assert changed >= 4 + 16 * DEPTH + (16 * 6 if isinstance(model, AlbefVqa) else 0)
    assert any("pooler" in note for note in notes)


@pytest.mark.parametrize("kind", ["pretrain", "retrieval", "entailment", "vqa"])
def test_deit_goes_into_the_image_encoder(kind, tmp_path):
    model = small(kind, tmp_path)
    state = fill(vit("", 14) | {"head.weight": (10, DIM), "head.bias": (10,)}, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    notes = start_from_deit(model, saved(tmp_path, {"model": state}, "deit.pth"))
    for name, value in model.state_dict().items():
        key = name.removeprefix("visual_encoder.")
        if key == "pos_embed":
            assert torch.equal(value, interpolate_pos_embed(state[key], 4 if kind == "pretrain" else 6))
        else:
            assert torch.equal(value, state[key] if name != key else before[name]), name
    assert any(note.startswith("head.weight: ignored") for note in notes)


def test_a_start_of_the_wrong_kind_or_shape_is_refused(tmp_path):
    model = small("vqa", tmp_path)
    deit, bert_file = saved(tmp_path, fill(vit("", 14)), "deit.pth"), saved(tmp_path, bert_state(), "bert.pth")
    with pytest.raises(UserError, match="deit.pth: expected a bert checkpoint, found one of kind deit"):
        start_from_bert(model, deit)
    with pytest.raises(UserError, match="bert.pth: expected a deit checkpoint, found one of kind bert"):
        start_from_deit(model, bert_file)
    short = {name: value for name, value in bert_state().items() if ".layer.11." not in name}
    with pytest.raises(
        UserError, match=r"short.pth does not fit the model: 16 missing: text_encoder\.encoder\.layer\.11"
    ):
        start_from_bert(model, saved(tmp_path, short, "short.pth"))
    other = fill(vit("", 14) | {"blocks.12.norm1.weight": (DIM,)})
    with pytest.raises(UserError, match=r"1 left over: visual_encoder\.blocks\.12\.norm1\.weight"):
        start_from_deit(model, saved(tmp_path, other, "deep.pth"))
