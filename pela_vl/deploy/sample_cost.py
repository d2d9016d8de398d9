"""What a checkpoint's model costs for one sample of its task; only shapes are computed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import ALBEF_KINDS, KINDS_OF_TASKS
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import build_meta
from pela_vl.checkpoints.ours import read_header
from pela_vl.cost import Flops, count_parameters, linear_conv_flops
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.entailment import AlbefEntailment
from pela_vl.models.albef.vqa import AlbefVqa

TEXT_TOKENS, ANSWER_TOKENS = 30, 6
"""Lengths in the operations that `sample_flops` counts: the longest text that retrieval and pre-training take by default
(a model with fewer positions is counted at those), and a usual answer."""
SAMPLES = {
    "match": "to score one image with one text: both encoders, joint projections, the image's keys and values, fusion and "
    "matching",
    "entailment": "to classify one image with one sentence: both encoders, fusion and classifier",
    "classification": "to classify one image",
    "vqa": f"for one image, one question and one answer of {ANSWER_TOKENS} tokens: both encoders, fusion, decoder with its "
    "vocabulary logits",
}
"""What `sample_flops` counts, by kind of checkpoint ("match" for all that are not named)."""


def counted(header: Header) -> list[str]:
    """What `sample_flops` counts of a checkpoint's model, as lines of text."""
    size = f"images of {header.config.image_size} px"
    if header.kind in KINDS_OF_TASKS:
        size += f" and texts of {min(TEXT_TOKENS, header.config.max_positions)} tokens"
    return [
        f"in Linear and Conv layers (2 x multiply-adds), with {size},",
        f"{SAMPLES.get(header.kind, SAMPLES['match'])};",
    ]


def sample_flops(header: Header) -> Flops:
    """Operations for one sample of a checkpoint's model, as `SAMPLES` says it; only shapes are computed.

    The MLM head of pre-training has no part in it.
    """
    model, config = deployed(header).eval(), header.config
    images = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    if header.kind not in KINDS_OF_TASKS:
        return linear_conv_flops(model, lambda model: model(images))
    ids = torch.zeros(1, min(TEXT_TOKENS, config.max_positions), dtype=torch.int64, device="meta")
    runs: dict[str, Callable[[Any, Tensor, Tensor, Tensor], object]] = {"entailment": _classify, "vqa": _answer}
    run = runs.get(header.kind, _match)
    return linear_conv_flops(model, lambda model: run(model, images, ids, torch.ones_like(ids)))


def deployed(header: Header) -> nn.Module:
    """A checkpoint's model without weights and without the MLM head of pre-training."""
    ranks = {name: rank for name, rank in header.ranks.items() if not name.startswith("mlm_head.")}
    return meta_model(replace(header, ranks=ranks), False)


def meta_model(header: Header, mlm: bool) -> nn.Module:
    """A checkpoint's model without weights.

    Args:
        header: What the checkpoint says of it.
        mlm: With the MLM head, where the kind may have one.
    """
    return build_meta(header, **({"mlm": mlm} if header.kind in ALBEF_KINDS else {}))


def _match(model: Albef, images: Tensor, ids: Tensor, mask: Tensor) -> None:
    image, text = model.visual_encoder(images).tokens, model.text_encoder.encode(ids, mask).tokens
    model.image_feature(image), model.text_feature(text)
    fused = model.text_encoder.fuse(text, mask, model.text_encoder.image_keys_values(image)).tokens
    model.itm_head(fused[:, 0])  # the last layer counts for every token, as published


def _classify(model: AlbefEntailment, images: Tensor, ids: Tensor, mask: Tensor) -> None:
    bert, image = model.text_encoder, model.visual_encoder(images).tokens
    fused = bert.fuse(bert.encode(ids, mask).tokens, mask, bert.image_keys_values(image)).tokens
    model.cls_head(fused[:, 0])


def _answer(model: AlbefVqa, images: Tensor, ids: Tensor, mask: Tensor) -> None:
    question = model.text_decoder.question_keys_values(model.encode_question(images, ids, mask))
    answer = ids[:, :ANSWER_TOKENS]
    model.text_decoder.logits(model.text_decoder.decode(answer, torch.ones_like(answer), question, mask))


def cost_lines(checkpoint: str) -> list[str]:
    """A checkpoint's parameters, and operations for one sample, as lines of text. Raises UserError for a foreign file."""
    header = read_header(checkpoint)
    if header is None:
        raise UserError(f"{checkpoint}: not written by this project; tasks/compress.py says what a released file costs")
    flops = sample_flops(header)
    return [
        f"{checkpoint}: {header.kind}, {f'low rank ({len(header.ranks)} layers)' if header.ranks else 'dense'}",
        f"  parameters {count_parameters(deployed(header)):,}",
        f"  GFLOPs {flops.layers / 1e9:.4g}, with element-wise work {flops.profiled / 1e9:.4g}, attention's products "
        f"{flops.attention / 1e9:.3g} apart,",
        *(f"  {line}" for line in counted(header)),
    ]
