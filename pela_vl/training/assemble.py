"""The only place that fixes the order: build -> load -> teacher -> restructure -> compress -> momentum -> optimiser -> backend."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from pela_vl import methods
from pela_vl.base.distributed import Ranks, broadcast_from_main, gather_objects
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import LoadedModel, dense_heads, twin_state
from pela_vl.checkpoints.ours import ModelCard
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.lowrank import (
    Calibration,
    LayerReport,
    PlanError,
    Recipe,
    apply_plan,
    low_rank_layers,
    make_recipe,
    rank_plan,
)
from pela_vl.objectives.base import Objective
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import CompressSettings, Settings
from pela_vl.training.backends import Backend, DeepSpeedBackend, LocalBackend
from pela_vl.training.calibration import TrainingCalibration
from pela_vl.training.optim import make_optimizer, parameter_groups
from pela_vl.workloads.base import Workload


@dataclass
class Assembled:
    """Everything a training loop needs of the model's side."""

    model: nn.Module
    card: ModelCard
    tokenizer: Tokenizer
    objective: Objective
    method: methods.Method
    backend: Backend
    autocast: Callable[[], Any]


def make_autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    """A callable giving the context that forwards run in: bf16 autocast, or nothing for fp32."""
    if precision == "bf16":
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


def load_tokenizer_and_model(
    workload: Workload, settings: Settings, checkpoint: str | None
) -> tuple[Tokenizer, LoadedModel]:
    """The task's model, and the tokeniser it was trained with (or `settings.model.tokenizer`)."""
    tokenizer = Tokenizer.load(settings.model.tokenizer) if settings.model.tokenizer else None
    vocab_size = tokenizer.vocab_size if tokenizer else None
    if tokenizer is None and checkpoint is None:
        tokenizer = Tokenizer.load("bert-base-uncased")
        vocab_size = tokenizer.vocab_size
    loaded = workload.load(settings, checkpoint, vocab_size)
    tokenizer = tokenizer or Tokenizer.load(loaded.card.tokenizer)
    if tokenizer.vocab_size > loaded.card.numbers["vocab_size"]:
        raise UserError(
            f"the tokeniser {loaded.card.tokenizer} has {tokenizer.vocab_size} entries, the model only "
            f"{loaded.card.numbers['vocab_size']}; set model.tokenizer to the one the model was trained with"
        )
    return tokenizer, loaded


def compress_loaded(
    loaded: LoadedModel,
    settings: CompressSettings,
    progress: Callable | None = None,
    calibration: Calibration | None = None,
) -> tuple[list[LayerReport], Recipe]:
    """Replace the Linears of a loaded dense model by factors, in place; returns the layers' reports, and what was applied.

    settings.exclude None: the heads of the model's kind stay dense, as published. calibration: samples that the factors, and
    allocated ranks, are made for; given for `settings.init` "whitened" alone. Where there are several ranks, each runs them,
    and all then take the main rank's plan and factors.
    Raises UserError if the model is low rank already or a pattern does not fit.
    """
    if loaded.card.ranks:
        raise UserError("compress.kappa: the checkpoint is low rank already; leave kappa out")
    exclude = dense_heads(loaded.model) if settings.exclude is None else settings.exclude
    try:
        recipe = make_recipe(
            loaded.model,
            settings.kappa,
            None,
            exclude,
            settings.init,
            settings.ranks,
            calibration,
            settings.rank_multiple,
        )
        if calibration is not None:
            # sums over samples may round differently on another machine, and ranks of a layer could tip over by that
            recipe = replace(recipe, plan=gather_objects(recipe.plan)[0])
        reports = apply_plan(loaded.model, recipe.plan, settings.init, progress, recipe.statistics)
    except PlanError as error:
        raise UserError(f"compress: {error}") from None
    if calibration is not None:
        for layer in low_rank_layers(loaded.model).values():
            for parameter in layer.parameters():
                broadcast_from_main(parameter.data)
    loaded.card.ranks = rank_plan(loaded.model)
    loaded.momentum = {}  # the dense twin no longer pairs with the factors
    return reports, recipe


def assemble(workload: Workload, settings: Settings, ranks: Ranks, data: Dataset | None = None) -> Assembled:
    """Build a run's model side in the order of this module's title.

    data: the training set, which `compress.init: whitened` takes samples of; None: read if it is wanted.
    Raises UserError where settings and checkpoint disagree.
    """
    check_compression(settings.compress)
    method = methods.load(settings.method)
    torch.manual_seed(settings.train.seed)
    tokenizer, loaded = load_tokenizer_and_model(workload, settings, settings.init.checkpoint)
    teacher = _teacher(workload, settings, loaded) if method.NEEDS_TEACHER else None
    changed = methods.restructure(method, loaded.model, settings)
    if changed is not None:
        loaded.card.numbers |= changed
        loaded.card.ranks = rank_plan(loaded.model)
        loaded.momentum = {}  # the twin no longer pairs with the model
    if settings.compress.kappa is not None:
        calibration = None
        if settings.compress.init == "whitened":
            loaded.model.to(ranks.device)  # the samples run there
            data = workload.training_data(settings) if data is None else data
            collate = workload.collate(settings, tokenizer)
            calibration = TrainingCalibration(loaded, data, collate, settings.compress.samples, ranks.is_main)
        compress_loaded(loaded, settings.compress, calibration=calibration)
    model = loaded.model.to(ranks.device).train()
    model.set_activation_checkpointing(settings.train.activation_checkpointing)
    if teacher is not None:
        teacher.model.to(ranks.device)
    objective = workload.objective(settings, model, method.NEEDS_HIDDEN)
    if settings.losses.soft_targets == "teacher":
        _soften_by_teacher(objective, teacher, settings)
    else:
        twin = objective.companions["twin"].model
        state = twin_state(twin, loaded.momentum)
        if state is not None:
            twin.load_state_dict(state)
    objective.companions.to(ranks.device)
    built = method.build(model, teacher, settings.losses)
    trained = list(model.named_parameters())
    if built.trained is not None:
        objective.module.add_module("method", built.trained.to(ranks.device))
        trained += built.trained.named_parameters(prefix="method")
    optim = settings.optim
    groups = parameter_groups(trained, optim.lr, optim.weight_decay, optim.decay, optim.lr_scale)
    optimizer = make_optimizer(groups, betas=tuple(optim.betas))
    autocast = make_autocast(settings.train.precision, ranks.device)
    common = (objective.module, optimizer, settings.train.accumulation, settings.train.clip, autocast)
    if ranks.launched:
        backend = DeepSpeedBackend(*common, settings.train.batch_size, settings.deepspeed.stage, ranks)
    else:
        backend = LocalBackend(*common)
    return Assembled(model, loaded.card, tokenizer, objective, built, backend, autocast)


def check_compression(settings: CompressSettings) -> None:
    """Raises UserError for whitening of nothing, or by nothing."""
    if settings.init == "whitened" and settings.kappa is None:
        raise UserError("compress.init: whitened makes factors of a dense model; set compress.kappa, or leave init out")
    if settings.samples < 1:
        raise UserError(f"compress.samples: give a positive number of training samples, not {settings.samples}")


def _soften_by_teacher(objective: Any, teacher: FrozenTeacher | None, settings: Settings) -> None:
    """Let the teacher give the soft targets. Raises UserError without a teacher, or if the task cannot do that."""
    if teacher is None:
        raise UserError(
            f"losses.soft_targets: teacher, but method {settings.method} has none; use method: pela, or twin"
        )
    if not hasattr(objective, "use_teacher"):
        raise UserError("losses.soft_targets: teacher is for pre-training and retrieval; this task wants twin")
    objective.use_teacher(teacher)


def _teacher(workload: Workload, settings: Settings, loaded: LoadedModel) -> FrozenTeacher:
    """The frozen dense model, made before compression."""
    if settings.init.teacher is not None:
        whole = replace(settings, model=replace(settings.model, size=None, token_merging=0))
        model = workload.load(whole, settings.init.teacher, None).model
    elif loaded.card.ranks:
        raise UserError(
            f"init.checkpoint {settings.init.checkpoint} is low rank already; name the dense model it came from as init.teacher"
        )
    else:
        model = copy.deepcopy(loaded.model)
    return FrozenTeacher(model)
