"""Models from checkpoints of every kind, and what training makes of them."""

from dataclasses import replace

import pytest
import torch
from published_files import VOCAB as FOREIGN_VOCAB
from published_files import fill, published_shapes
from tiny_albef import CONFIG, tiny_albef, tiny_batch
from tiny_runs import loss_of

from pela_vl.base.distributed import World
from pela_vl.base.errors import UserError
from pela_vl.checkpoints import interpolate_pos_embed
from pela_vl.checkpoints.albef import describe, load_model
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.ours import save_model
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pela_vl.lowrank import rank_plan
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.settings import MethodSettings, ModelSettings, Settings
from pela_vl.training.assemble import assemble
from pela_vl.workloads.pretraining import Pretraining
from pela_vl.workloads.retrieval import Retrieval

ONE = World(0, 1, torch.device("cpu"), launched=False)


def stored(tmp_path, low_rank=False, mlm=True, seed=3):
    model = tiny_albef(seed, low_rank=low_rank, mlm=mlm)
    path = tmp_path / f"model-{low_rank}-{mlm}.safetensors"
    save_model(path, model, Header("albef", CONFIG, rank_plan(model), "scenes"))
    return model.eval(), str(path)


def outputs(model, batch):
    image = model.visual_encoder(batch.images).tokens
    text = model.text_encoder.encode(batch.ids, batch.mask).tokens
    keys_values = model.text_encoder.image_keys_values(image)
    made = [model.image_feature(image), model.text_feature(text), model.match(text, batch.mask, keys_values)]
    if model.mlm_head is not None:
        states = model.masked_states(model.text_encoder.encode(batch.masked_ids, batch.mask), batch.mask, keys_values)
        made.append(model.mlm_logits(states.tokens.flatten(0, 1)))
    return made


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("mlm", [False, True])
def test_a_stored_model_gives_the_same_outputs(tmp_path, low_rank, mlm):
    model, path = stored(tmp_path, low_rank, mlm)
    loaded = load_model(ModelSettings(), path, mlm)
    assert loaded.header.config == CONFIG and loaded.header.tokenizer == "scenes"
    assert loaded.header.ranks == rank_plan(loaded.model) == rank_plan(model)
    batch = tiny_batch()
    for own, other in zip(outputs(loaded.model.eval(), batch), outputs(model, batch), strict=True):
        assert torch.equal(own, other)


def test_the_mlm_head_is_dropped_or_left_random_as_wanted(tmp_path):
    _, with_head = stored(tmp_path, mlm=True)
    assert load_model(ModelSettings(), with_head, mlm=False).model.mlm_head is None
    _, without = stored(tmp_path, mlm=False)
    assert load_model(ModelSettings(), without, mlm=True).model.mlm_head is not None


@pytest.mark.parametrize("size", [16, 64])
def test_positions_are_interpolated_to_another_image_size(tmp_path, size):
    model, path = stored(tmp_path)
    loaded = load_model(ModelSettings(image_size=size), path, mlm=True)
    assert loaded.header.config.image_size == size
    assert loaded.model.visual_encoder(torch.zeros(1, 3, size, size)).tokens.shape[1] == 1 + (size // 16) ** 2
    own, state = loaded.model.state_dict(), model.state_dict()
    position = "visual_encoder.pos_embed"
    torch.testing.assert_close(own[position], interpolate_pos_embed(state[position], size // 16))
    assert all(torch.equal(own[name], value) for name, value in state.items() if name != position)


def test_settings_that_the_file_contradicts(tmp_path):
    _, path = stored(tmp_path)
    for settings, match in (
        (ModelSettings(size="albef_base"), "model.size is albef_base"),
        (ModelSettings(size="albef_huge"), "albef_huge"),
        (ModelSettings(overrides={"text_depth": 3}), "model.overrides"),
        (ModelSettings(image_size=40), "multiple of the patch size"),
    ):
        with pytest.raises(UserError, match=match):
            load_model(settings, path, mlm=True)
    assert load_model(ModelSettings(size="albef_test"), path, mlm=True).header.config == CONFIG


def test_files_that_cannot_be_loaded(tmp_path):
    _, path = stored(tmp_path)
    content = open(path, "rb").read()
    for name, data in (("cut.safetensors", content[:-100]), ("cut.pth", b"PK\x03\x04 no"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name) as error:
            load_model(ModelSettings(), str(tmp_path / name), mlm=True)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="absent"):
        load_model(ModelSettings(), str(tmp_path / "absent.pth"), mlm=True)


def test_new_models(tmp_path):
    loaded = load_model(ModelSettings(size="albef_test", overrides={"text_depth": 3}), None, True, vocab_size=77)
    assert loaded.header.config == replace(ALBEF_SIZES["albef_test"], text_depth=3, vocab_size=77)
    assert len(loaded.model.text_encoder.encoder.layer) == 3
    for settings, match in (
        (ModelSettings(size="albef_tset"), "albef_tset"),
        (ModelSettings(size="albef_test", overrides={"depth": 3}), "'depth'"),
    ):
        with pytest.raises(UserError, match=match):
            load_model(settings, None, True, vocab_size=77)
    with pytest.raises(UserError, match="model.tokenizer"):
        load_model(ModelSettings(size="albef_test"), None, True)


def test_dropout_is_that_of_the_settings(tmp_path):
    _, path = stored(tmp_path)
    model = load_model(ModelSettings(dropout=0.3, drop_path=0.2), path, mlm=True).model
    assert model.text_encoder.embeddings.dropout.p == 0.3
    assert model.text_encoder.encoder.layer[3].crossattention.attention_dropout == 0.3
    assert model.visual_encoder.blocks[1].drop_path1.drop_prob == pytest.approx(0.2)


# --- published files in training


@pytest.fixture
def tokenizer(tmp_path):
    Tokenizer([*SPECIAL_TOKENS, *(f"w{i}" for i in range(FOREIGN_VOCAB - 5))]).save(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def foreign(tmp_path, file):
    state = fill(published_shapes(file))
    state = {name: value * 0.1 if value.is_floating_point() else value for name, value in state.items()}
    if "temp" in state:
        state["temp"] = torch.tensor(0.07)
    path = tmp_path / f"{file}.pth"
    torch.save({"model": state, "epoch": 3}, path)
    return str(path), state


def training_settings(checkpoint, tokenizer, mlm, method="full"):
    settings = Settings(method=MethodSettings(method))
    settings.init.checkpoint, settings.model.tokenizer = checkpoint, tokenizer
    settings.losses.mlm, settings.losses.queue_size = float(mlm), 6
    return settings


def one_step(trainee, mlm, size=16):
    batch = tiny_batch(3, mlm=mlm, length=7)
    batch.images.resize_(3, 3, size, size).normal_()
    with torch.no_grad(), trainee.run.autocast():
        prepared = trainee.step.prepare(batch, 0.4, True)
        extra = trainee.method.prepare(batch)
    output = trainee.backend.forward(batch, prepared)
    output.terms.update(trainee.method.terms(output.features, extra))
    loss = loss_of(output)
    trainee.backend.backward(loss)
    return loss.item(), trainee.backend.step(1e-4), output


@pytest.mark.parametrize("file", ["pretrain", "pretrain_lowrank"])
def test_a_published_pretrained_model_goes_on_pretraining_with_its_ema_model(tmp_path, tokenizer, file):
    path, state = foreign(tmp_path, file)
    trainee = assemble(Pretraining(), training_settings(path, tokenizer, mlm=True), ONE)
    block = "blocks.3.attn.qkv.0.weight" if file == "pretrain_lowrank" else "blocks.3.attn.qkv.weight"
    own = block.replace(".0.weight", ".down.weight")
    assert torch.equal(trainee.run.model.visual_encoder.state_dict()[own], state[f"visual_encoder.{block}"])
    ema = trainee.step.ema.model
    assert torch.equal(ema.visual_encoder.state_dict()[own], state[f"visual_encoder_m.{block}"])
    assert torch.equal(ema.mlm_head.bias, state["text_encoder_m.cls.predictions.bias"])
    assert bool(trainee.run.header.ranks) == (file == "pretrain_lowrank")
    loss, norm, _ = one_step(trainee, mlm=True)
    assert 0 < loss < float("inf") and norm > 0


def test_a_teacher_may_stand_in_for_the_ema_model(tmp_path, tokenizer):
    path, _ = foreign(tmp_path, "pretrain")
    settings = training_settings(path, tokenizer, mlm=True, method="pela")
    settings.compress.kappa, settings.losses.fd, settings.losses.soft_targets = 3.0, 1.0, "teacher"
    trainee = assemble(Pretraining(), settings, ONE)
    assert trainee.step.ema is None
    assert trainee.step.teacher is trainee.method.teacher
    loss, norm, _ = one_step(trainee, mlm=True)
    assert 0 < loss < float("inf") and norm > 0
    settings.method.name, settings.compress.kappa = "full", None
    with pytest.raises(UserError, match="losses.soft_targets"):
        assemble(Pretraining(), settings, ONE)


def test_pela_from_a_published_dense_model(tmp_path, tokenizer):
    path, _ = foreign(tmp_path, "pretrain")
    settings = training_settings(path, tokenizer, mlm=True, method="pela")
    settings.compress.kappa, settings.losses.fd, settings.losses.rwp = 3.0, 1.0, 1.0
    trainee = assemble(Pretraining(), settings, ONE)
    ema = trainee.step.ema.model
    for (
        name,
        value,
    ) in ema.state_dict().items():  # dense EMA weights have no factors: the EMA model is copied from the student
        assert torch.equal(value, trainee.run.model.state_dict()[name]), name
    loss, norm, output = one_step(trainee, mlm=True)
    assert output.terms.keys() == {"itc", "itm", "mlm", "fd", "rwp"}
    assert 0 < loss < float("inf") and norm > 0


@pytest.mark.parametrize("file", ["pretrain", "pretrain_lowrank", "retrieval"])
def test_published_models_go_into_retrieval_at_another_size(tmp_path, tokenizer, file):
    path, state = foreign(tmp_path, file)
    settings = training_settings(path, tokenizer, mlm=False)
    settings.model.image_size = 32
    trainee = assemble(Retrieval(), settings, ONE)
    assert trainee.run.model.mlm_head is None
    assert torch.equal(trainee.run.model.itm_head.weight, state["itm_head.weight"])
    loss, norm, output = one_step(trainee, mlm=False, size=32)
    assert output.terms.keys() == {"itc", "itm"} and 0 < loss < float("inf") and norm > 0


def test_kinds_that_are_no_start_for_these_tasks(tmp_path, tokenizer):
    for file in ("ve", "vqa"):
        path, _ = foreign(tmp_path, file)
        with pytest.raises(UserError, match="this task starts from"):
            load_model(ModelSettings(), path, mlm=False)


def test_assembling_says_what_does_not_go_together(tmp_path, tokenizer):
    dense, _ = foreign(tmp_path, "pretrain")
    low, _ = foreign(tmp_path, "pretrain_lowrank")
    for checkpoint, kappa, match in ((dense, None, "compress.kappa"), (low, None, "init.teacher"), (low, 3.0, "low")):
        settings = training_settings(checkpoint, tokenizer, mlm=True, method="pela")
        settings.compress.kappa = kappa
        with pytest.raises(UserError, match=match):
            assemble(Pretraining(), settings, ONE)
    settings = training_settings(dense, "bert-base-uncased", mlm=True)
    with pytest.raises(UserError, match="30522"):
        assemble(Pretraining(), settings, ONE)
    settings = training_settings(dense, tokenizer, mlm=True)
    settings.compress.kappa, settings.compress.exclude = 3.0, ["no_such_part"]
    with pytest.raises(UserError, match="no_such_part"):
        assemble(Pretraining(), settings, ONE)


def test_a_low_rank_student_with_its_dense_teacher_named(tmp_path, tokenizer):
    low, _ = foreign(tmp_path, "pretrain_lowrank")
    dense, state = foreign(tmp_path, "pretrain")
    settings = training_settings(low, tokenizer, mlm=True, method="pela")
    settings.init.teacher, settings.losses.fd, settings.losses.rwp = dense, 1.0, 1.0
    trainee = assemble(Pretraining(), settings, ONE)
    name = "visual_encoder.blocks.0.mlp.fc1"
    layer = trainee.run.model.get_submodule(name)
    places = [
        stacked[layers.index(layer)] for layers, stacked in trainee.method.perturbation._groups if layer in layers
    ]
    assert len(places) == 1 and torch.equal(places[0], state[f"{name}.weight"])
    assert not any(p.requires_grad for p in trainee.method.teacher.model.parameters())
    optimised = {id(p) for group in trainee.backend.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in trainee.run.model.parameters()}


def test_description(tmp_path):
    assert "low rank (" in describe(stored(tmp_path, low_rank=True)[1])
    assert describe(foreign(tmp_path, "pretrain")[0]).endswith("pretrain, dense, 16 px, with EMA weights")
