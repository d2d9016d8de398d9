"""From settings to a finished run: what tasks/pretrain.py and tasks/retrieval.py share."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pela_vl import config
from pela_vl.assemble import Assembled, assemble, load_tokenizer_and_model, make_autocast
from pela_vl.backends import Backend
from pela_vl.checkpoint import Position, save_model
from pela_vl.data.captions import CaptionPairs, RetrievalEval
from pela_vl.data.collate import Collate
from pela_vl.data.loader import BadImageCounter, EpochSampler, make_loader, split_range
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform, train_transform
from pela_vl.distributed import Ranks, start, stop
from pela_vl.engine import RESUME_FOLDER, Loop, fit, try_resume
from pela_vl.errors import UserError
from pela_vl.files import atomic_json
from pela_vl.logging import RunLog, write_run_header
from pela_vl.progress import Progress
from pela_vl.schedule import make_schedule
from pela_vl.scoring import RetrievalScores, score_retrieval
from pela_vl.settings import Settings


@dataclass
class Arguments:
    """The command line that every training script has."""

    settings: Settings
    resume: bool
    evaluate: bool


def parse(description: str, argv: Sequence[str] | None = None) -> Arguments:
    """--config, --set, --resume, --evaluate; `--local_rank` is DeepSpeed's and read from the environment instead."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change any key of the config")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, if there is one")
    parser.add_argument("--evaluate", action="store_true", help="only evaluate init.checkpoint")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    return Arguments(config.load(Settings, given.config, given.set), given.resume, given.evaluate)


def set_threads(settings: Settings) -> None:
    """Apply train.threads, where it is set, to torch's own threads."""
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)


def pretrain(settings: Settings, resume: bool) -> Position:
    """Pre-training: ITC, ITM and MLM with the own pair as the positive, and the method's terms.

    Raises UserError for bad input, before anything is written where that is possible.
    """
    set_threads(settings)
    ranks = start(settings.train.device)
    position, backend = _train(settings, resume, ranks, match_ids=False)
    stop(backend.destroy)
    return position


def train_retrieval(settings: Settings, resume: bool) -> dict[str, float] | None:
    """Fine-tune (every caption of the same image is a positive), then evaluate the best weights on the test file.

    Returns the test's recall, None without a test file. Raises UserError as `pretrain` does.
    """
    set_threads(settings)
    ranks = start(settings.train.device)
    _, backend = _train(settings, resume, ranks, match_ids=True)
    metrics = None
    if settings.data.test:
        best = Path(settings.output) / "best.safetensors"
        chosen = best if best.exists() else best.with_name("last.safetensors")
        metrics = _test(settings, str(chosen), ranks)
    stop(backend.destroy)
    return metrics


def evaluate_retrieval(settings: Settings) -> dict[str, float]:
    """Evaluate init.checkpoint on the test file (the validation file if there is none)."""
    if settings.init.checkpoint is None:
        raise UserError("init.checkpoint is not set: name the checkpoint to evaluate")
    set_threads(settings)
    ranks = start(settings.train.device)
    metrics = _test(settings, settings.init.checkpoint, ranks)
    stop()
    return metrics


def _train(settings: Settings, resume: bool, ranks: Ranks, match_ids: bool) -> tuple[Position, Backend]:
    losses, folder = settings.losses, Path(settings.output)
    if not resume and (folder / RESUME_FOLDER).exists():
        raise UserError(f"{folder} holds a run already; add --resume to go on with it, or set another output")
    if losses.mlm == losses.itc == losses.itm == 0:
        raise UserError("losses: itc, itm and mlm are all 0, so there is nothing to train on")
    if match_ids and losses.mlm:
        raise UserError("losses.mlm belongs to pre-training; set it to 0 for retrieval")
    data = _training_data(settings)
    parts = assemble(settings, ranks, match_ids)
    val = _evaluation_data(settings, parts, settings.data.val) if settings.data.val else None
    evaluator = partial(_evaluate, settings, parts, ranks, val) if val is not None else None
    loop = _loop(settings, ranks, folder, parts, data, evaluator)
    resumed = resume and try_resume(loop)
    if ranks.is_main:
        write_run_header(folder, settings, settings.train.seed, resumed)
    resume_step = loop.position.step - 1 if resumed else None
    with RunLog(folder, ranks.is_main, resume_step, loop.total_steps, label=folder.name) as log:
        if resumed:
            log.say(f"resumed at step {loop.position.step} of {loop.total_steps}")
        fit(loop, log)
    return loop.position, parts.backend


def evaluate_checkpoint(
    settings: Settings, checkpoint: str, file: str, ranks: Ranks
) -> tuple[dict[str, float], RetrievalScores, RetrievalEval]:
    """Retrieval recall of a checkpoint (ours or foreign) on an annotation file, with the scores and the data."""
    changed = config.from_dict(Settings, config.to_dict(settings), "settings")
    changed.init.checkpoint = checkpoint
    tokenizer, loaded = load_tokenizer_and_model(changed, mlm=False)
    model = loaded.model.to(ranks.device).eval()
    parts = _Evaluated(model, tokenizer, make_autocast(settings.train.precision, ranks.device))
    data = _evaluation_data(settings, parts, file)
    scores = score(settings, parts, ranks, data)
    return scores.recall(data.text2image), scores, data


def examples(scores: RetrievalScores, data: RetrievalEval, count: int = 8, top: int = 5) -> dict[str, Any]:
    """The `top` answers to the first `count` images, and to the first caption of each: as they fall, none chosen."""
    images, texts = [], []
    for image in range(min(count, len(data))):
        best = scores.image_to_text[image].argsort(kind="stable")[::-1][:top]
        answers = [{"caption": data.texts[t], "hit": bool(data.text2image[t] == image)} for t in best]
        truth = [data.texts[t] for t in data.image2texts[image]]
        images.append({"image": data.images[image], "truth": truth, "retrieved": answers})
        text = data.image2texts[image][0]
        best = scores.text_to_image[text].argsort(kind="stable")[::-1][:top]
        answers = [{"image": data.images[i], "hit": bool(i == image)} for i in best]
        texts.append({"caption": data.texts[text], "retrieved": answers})
    return {"images": images, "texts": texts}


@dataclass
class _Evaluated:
    """The parts that an evaluation needs of what `assemble` gives a training."""

    model: Any
    tokenizer: Tokenizer
    autocast: Any


def score(settings: Settings, parts: Any, ranks: Ranks, data: RetrievalEval) -> RetrievalScores:
    """Scores of a model on a retrieval set, with progress on the main rank."""
    passes = 2 if settings.evaluate.k_test else 1
    total = len(split_range(len(data), ranks.rank, ranks.world)) * passes
    with Progress(total, "evaluate", 0, "image", ranks.is_main) as progress:
        return score_retrieval(
            parts.model,
            data,
            parts.tokenizer,
            settings.evaluate,
            ranks,
            settings.data.max_tokens,
            parts.autocast,
            settings.data.workers,
            progress.to,
        )


def _evaluate(settings: Settings, parts: Assembled, ranks: Ranks, data: RetrievalEval) -> dict[str, float]:
    return score(settings, parts, ranks, data).recall(data.text2image)


def _image_size(parts: Any) -> int:
    return parts.model.visual_encoder.patch_embed.img_size[0]


def _evaluation_data(settings: Settings, parts: Any, file: str) -> RetrievalEval:
    data = settings.data
    return RetrievalEval(file, data.image_root, eval_transform(_image_size(parts)), data.max_words, data.cache_mb)


def _training_data(settings: Settings) -> CaptionPairs:
    data = settings.data
    if not data.train:
        raise UserError("data.train names no file; give at least one annotation list")
    # the transform needs the model's image size, which is known only when the model is built; it is set in _loop
    return CaptionPairs(data.train, data.image_root, None, data.max_words, settings.train.seed, data.cache_mb)


def _loop(settings, ranks, folder, parts: Assembled, data: CaptionPairs, evaluator) -> Loop:
    cfg, losses, optim = settings.train, settings.losses, settings.optim
    flip, crop = settings.data.hflip, settings.data.min_scale
    data.transform = train_transform(_image_size(parts), crop, flip, settings.data.augment)
    collate = Collate(
        parts.tokenizer, settings.data.max_tokens, losses.mlm_probability if losses.mlm else None, cfg.seed
    )
    sampler = EpochSampler(
        len(data),
        cfg.batch_size,
        ranks.rank,
        ranks.world,
        cfg.seed,
        drop_last=len(data) >= cfg.batch_size * ranks.world,
    )
    loader = make_loader(data, sampler, collate, settings.data.workers, ranks.device.type == "cuda")
    per_epoch = len(sampler)
    steps_per_epoch = max(per_epoch // cfg.accumulation, 1)
    total = cfg.steps if cfg.steps is not None else max(per_epoch * cfg.epochs // cfg.accumulation, 1)
    ramp = losses.alpha_ramp_steps if losses.alpha_ramp_steps is not None else steps_per_epoch
    counter = BadImageCounter(settings.data.max_bad_share)
    try:
        schedule = make_schedule(
            optim.schedule, optim.lr, optim.min_lr, optim.warmup_lr, optim.warmup_steps, total, steps_per_epoch
        )
    except ValueError as error:
        raise UserError(f"optim: {error}") from None
    return Loop(
        folder=folder,
        ranks=ranks,
        backend=parts.backend,
        objective=parts.objective,
        method=parts.method,
        autocast=parts.autocast,
        batches=loader,
        set_position=sampler.set_position,
        batches_per_epoch=per_epoch,
        total_steps=total,
        accumulation=cfg.accumulation,
        schedule=schedule,
        alpha=lambda step: losses.alpha * min(1.0, step / ramp) if ramp else losses.alpha,
        seed=cfg.seed,
        checkpoint_every=steps_per_epoch if cfg.checkpoint_every is None else cfg.checkpoint_every,
        evaluate_every=steps_per_epoch if cfg.evaluate_every is None else cfg.evaluate_every,
        save_model=lambda name: save_model(folder / name, parts.model, parts.card),
        evaluate=evaluator,
        on_batch=counter.update,
    )


def _test(settings: Settings, checkpoint: str, ranks: Ranks) -> dict[str, float]:
    """Evaluate, print a line and write evaluation.json in the run's folder."""
    file = settings.data.test or settings.data.val
    if file is None:
        raise UserError("data.test names no file, so there is nothing to evaluate on")
    metrics, scores, data = evaluate_checkpoint(settings, checkpoint, file, ranks)
    if ranks.is_main:
        print("  ".join(f"{name} {value:.2f}" for name, value in metrics.items()), flush=True)
        sizes = {"images": len(data), "texts": len(data.texts)}
        record = {
            "checkpoint": checkpoint,
            "file": file,
            **sizes,
            "metrics": metrics,
            "examples": examples(scores, data),
        }
        atomic_json(Path(settings.output) / "evaluation.json", record)
    return metrics
