"""Kernels of one image of a retrieval evaluation at ALBEF's layers, before and after the model is optimised for it.

    python -m benchmarks.launch_evaluation             the image encoder alone, and the image with its texts
    python -m benchmarks.launch_evaluation --names 12  the most frequent operations too

The image is encoded and matched with one batch of encoded texts. Widths are an eighth of ALBEF's, which changes no count.
"""

import argparse
import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.dispatch import Counts, Dispatches
from benchmarks.launch_step import NARROW
from benchmarks.models import albef_base
from benchmarks.pretrain_step import PIXELS
from pela_vl.evaluation.inference import prepare_for_evaluation
from pela_vl.models.albef.albef import Albef

TEXTS, TOKENS = 8, 12
ENCODER, MATCHING = "image encoder", "matching"


def bf16() -> torch.autocast:
    """bf16 autocast."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


WAYS: dict[str, Callable[[Albef], tuple[Albef, Callable[[], Any]]]] = {
    "fp32, as it is": lambda model: (model, nullcontext),
    "fp32, optimised": lambda model: prepare_for_evaluation(model, None, autocast=False),
    "bf16 autocast, as it is": lambda model: (model, bf16),
    "bf16 autocast, optimised, weights cast once": lambda m: prepare_for_evaluation(m, torch.bfloat16, autocast=True),
    "bf16 weights, optimised": lambda model: prepare_for_evaluation(model, torch.bfloat16, autocast=False),
}
"""A model as it is evaluated, and the context that it runs in. Evaluations in fp32 and in bf16 are the second and the last."""


@torch.no_grad()
def count(model: Albef, context: Callable[[], Any]) -> Dispatches:
    """The kernels of one image in two parts: of the image encoder, and of the features and the matching."""
    text = model.text_encoder
    width = text.embeddings.word_embeddings.embedding_dim
    image, mask = torch.randn(1, 3, PIXELS, PIXELS), torch.ones(TEXTS, TOKENS, dtype=torch.int64)
    texts = torch.randn(TEXTS, TOKENS, width).to(text.fusion_dtype)
    dispatches = Dispatches()
    with context(), dispatches:
        with dispatches.part(ENCODER):
            tokens = model.visual_encoder(image).tokens
        with dispatches.part(MATCHING):
            model.image_feature(tokens)
            model.match(texts, mask, text.image_keys_values(tokens), fusion_started=True)
    return dispatches


def main(show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=0, help="so many of the most frequent operations of each row")
    names = parser.parse_args().names
    show(
        "kernels / casts among them\n\n| model | evaluation | image encoder | image with its texts |\n|---|---|---:|---:|"
    )
    found = {}
    for kind, low_rank in (("dense", False), ("low rank", True)):
        model = albef_base(PIXELS, low_rank, mlm=False, **NARROW).eval()
        for way, prepare in WAYS.items():
            counted = count(*prepare(copy.deepcopy(model)))
            found[f"{kind}, {way}"] = counted.total()
            show(f"| {kind} | {way} | {_cell(counted.parts[ENCODER])} | {_cell(counted.total())} |")
    for row, counts in found.items() if names else ():
        most = counts.by_name.most_common(names)
        show(f"{row}: " + ", ".join(f"{operation} {number}" for operation, number in most))


def _cell(counts: Counts) -> str:
    return f"{counts.kernels:,} / {counts.casts:,}"


if __name__ == "__main__":
    main()
