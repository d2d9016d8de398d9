"""Puts a run together, in the one order that is right.

The order: load the model, copy the dense teacher, let the method restructure the model, compress it, wrap it in the training
step with its EMA model, and give all of that to an optimiser and a back end.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from pela_vl import methods
from pela_vl.base.distributed import World, broadcast_from_main, broadcast_state, gather_objects
from pela_vl.base.errors import UserError
from pela_vl.base.memory import release_freed_memory
from pela_vl.base.stages import StageBars
from pela_vl.checkpoints.loading import LoadedModel, dense_heads
from pela_vl.checkpoints.ours import EMA, read_header
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
from pela_vl.lowrank.apply import NEED_STATISTICS
from pela_vl.models.compiled import compile_blocks
from pela_vl.models.precision import WeightCasts, cast_weights
from pela_vl.recovery.refine import refine_blocks
from pela_vl.recovery.sequential import compress_sequentially
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import CompressSettings, Settings
from pela_vl.training.backends import Backend, DeepSpeedBackend, LocalBackend
from pela_vl.training.optim import make_optimizer, model_groups
from pela_vl.workloads.base import RunModel, Task, TrainingStep

_LAYERS = 12
"""Spectra between two times that freed memory is given back."""


@dataclass
class Trainee:
    """A model in training.

    Args:
        run: The model and what its evaluation needs.
        step: The task's training step around the model.
        method: What is added to the task's losses.
        backend: Forward, backward and update.
        notes: One line for each thing in the checkpoint that was not taken over.
    """

    run: RunModel
    step: TrainingStep
    method: methods.Method
    backend: Backend
    notes: list[str] = field(default_factory=list)

    def weights(self) -> dict[str, torch.Tensor]:
        """What a checkpoint of the model holds, with the EMA model's weights where they are a result."""
        weights = self.method.weights(self.run.model)
        if self.run.ema is None:
            return weights
        return weights | {EMA + name: value for name, value in self.method.weights(self.run.ema).items()}


def make_autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    """A callable giving the context that forward passes run in: bf16 autocast, or nothing for fp32.

    Args:
        precision: "fp32", "bf16", or "auto": bf16 where the device has units for it.
        device: Where the passes run.

    Raises:
        UserError: If bf16 is asked for on a GPU that has none.
    """
    dtype = compute_dtype(precision, device)
    return nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype=dtype)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast computes in, see `make_autocast`; None without autocast."""
    if precision == "bf16" and device.type == "cuda" and not has_bf16_units(device):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"precision: bf16 was asked for, but {name} computes none; set it to auto or fp32")
    if precision == "bf16" or (precision == "auto" and has_bf16_units(device)):
        return torch.bfloat16
    return None


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device multiplies bf16 numbers in hardware, without converting them to fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def compress_loaded(
    loaded: LoadedModel,
    settings: CompressSettings,
    on_progress: Callable[[int, int, str], Any] | None = None,
    calibration: Calibration | None = None,
) -> tuple[list[LayerReport], Recipe]:
    """Replace the Linears of a loaded dense model by factors, in place.

    Where there are several processes, each runs the calibration, and all then take the main process's plan, factors and, with
    the sequential step, biases and dense layers.

    Args:
        loaded: The dense model; its header takes the ranks, and its EMA weights are dropped.
        settings: How. `exclude` None keeps the heads of the model's kind dense, as published.
        on_progress: on_progress(done, total, what), counting anew for every stage: samples, spectra or measured errors,
            layers, blocks.
        calibration: Samples that the factors, and allocated ranks, are made for; for "whitened" and "gauss_newton" alone.

    Returns:
        The layers' reports, and what was applied.

    Raises:
        UserError: If the model is low rank already or a pattern does not fit.
    """
    if settings.kappa is None:
        raise UserError("compress.kappa: give how many times smaller, such as 1.5")
    if loaded.header.ranks:
        raise UserError("compress.kappa: the checkpoint is low rank already; leave kappa out")
    exclude = dense_heads(loaded.model) if settings.exclude is None else settings.exclude

    def on_stage(done: int, total: int, what: str) -> None:
        if done == total or done % _LAYERS == 0 and what == "spectra":
            release_freed_memory()  # a large model's activations, and sums of many threads
        if on_progress is not None:
            on_progress(done, total, what)

    try:
        with _products(settings.fast_products):
            recipe = make_recipe(
                loaded.model,
                settings.kappa,
                None,
                exclude,
                settings.init,
                settings.ranks,
                calibration,
                settings.rank_multiple,
                measured=settings.measured,
                progress=on_stage,
                sequential=settings.sequential,
            )
            if calibration is not None:
                # Floating-point sums differ between machines, so allocated layer ranks could too: use process 0's plan everywhere.
                plan, dense = gather_objects((recipe.plan, recipe.dense))[0]
                recipe = replace(recipe, plan=plan, dense=dense)
            original = copy.deepcopy(loaded.model) if settings.refine_steps else None
            if settings.sequential and calibration is not None:
                recipe = replace(recipe, statistics={})  # gigabytes in a large model; the step gathers its own
                release_freed_memory()

                def on_layer(done: int, total: int, what: str) -> None:
                    release_freed_memory()  # of many threads, none of which reuses what another one freed
                    if on_progress is not None:
                        on_progress(done, total, what)

                reports = compress_sequentially(
                    loaded.model,
                    recipe.plan,
                    calibration,
                    recipe.metrics,
                    recipe.dense,
                    strength=settings.strength,
                    progress=on_layer,
                )
            else:
                reports = apply_plan(
                    loaded.model, recipe.plan, settings.init, on_progress, recipe.statistics, recipe.metrics
                )
            if original is not None and calibration is not None:
                blocks = refine_blocks(loaded.model, original, calibration, settings.refine_steps, progress=on_progress)
                recipe = replace(recipe, refined=tuple(name for block in blocks for name in block.parameters))
    except PlanError as error:
        raise UserError(f"compress: {error}") from None
    if calibration is not None:
        changed = [*low_rank_layers(loaded.model)] + [*recipe.dense] * settings.sequential
        if settings.refine_steps:
            changed = [""]  # norms too
        for name in changed:
            for parameter in loaded.model.get_submodule(name).parameters():
                broadcast_from_main(parameter.data)
    loaded.header.ranks = rank_plan(loaded.model)
    _leave_ema(loaded, "compress.kappa")  # dense EMA weights do not pair with factors
    return reports, recipe


def _leave_ema(loaded: LoadedModel, why: str) -> None:
    """Drop the EMA weights of a model whose layers have changed, and add a line that says so to the model's notes."""
    if loaded.ema:
        loaded.notes.append(f"EMA weights: left behind ({why} changes the layers); the EMA model starts as a copy")
    loaded.ema = {}


def assemble(task: Task, settings: Settings, world: World, data: Dataset | None = None) -> Trainee:
    """Build all that a run trains with; the module's docstring gives the order.

    Args:
        task: Loads the model, makes the training step and, where needed, the calibration.
        settings: Of the run.
        world: This process and the others.
        data: The training set, which calibration takes samples from; None reads it where calibration needs it.

    Raises:
        UserError: Where settings and checkpoint disagree.
    """
    check_compression(settings.compress)
    method = methods.find(settings.method.name)
    torch.manual_seed(settings.train.seed)
    loaded = task.load(settings, settings.init.checkpoint)
    teacher = make_teacher(task, settings, loaded) if method.needs_teacher else None
    changed = method.restructure(loaded.model, loaded.header.config, settings)
    if changed is not None:
        loaded.header.config = changed
        loaded.header.ranks = rank_plan(loaded.model)
        _leave_ema(loaded, f"method {settings.method.name}")
    if settings.compress.kappa is not None:
        calibration = _calibration(task, settings, loaded, world, data)
        with StageBars(enabled=world.is_main and calibration is not None) as bars:
            compress_loaded(loaded, settings.compress, bars.show, calibration)
    model = loaded.model.to(world.device).train()
    set_activation_checkpointing(model, settings.train.activation_checkpointing)
    if teacher is not None:
        teacher.model.to(world.device)
    step = task.step(settings, model, method.needs_features, teacher).to(world.device)
    if step.ema is not None and not step.ema.start_from(loaded.ema) and loaded.ema:
        loaded.notes.append("EMA weights: left behind (they do not fit the model); the EMA model starts as a copy")
    step.start_from(loaded)
    run_method = method.create(model, teacher, settings)
    trained = list(model.named_parameters())
    if run_method.trained is not None:
        step.add_module("method", run_method.trained.to(world.device))
        trained += run_method.trained.named_parameters(prefix="method")
    broadcast_state(step)  # processes may run on different machines, whose arithmetic differs
    run = RunModel(model, loaded.header, make_autocast(settings.train.precision, world.device), world)
    if step.ema is not None and task.ema_is_result:
        run.ema = step.ema.model
    dtype = compute_dtype(settings.train.precision, world.device)
    if dtype is not None:
        if step.ema is not None and not task.ema_is_result:  # it gives soft targets
            step.ema.compute_in(dtype)
        if teacher is not None and run_method.teacher_under_autocast:
            cast_weights(teacher.model, dtype)  # RWP holds the fp32 weights that it reads
    if settings.train.compile:
        compile_blocks(model)
        if step.ema is not None:
            compile_blocks(step.ema.for_targets)
        if teacher is not None:
            compile_blocks(teacher.model)
    casts = None
    # activation checkpointing runs blocks again when the casts are gone; a compiled block makes its own
    if dtype is not None and not settings.train.activation_checkpointing and not settings.train.compile:
        casts = WeightCasts(model, dtype)
        run_method.use_casts(casts)
    backend = make_backend(settings, step, trained, run.autocast, world, casts)
    return Trainee(run, step, run_method, backend, loaded.notes)


def make_backend(
    settings: Settings,
    step: TrainingStep,
    trained: list[tuple[str, nn.Parameter]],
    autocast: Callable[[], Any],
    world: World,
    casts: WeightCasts | None = None,
) -> Backend:
    """The optimiser and what runs the step: this process alone, or DeepSpeed under a launcher.

    Args:
        settings: Its sections optim, train and deepspeed are read.
        step: The module that the back end runs.
        trained: Name and parameter of all that is optimised, the method's own parameters too.
        autocast: Gives the context that forward passes run in.
        world: This process and the others; DeepSpeed is used where a launcher started them.
        casts: Of the trained model's weights; None leaves them to autocast.

    Raises:
        UserError: For a DeepSpeed stage above 2, or options that the model does not have.
    """
    optim, cfg = settings.optim, settings.train
    groups = model_groups(step.model, trained, optim)
    fused = True if world.device.type == "cuda" and not world.launched else None
    optimizer = make_optimizer(groups, (optim.betas[0], optim.betas[1]), fused)
    if world.launched:
        deepspeed = settings.deepspeed
        return DeepSpeedBackend(
            step, optimizer, cfg.accumulation, cfg.clip, autocast, cfg.batch_size, deepspeed, world, casts
        )
    return LocalBackend(step, optimizer, cfg.accumulation, cfg.clip, autocast, casts)


@contextmanager
def _products(fast: bool) -> Iterator[None]:
    """Matrix products of fp32 matrices with rounded inputs while the context is open, where `fast`."""
    before = torch.get_float32_matmul_precision()
    if fast:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_compression(settings: CompressSettings) -> None:
    """Refuse settings of a compression that contradict each other.

    Raises:
        UserError: For an `init` that needs calibration without a `kappa`, for `sequential` or `measured` with an `init` or
            `ranks` that they are not for, and for a `strength` or `samples` out of range.
    """
    sampled = settings.init in NEED_STATISTICS
    if sampled and settings.kappa is None:
        raise UserError(
            f"compress.init: {settings.init} makes factors of a dense model; set compress.kappa, or leave init out"
        )
    if settings.sequential and settings.init != "gauss_newton":
        raise UserError(f"compress.sequential: needs compress.init: gauss_newton, not {settings.init}")
    if settings.measured and (settings.ranks != "allocated" or not sampled):
        raise UserError(
            "compress.measured: scales allocated ranks by samples; set compress.ranks: allocated and compress.init: "
            "gauss_newton or whitened"
        )
    if settings.refine_steps < 0 or (settings.refine_steps and not sampled):
        raise UserError(
            f"compress.refine_steps: {settings.refine_steps}: give 0, or, with compress.init: gauss_newton or whitened, a number "
            "of steps"
        )
    if settings.strength is not None and not 0 <= settings.strength <= 1:
        raise UserError(f"compress.strength: give a number from 0 to 1, not {settings.strength}")
    if settings.samples < 1:
        raise UserError(f"compress.samples: give a positive number of training samples, not {settings.samples}")


def set_activation_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Let a model recompute activations in backward. Raises UserError for a model that cannot."""
    switch = getattr(model, "set_activation_checkpointing", None)
    if switch is not None:
        switch(enabled)
    elif enabled:
        raise UserError(f"train.activation_checkpointing: {type(model).__name__} has none; leave it out")


def make_teacher(task: Task, settings: Settings, loaded: LoadedModel) -> FrozenTeacher:
    """The frozen dense model, copied before the student is restructured or compressed.

    Args:
        task: Loads init.teacher, and wraps the model as a teacher of its kind.
        settings: init.teacher names the teacher's checkpoint; where it is None, the student's starting weights are copied. Size
            and token merging are set aside, so that the teacher is as its checkpoint has it; a foreign file that does not say
            its size is read by the run's.
        loaded: The student's model as loaded. Its model is copied, never shared.

    Raises:
        UserError: If there is no init.teacher and the student's checkpoint is low rank already, and for losses.logits with a
            teacher whose classifier starts anew.
    """
    teacher = loaded
    if settings.init.teacher is not None:
        sized = task.foreign_size and read_header(settings.init.teacher) is None
        aside: dict[str, Any] = {} if sized else {"size": None, "overrides": {}}
        whole = replace(settings, model=replace(settings.model, token_merging=0, **aside))
        teacher = task.load(whole, settings.init.teacher)
        model = teacher.model
    elif loaded.header.ranks:
        raise UserError(
            f"init.checkpoint {settings.init.checkpoint} is low rank already; name the dense model it came from as init.teacher"
        )
    else:
        model = copy.deepcopy(loaded.model)
    if settings.losses.logits and teacher.untrained:
        raise UserError(
            f"losses.logits: {settings.init.teacher or settings.init.checkpoint} has no weights of {', '.join(teacher.untrained)} "
            "for these classes, so the teacher predicts nothing; set it to 0, or name a teacher of these classes as init.teacher"
        )
    return task.make_teacher(model)


def _calibration(
    task: Task, settings: Settings, loaded: LoadedModel, world: World, data: Dataset | None
) -> Calibration | None:
    """What runs the model on training samples; None for factors that need none."""
    if settings.compress.init not in NEED_STATISTICS:
        return None
    loaded.model.to(world.device)  # the samples run there
    data = task.training_data(settings) if data is None else data
    return task.calibration(settings, loaded, data, show=world.is_main)
