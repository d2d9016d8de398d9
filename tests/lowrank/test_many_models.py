"""Twenty architectures of timm and twenty of transformers: compressed, saved, loaded, with equal outputs.

Built from their configurations at small size, without weights. `python -m pytest -s tests/lowrank/test_many_models.py` prints
the list with the layers that became low rank.
"""

import pytest
import timm
import torch
import transformers
from torch import nn

import pela_vl
from pela_vl.lowrank import PlanError, plan_ranks, rank_plan

TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
    "deit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
    "deit3_small_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
    "vit_small_patch14_dinov2": {"img_size": 28, "depth": 2},
    "vit_base_patch16_clip_224": {"img_size": 32, "depth": 1},
    "vit_base_patch16_siglip_224": {"img_size": 32, "depth": 1},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2},
    "beit_base_patch16_224": {"img_size": 32, "depth": 1},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1)},
    "swinv2_tiny_window8_256": {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1)},
    "pvt_v2_b0": {},
    "mixer_s32_224": {"img_size": 64},
    "gmixer_12_224": {"img_size": 32},
    "resmlp_12_224": {"img_size": 32},
    "crossvit_tiny_240": {"img_size": 240},
    "cait_xxs24_224": {"img_size": 32, "depth": 2},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 2},
    "pit_ti_224": {"img_size": 64},
    "mvitv2_tiny": {"img_size": 64},
    "twins_svt_small": {"img_size": 64, "depths": (1, 1, 1, 1)},
}
SMALL = {
    "vocab_size": 60,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**SMALL, "num_key_value_heads": 2}
IMAGE = {key: SMALL[key] for key in list(SMALL)[1:5]} | {"image_size": 32, "patch_size": 8}
SEQ2SEQ = {"vocab_size": 60, "d_model": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART = SEQ2SEQ | {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 32,
}
HF = {
    "Bert": SMALL,
    "Roberta": {**SMALL, "pad_token_id": 0},
    "Electra": {**SMALL, "embedding_size": 48},
    "DistilBert": {**SEQ2SEQ, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 32},
    "MPNet": SMALL,
    "Camembert": SMALL,
    "DebertaV2": SMALL,
    "Albert": {**SMALL, "embedding_size": 48},
    "GPT2": {**SMALL, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "OPT": {**SMALL, "ffn_dim": 96, "word_embed_proj_dim": 48},
    "GPTNeoX": SMALL,
    "Llama": DECODER,
    "Mistral": DECODER,
    "Qwen2": DECODER,
    "Gemma": {**DECODER, "head_dim": 12},
    "Phi": SMALL,
    "Bart": BART,
    "T5": {**SEQ2SEQ, "d_ff": 96, "num_layers": 2, "num_heads": 4, "d_kv": 12, "decoder_start_token_id": 0},
    "ViT": IMAGE,
    "Dinov2": IMAGE,
}


def patterns(model: nn.Module) -> list[str]:
    """What has to stay dense, as the errors name it layer by layer."""
    found: list[str] = []
    for _ in range(60):
        try:
            plan_ranks(model, 2, exclude=found)
            return found
        except PlanError as error:
            assert "exclude" in str(error), error
            found.append(str(error).split(" ")[0].rstrip(":"))
    raise AssertionError(f"no end of exclusions: {found}")


def output(model: nn.Module, given) -> torch.Tensor:
    with torch.no_grad():
        found = model(**given) if isinstance(given, dict) else model(given)
    return found if isinstance(found, torch.Tensor) else found.last_hidden_state


def hold(name: str, build, given, folder) -> None:
    torch.manual_seed(0)
    model = build().eval()
    dense, total = output(model, given), sum(1 for m in model.modules() if isinstance(m, nn.Linear))
    exclude = patterns(model)
    pela_vl.compress(model, 2, exclude=exclude)
    small = output(model, given)
    assert small.shape == dense.shape and torch.isfinite(small).all() and not torch.equal(small, dense)
    pela_vl.save(model, folder)
    loaded = pela_vl.load(build, folder)
    assert rank_plan(loaded) == rank_plan(model)
    assert torch.equal(output(loaded, given), small)
    print(f"{name}: {len(rank_plan(model))} low-rank layers of {total} Linears; dense {exclude}")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name, tmp_path):
    options = TIMM[name]
    x = torch.randn(2, 3, *[options.get("img_size", 64)] * 2)
    hold(name, lambda: timm.create_model(name, num_classes=0, **options), x, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", HF)
def test_transformers(name, tmp_path):
    config = getattr(transformers, f"{name}Config")(**HF[name])
    ids = torch.randint(3, 60, (2, 9))
    given = {"input_ids": ids}
    if name in ("Bart", "T5"):
        given["decoder_input_ids"] = ids[:, :5]
    if name in ("ViT", "Dinov2"):
        given = {"pixel_values": torch.randn(2, 3, 32, 32)}
    hold(name, lambda: getattr(transformers, f"{name}Model")(config), given, tmp_path)
