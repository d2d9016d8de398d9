"""Models of published size with random weights: what they compute means nothing, how long it takes is the same."""

from dataclasses import replace
from typing import Any

import torch

from pela_vl.lowrank import apply_plan, plan_ranks
from pela_vl.models.albef.albef import Albef, build_albef
from pela_vl.models.albef.config import ALBEF_SIZES

HEADS = ("vision_proj", "text_proj", "itm_head", "mlm_head")


def albef_base(image_size: int, low_rank: bool, mlm: bool = False, rank_multiple: int = 1, **changes: Any) -> Albef:
    """ALBEF base, dense or with the factors of kappa 3, in eval mode."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = build_albef(replace(ALBEF_SIZES["albef_base"], image_size=image_size, **changes), mlm=mlm)
    if low_rank:
        exclude = [name for name in HEADS if getattr(model, name) is not None]
        apply_plan(model, plan_ranks(model, 3, exclude=exclude, rank_multiple=rank_multiple), init="empty")
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "LayerNorm.weight")):
                parameter.fill_(1.0)
            elif parameter.ndim == 2 and ".up." in name or ".down." in name:
                parameter.normal_(std=0.07)  # a product of factors then has a dense weight's scale, about
            else:
                parameter.normal_(std=0.02)
        model.temp.fill_(0.07)
    return model.eval()


def caption_lengths(count: int, seed: int = 0) -> torch.Tensor:
    """Token counts like those of Flickr30K captions with [CLS]: 13.5 on average, 5 to 30."""
    generator = torch.Generator().manual_seed(seed)
    return (13.5 + 4.5 * torch.randn(count, generator=generator)).round().clamp(5, 30).long()
