"""The commands of a grid before it is started, and GPU hours estimated from counted operations.

A training step costs three forward passes of the trained model (the backward pass is two), of which LoRA's frozen base
saves one. It adds one forward pass of the EMA model and, in pre-training with feature distillation, one of the teacher.
Operations are counted on the meta device at the lengths of efficiency.py, attention's products included. MaskAlign is
counted as if its student saw every patch. Evaluation, data loading and factorisation are left out.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pela_vl.base import config
from pela_vl.cost import linear_conv_flops
from pela_vl.experiments.efficiency import BATCH, SUBJECTS, Subject, reshape
from pela_vl.experiments.runs import Grid, Run
from pela_vl.experiments.variants import Variant
from pela_vl.models.albef.albef import build_albef
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.models.ema import EmaModel
from pela_vl.settings import Settings

PUBLISHED_SAMPLES = {
    "configs/pretrain.yaml": 5_100_000,  # pairs of the five sets when ALBEF was trained; some addresses are dead now
    "configs/flickr.yaml": 145_000,
    "configs/coco.yaml": 566_747,
    "configs/snli_ve.yaml": 529_527,
    "configs/refcoco_plus.yaml": 120_191,
    "configs/vqa.yaml": 2_103_433,  # train, val and Visual Genome, including unanswerable questions
}
"""Training samples of the public data, used where a list is not on this disk (docs/data.md)."""
_SUBJECT = {
    "configs/flickr.yaml": "ALBEF retrieval",
    "configs/coco.yaml": "ALBEF retrieval",
    "configs/refcoco_plus.yaml": "ALBEF retrieval",
    "configs/snli_ve.yaml": "ALBEF SNLI-VE",
    "configs/vqa.yaml": "ALBEF VQA",
}
_METHODS = {"dense": "full", "lora": "lora", "tinybert": "tinybert", "maskalign": "maskalign", "tome": "tome"}


@dataclass(frozen=True)
class Estimate:
    """What one training run takes.

    Attributes:
        samples: of one epoch.
        counted: whether `samples` was counted in the lists on this disk; else it is the published number.
        epochs: of the run.
        flops: of one training sample.
        hours: of one GPU.
    """

    run: Run
    samples: int
    counted: bool
    epochs: float
    flops: float
    hours: float


def estimate(run: Run, variant: Variant, gpu_tflops: float, utilisation: float) -> Estimate | None:
    """Estimate a training run at full scale.

    Args:
        run: its command names the configuration and the changes.
        variant: what the run trains.
        gpu_tflops: a GPU's peak for matrix products in the configured precision, TFLOP/s.
        utilisation: fraction of that peak that training reaches.

    Returns:
        The estimate; None for a command that does not train.

    Raises:
        UserError: If the configuration is invalid.
    """
    path = run.command[run.command.index("--config") + 1] if "--config" in run.command else None
    if path not in PUBLISHED_SAMPLES or "--evaluate" in run.command:
        return None
    changes = [value for flag, value in zip(run.command, run.command[1:], strict=False) if flag == "--set"]
    settings = config.load(Settings, path, changes)
    samples = _count(settings.data.train)
    flops = _training_flops(path, variant)
    total = (samples or PUBLISHED_SAMPLES[path]) * settings.train.epochs * flops
    hours = total / (gpu_tflops * 1e12 * utilisation) / 3600
    return Estimate(run, samples or PUBLISHED_SAMPLES[path], samples is not None, settings.train.epochs, flops, hours)


def _count(files: list[str]) -> int | None:
    if not files or not all(Path(file).is_file() for file in files):
        return None
    return sum(len(json.loads(Path(file).read_text(encoding="utf-8"))) for file in files)


@cache
def _training_flops(path: str, variant: Variant) -> float:
    pretraining = path == "configs/pretrain.yaml"
    subject = _PRETRAINING if pretraining else _by_name(_SUBJECT[path])
    method = _METHODS.get(variant.name, "pela")
    if variant.kappa is not None:
        subject = replace(subject, kappa=variant.kappa)
    step, batch = subject.training_step or subject.forward, _PAIRS if pretraining else BATCH
    with torch.device("meta"):
        model, teacher = subject.build().eval(), subject.build().eval()
        reshape(model, subject, method)
        ema = EmaModel(model, subject.without).model
    online = linear_conv_flops(model, step).total
    total = (2 if method == "lora" else 3) * online
    if subject.ema is not None:
        total += linear_conv_flops(ema, subject.ema).total
    if pretraining and not {"method=svd", "losses.fd=0"} & set(variant.pretrain or ()):
        total += linear_conv_flops(teacher, _features).total
    return total / batch


def _by_name(name: str) -> Subject:
    return next(subject for subject in SUBJECTS if subject.name == name)


_PAIRS, _PIXELS, _TOKENS = 32, 256, 25


def _inputs(count: int) -> tuple[Any, ...]:
    images = torch.empty(count, 3, _PIXELS, _PIXELS, device="meta")
    ids = torch.zeros(count, _TOKENS, dtype=torch.int64, device="meta")
    return images, ids, torch.ones_like(ids)


def _features(model: Any) -> None:
    """What FD reads of the teacher: both encoders, and the fusion of the masked text."""
    images, ids, mask = _inputs(_PAIRS)
    bert, image = model.text_encoder, model.visual_encoder(images).tokens
    bert.encode(ids, mask)
    bert.fuse(bert.encode(ids, mask).tokens, mask, bert.image_keys_values(image))


def _with_head(run: Callable[[Any], None], pairings: int, model: Any) -> None:
    """`_features`, the vocabulary's logits, and `pairings` pairs a sample through fusion for matching."""
    run(model)
    _, _, mask = _inputs(_PAIRS)
    bert, width = model.text_encoder, model.text_encoder.embeddings.word_embeddings.embedding_dim
    model.mlm_logits(torch.empty(_PAIRS, _TOKENS, width, device="meta"))
    if pairings:
        pairs = _PAIRS * pairings
        patches = torch.empty(pairs, 1 + (_PIXELS // 16) ** 2, width, device="meta")
        text, mask = torch.empty(pairs, _TOKENS, width, device="meta"), mask.repeat(pairings, 1)
        bert.fuse(text, mask, bert.image_keys_values(patches))


_PRETRAINING = Subject(
    "pre-training",
    "ALBEF pre-training",
    lambda: build_albef(replace(ALBEF_SIZES["albef_base"], image_size=_PIXELS), mlm=True),
    3,
    ("vision_proj", "text_proj", "itm_head", "mlm_head"),
    "TFLOPs",
    forward=lambda model: _with_head(_features, 3, model),
    sample=lambda model: None,
    ema=lambda model: _with_head(_features, 0, model),
    without=("itm_head", "temp"),
)


def launch_plan(grid: Grid, variants: dict[str, Variant], gpu_tflops: float, utilisation: float) -> list[str]:
    """Every command of a grid in order, with its GPU hours at full scale, and their sum.

    Args:
        grid: runs that are done are listed without their command.
        variants: by run name, of the runs that train.
        gpu_tflops: a GPU's peak for matrix products in the configured precision, TFLOP/s.
        utilisation: fraction of that peak that training reaches.

    Returns:
        Lines of a shell script; everything but commands is a comment.
    """
    lines, total, assumed = [], 0.0, False
    for run in grid.runs:
        if grid.done(run):
            lines.append(f"# {run.name}: done")
            continue
        known = estimate(run, variants[run.name], gpu_tflops, utilisation) if run.name in variants else None
        cost = ""
        if known:
            total, assumed = total + known.hours, assumed or not known.counted
            where = "in the lists" if known.counted else "published"
            cost = f": {known.hours:.0f} GPU hours ({known.samples:,} samples {where}, {known.epochs:g} epochs, "
            cost += f"{known.flops / 1e12:.2f} TFLOPs each)"
        words = run.command if not run.command[0].endswith(".py") else ("python", *run.command)
        lines += [f"# {run.name}{cost}", shlex.join(words)]
    if total:
        text = f"# {total:,.0f} GPU hours in all, at {utilisation:.0%} of {gpu_tflops:g} TFLOP/s; training alone"
        lines.append(text + (", with published sizes where a list is not here" if assumed else ""))
    return lines
