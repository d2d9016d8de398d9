"""Kernels of one image of a retrieval evaluation at ALBEF's layers, before and after the model is optimised for it.

    python -m benchmarks.launch_evaluation

The image is encoded and matched with one batch of encoded texts. Widths are an eighth of ALBEF's, which changes no count.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from benchmarks.dispatch import Dispatches
from benchmarks.launch_step import NARROW
from benchmarks.models import albef_base
from benchmarks.pretrain_step import PIXELS
from pela_vl.models.albef.albef import Albef
from pela_vl.workloads.retrieval import Retrieval

TEXTS, TOKENS = 8, 12


def bf16() -> torch.autocast:
    """The context that an evaluation in bf16 runs in."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


@torch.no_grad()
def kernels(model: Albef, in_bf16: bool) -> int:
    """Of one image."""
    width = model.text_encoder.embeddings.word_embeddings.embedding_dim
    image, mask = torch.randn(1, 3, PIXELS, PIXELS), torch.ones(TEXTS, TOKENS, dtype=torch.int64)
    texts, dispatches = torch.randn(TEXTS, TOKENS, width), Dispatches()
    with bf16() if in_bf16 else nullcontext(), dispatches:
        tokens = model.visual_encoder(image).tokens
        model.image_feature(tokens)
        model.match(texts, mask, model.text_encoder.image_keys_values(tokens), fusion_started=True)
    return dispatches.total().kernels


def main(show: Callable[[str], None] = print) -> None:
    show("| model | precision | as it is | optimised |\n|---|---|---:|---:|")
    for low_rank in (False, True):
        for in_bf16 in (False, True):
            model = albef_base(PIXELS, low_rank, mlm=False, **NARROW).eval()
            before = kernels(model, in_bf16)
            after = kernels(Retrieval().optimise(model, torch.bfloat16 if in_bf16 else None), in_bf16)
            kind, precision = "low rank" if low_rank else "dense", "bf16" if in_bf16 else "fp32"
            show(f"| {kind} | {precision} | {before:,} | {after:,} |")


if __name__ == "__main__":
    main()
