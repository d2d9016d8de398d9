"""What a layer lacks of the residual stream: added to its dense output, it gives the dense model's stream again."""

from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from pela_vl.recovery.lockstep import Lockstep
from pela_vl.recovery.streams import find_writers, missing_stream, watch

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = SMALL | {"image_size": 16, "patch_size": 4}
TEXT = SMALL | {
    "vocab_size": 40,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TIMM = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}


def hf(name: str, **options) -> nn.Module:
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))


SWIN = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (2,), "num_heads": (2,)}
HF_SWIN = {"image_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": [2], "num_heads": [2]}
MODELS = {
    "timm ViT with LayerScale": lambda: timm.models.VisionTransformer(**TIMM, init_values=0.4),
    "timm BEiT": lambda: timm.models.Beit(**TIMM, init_values=0.4),
    "timm Swin": lambda: timm.models.SwinTransformer(**SWIN, num_classes=0),
    "ViT": lambda: hf("ViT", **IMAGE),
    "BEiT": lambda: hf("Beit", **IMAGE, layer_scale_init_value=0.4),
    "DINOv2": lambda: hf("Dinov2", **IMAGE, layerscale_value=0.4),
    "Swin": lambda: hf("Swin", **HF_SWIN),
    "BERT": lambda: hf("Bert", **TEXT),
    "GPT-2": lambda: hf("GPT2", **TEXT, n_embd=24, n_layer=2, n_head=2),
    "LLaMA": lambda: hf("Llama", **TEXT),
    "T5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=40, d_model=24, d_kv=12, d_ff=32, num_layers=2, num_heads=2)
    ),
}
TEXTS = ("BERT", "GPT-2", "LLaMA", "T5")
NOT_SEEN = {"Swin": ("attention.o_proj", "attention.output.dense")}  # by version of transformers
"""Layers whose stream is cut into windows by code that is not followed."""


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_dense_stream_comes_back(name):
    """An error in the patches or words is mended at each layer that writes to the stream: all that follows is as in the dense
    model. LayerScale, windows and norms before or after the sum must all be right for that."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    item = torch.randint(3, 40, (3, 7)) if name in TEXTS else torch.randn(3, 3, 16, 16).double()
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    writers = find_writers(model, linears)
    assert len(writers) >= 2
    for layer in writers:
        outputs: list[Tensor] = []

        def run(model: nn.Module, item: Tensor, outputs: list[Tensor] = outputs) -> None:
            found = model(item)
            outputs.append(found if isinstance(found, Tensor) else found.last_hidden_state)

        steps = Lockstep(
            model, [n for n in linears if n == linears[0] or n == layer], [item], run, partial(watch, writers)
        )
        seen = []
        for stop, [(dense, small)] in steps.stops():
            if stop == layer:
                missing = missing_stream(writers[layer], dense.stream, small.stream, dense.y)
                seen.append(missing)
                steps.replaced[stop] = lambda x, y=dense.y, missing=missing: y if missing is None else y + missing
            else:
                steps.replaced[stop] = lambda x, y=dense.y: y + torch.randn(y.shape[-1]).to(y)
        if name in NOT_SEEN and layer.endswith(NOT_SEEN[name]):
            assert seen == [None]
            continue
        assert seen[0] is not None, layer
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9, msg=layer)
