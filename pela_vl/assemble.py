"""The only place that fixes the order: build -> load -> teacher -> compress -> momentum -> optimiser -> backend."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pela_vl import methods
from pela_vl.backends import Backend, DeepSpeedBackend, LocalBackend
from pela_vl.checkpoint import ModelCard
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.distill.teacher import FrozenTeacher
from pela_vl.distributed import Ranks
from pela_vl.errors import UserError
from pela_vl.loading import LoadedModel, load_model, twin_state
from pela_vl.lowrank import PlanError, apply_plan, plan_ranks, rank_plan
from pela_vl.models.albef import Albef
from pela_vl.objectives.vision_language import VisionLanguageObjective
from pela_vl.optim import make_optimizer, parameter_groups
from pela_vl.settings import CompressSettings, Settings


@dataclass
class Assembled:
    """Everything a training loop needs of the model's side."""

    model: Albef
    card: ModelCard
    tokenizer: Tokenizer
    objective: VisionLanguageObjective
    method: methods.Method
    backend: Backend
    autocast: Callable[[], Any]


def make_autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    """A callable giving the context that forwards run in: bf16 autocast, or nothing for fp32."""
    if precision == "bf16":
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


def load_tokenizer_and_model(settings: Settings, mlm: bool) -> tuple[Tokenizer, LoadedModel]:
    """The model of `settings.init`, and the tokeniser it was trained with (or `settings.model.tokenizer`)."""
    tokenizer = Tokenizer.load(settings.model.tokenizer) if settings.model.tokenizer else None
    vocab_size = tokenizer.vocab_size if tokenizer else None
    if tokenizer is None and settings.init.checkpoint is None:
        tokenizer = Tokenizer.load("bert-base-uncased")
        vocab_size = tokenizer.vocab_size
    loaded = load_model(settings.model, settings.init.checkpoint, mlm, vocab_size)
    tokenizer = tokenizer or Tokenizer.load(loaded.card.tokenizer)
    if tokenizer.vocab_size > loaded.card.numbers["vocab_size"]:
        raise UserError(
            f"the tokeniser {loaded.card.tokenizer} has {tokenizer.vocab_size} entries, the model only "
            f"{loaded.card.numbers['vocab_size']}; set model.tokenizer to the one the model was trained with"
        )
    return tokenizer, loaded


def compress_loaded(loaded: LoadedModel, settings: CompressSettings, progress: Callable | None = None) -> list[Any]:
    """Replace the Linears of a loaded dense model by factors, in place; returns the layers' reports.

    Raises UserError if the model is low rank already or a pattern does not fit.
    """
    if loaded.card.ranks:
        raise UserError("compress.kappa: the checkpoint is low rank already; leave kappa out")
    exclude = [name for name in settings.exclude if name != "mlm_head" or loaded.model.mlm_head is not None]
    try:
        plan = plan_ranks(loaded.model, settings.kappa, exclude=exclude)
        reports = apply_plan(loaded.model, plan, progress=progress)
    except PlanError as error:
        raise UserError(f"compress: {error}") from None
    loaded.card.ranks = rank_plan(loaded.model)
    loaded.momentum = {}  # the dense twin no longer pairs with the factors
    return reports


def assemble(settings: Settings, ranks: Ranks, match_ids: bool) -> Assembled:
    """Build a run's model side in the order of this module's title.

    match_ids: retrieval's positives (see VisionLanguageStep). Raises UserError where settings and checkpoint disagree.
    """
    losses, method = settings.losses, methods.load(settings.method)
    torch.manual_seed(settings.train.seed)
    mlm = losses.mlm > 0
    tokenizer, loaded = load_tokenizer_and_model(settings, mlm)
    teacher = _teacher(settings, loaded, mlm) if method.NEEDS_TEACHER else None
    if settings.compress.kappa is not None:
        compress_loaded(loaded, settings.compress)
    model = loaded.model.to(ranks.device).train()
    model.set_activation_checkpointing(settings.train.activation_checkpointing)
    if teacher is not None:
        teacher.model.to(ranks.device)
    objective = VisionLanguageObjective(
        model,
        {"itc": losses.itc, "itm": losses.itm, "mlm": losses.mlm},
        losses.momentum,
        losses.queue_size,
        match_ids,
        keep_hidden=method.NEEDS_HIDDEN,
    )
    twin = objective.companions["twin"].model
    state = twin_state(twin, loaded.momentum)
    if state is not None:
        twin.load_state_dict(state)
    objective.companions.to(ranks.device)
    optim = settings.optim
    groups = parameter_groups(model.named_parameters(), optim.lr, optim.weight_decay, optim.decay, optim.lr_scale)
    optimizer = make_optimizer(groups, betas=tuple(optim.betas))
    autocast = make_autocast(settings.train.precision, ranks.device)
    common = (objective.module, optimizer, settings.train.accumulation, settings.train.clip, autocast)
    if ranks.launched:
        backend = DeepSpeedBackend(*common, settings.train.batch_size, settings.deepspeed.stage, ranks)
    else:
        backend = LocalBackend(*common)
    return Assembled(model, loaded.card, tokenizer, objective, method.build(model, teacher, losses), backend, autocast)


def _teacher(settings: Settings, loaded: LoadedModel, mlm: bool) -> FrozenTeacher:
    """The frozen dense model, made before compression."""
    if settings.init.teacher is not None:
        model = load_model(settings.model, settings.init.teacher, mlm).model
    elif loaded.card.ranks:
        raise UserError(
            f"init.checkpoint {settings.init.checkpoint} is low rank already; name the dense model it came from as init.teacher"
        )
    else:
        model = copy.deepcopy(loaded.model)
    return FrozenTeacher(model)
