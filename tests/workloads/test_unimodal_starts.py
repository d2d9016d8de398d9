"""Pre-training that starts from BERT and a ViT, named by `init.bert` and `init.vit`."""

import pytest
import torch
from published_files import DEPTH, DIM, FUSION, MLP, PATCH, POSITIONS, VOCAB, bert, fill, mlm, vit
from safetensors.torch import save_file

from pela_vl.base.errors import UserError
from pela_vl.data.tokenizer import SPECIAL_TOKENS
from pela_vl.settings import Settings
from pela_vl.workloads.pretraining import Pretraining
from pela_vl.workloads.retrieval import Retrieval


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "words").mkdir()
    words = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(VOCAB - len(SPECIAL_TOKENS)))]
    (tmp_path / "words/vocab.txt").write_text("".join(f"{word}\n" for word in words))
    torch.save(
        fill(bert("bert.", fusion=DEPTH) | mlm("cls."), seed=1), tmp_path / "bert.bin"
    )  # its tied tensors stay tied
    save_file(fill(vit("", 3), seed=2), tmp_path / "vit.safetensors")
    made = Settings()
    made.model.size, made.model.tokenizer, made.model.image_size = "albef_test", str(tmp_path / "words"), 4 * PATCH
    made.model.overrides = {
        "patch_size": PATCH,
        "vision_dim": DIM,
        "vision_depth": DEPTH,
        "vocab_size": VOCAB,
        "text_dim": DIM,
        "text_depth": DEPTH,
        "text_mlp_dim": MLP,
        "fusion_layer": FUSION,
        "max_positions": POSITIONS,
    }
    made.init.bert, made.init.vit = str(tmp_path / "bert.bin"), str(tmp_path / "vit.safetensors")
    return made


@pytest.mark.parametrize("task", [Pretraining(), Retrieval()], ids=["pretraining", "retrieval"])
def test_both_encoders_start_from_the_named_files(settings, task):
    loaded = task.load(settings, None)
    text, image = fill(bert("bert.", fusion=DEPTH) | mlm("cls."), seed=1), fill(vit("", 3), seed=2)
    state = loaded.model.state_dict()
    for layer in (0, DEPTH - 1):  # a text-only layer and a fusion layer
        name = f"encoder.layer.{layer}.attention.self.query.weight"
        assert torch.equal(state[f"text_encoder.{name}"], text[f"bert.{name}"])
        block = f"blocks.{layer}.mlp.fc1.weight"
        assert torch.equal(state[f"visual_encoder.{block}"], image[block])
    assert state["visual_encoder.pos_embed"].shape == (1, 17, DIM)  # interpolated from a grid of 3 x 3
    assert ("mlm_head.bias" in state) == isinstance(task, Pretraining)
    if isinstance(task, Pretraining):
        assert torch.equal(state["mlm_head.bias"], text["cls.predictions.bias"])


def test_one_of_the_two_leaves_the_other_random(settings):
    settings.init.vit = None
    state = Pretraining().load(settings, None).model.state_dict()
    image = fill(vit("", 3), seed=2)
    assert not torch.equal(state["visual_encoder.blocks.0.mlp.fc1.weight"], image["blocks.0.mlp.fc1.weight"])


def test_they_do_not_go_with_a_checkpoint(settings, tmp_path):
    from pela_vl.checkpoints.ours import save_model

    loaded = Pretraining().load(settings, None)
    save_model(tmp_path / "model.safetensors", loaded.model, loaded.header)
    settings.model.size, settings.model.overrides = None, {}
    with pytest.raises(UserError, match="init.bert and init.vit start a new model"):
        Pretraining().load(settings, str(tmp_path / "model.safetensors"))
