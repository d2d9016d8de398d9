"""From settings to a finished run, whatever the task: what the scripts in tasks/ share."""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pela_vl.base import config
from pela_vl.base.distributed import World, from_main, start, stop, watch_processes
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.base.memory import keep_freed_memory
from pela_vl.base.run_folder import hold_run_folder
from pela_vl.base.script import script_parser
from pela_vl.checkpoints.resume import Position
from pela_vl.data.loader import BadImageCounter, EpochSampler, make_loader
from pela_vl.data.normalization import Normalization
from pela_vl.data.transforms import normalize
from pela_vl.models.precision import WeightCasts
from pela_vl.settings import Settings
from pela_vl.training.assemble import Trainee, assemble, compute_dtype, make_autocast
from pela_vl.training.backends import Backend
from pela_vl.training.engine import RESUME_FOLDER, Loop, fit, try_resume
from pela_vl.training.run_log import RunLog, write_run_header
from pela_vl.training.schedule import schedule_of
from pela_vl.workloads.base import Evaluation, RunModel, Task

Metrics = dict[str, dict[str, float]]
"""Metrics by split."""


@dataclass
class Arguments:
    """The command line of a training script.

    Args:
        settings: The configuration, with what --set changes.
        resume: --resume: go on from the run's last checkpoint.
        evaluate: --evaluate or --zero-shot: only evaluate init.checkpoint.
        zero_shot: --zero-shot: the checkpoint must not have been fine-tuned on data.train.
    """

    settings: Settings
    resume: bool
    evaluate: bool
    zero_shot: bool


def parse(description: str, argv: Sequence[str] | None = None) -> Arguments:
    """Read the command line and the configuration that it names.

    DeepSpeed's launcher adds `--local_rank`; it is accepted and not read, for the environment says the same.
    """
    parser = script_parser(description)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change any key of the config"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, if there is one")
    parser.add_argument("--evaluate", action="store_true", help="only evaluate init.checkpoint")
    parser.add_argument(
        "--zero-shot",
        metavar="CHECKPOINT",
        help="only evaluate this checkpoint, which must not have been fine-tuned on the config's training data",
    )
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    settings = config.load(Settings, given.config, given.set)
    if given.zero_shot:
        settings.init.checkpoint = given.zero_shot
    return Arguments(settings, given.resume, given.evaluate or bool(given.zero_shot), bool(given.zero_shot))


def run_task(task: Task, description: str, argv: Sequence[str] | None = None) -> None:
    """What a task's script does: train and test the best weights, or only evaluate.

    Args:
        task: The script's.
        description: Text of --help.
        argv: Command line without the program's name; None takes the process's own.

    Raises:
        UserError: For bad input, see `train` and `evaluate`.
    """
    arguments = parse(description, argv)
    if arguments.evaluate:
        evaluate(task, arguments.settings, arguments.zero_shot)
    else:
        train(task, arguments.settings, arguments.resume)


def set_threads(settings: Settings) -> None:
    """Apply train.threads and train.tf32 to torch; keep freed memory for the tensors to come."""
    keep_freed_memory()
    torch.set_float32_matmul_precision("high" if settings.train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = settings.train.tf32
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)


def train(task: Task, settings: Settings, resume: bool) -> tuple[Position, Metrics]:
    """Train, then evaluate the best weights (the last ones without a validation file) on the task's test files.

    Args:
        task: What is trained.
        settings: Of the run.
        resume: Go on from the run's last checkpoint, if there is one.

    Returns:
        Where training ended, and the metrics by split, empty where there are no test files.

    Raises:
        UserError: For bad input, before anything is written where that is possible.
    """
    set_threads(settings)
    world = start(settings.train.device, settings.train.group_timeout_seconds)
    with hold(settings.output):
        position, backend = _train(task, settings, resume, world)
        best = Path(settings.output) / "best.safetensors"
        chosen = from_main(lambda: best if best.exists() else best.with_name("last.safetensors"))
        # a method may have changed the model: its sizes are those of the checkpoint, not of the settings
        trained = replace(settings, model=replace(settings.model, size=None, overrides={}, token_merging=None))
        metrics = _test(task, trained, str(chosen), world) if task.tests(settings) else {}
    stop(backend.destroy)
    return position, metrics


def evaluate(task: Task, settings: Settings, zero_shot: bool = False) -> Metrics:
    """Evaluate init.checkpoint on the task's test files.

    Args:
        task: Names the test files, and evaluates.
        settings: Of the run; init.checkpoint must be set.
        zero_shot: Refuse a checkpoint that says of itself that it was fine-tuned on one of data.train.

    Returns:
        Metrics by split.

    Raises:
        UserError: Where there is no checkpoint or no test file, or the checkpoint is refused.
    """
    if settings.init.checkpoint is None:
        raise UserError("init.checkpoint is not set: name the checkpoint to evaluate")
    if not task.tests(settings):
        raise UserError(f"{task.title}: data.test and data.val name no file, so there is nothing to evaluate on")
    set_threads(settings)
    world = start(settings.train.device, settings.train.group_timeout_seconds)
    with hold(settings.output):
        metrics = _test(task, settings, settings.init.checkpoint, world, zero_shot)
    stop()
    return metrics


@contextmanager
def hold(output: str) -> Iterator[None]:
    """Be the one run that writes into a folder, for all processes of the run. Raises UserError if another one does."""
    with ExitStack() as stack:
        from_main(lambda: stack.enter_context(hold_run_folder(output)))
        yield


def evaluate_checkpoint(
    task: Task, settings: Settings, checkpoint: str, file: str, world: World
) -> tuple[Evaluation, object]:
    """Evaluate a checkpoint on an annotation file.

    Args:
        task: Loads the checkpoint and evaluates it.
        settings: How to evaluate; init.checkpoint and the files in `data` are not read.
        checkpoint: Path of ours or of a foreign one that the task can start from.
        file: Annotation file, as data.val would name it.
        world: This process and the others; each evaluates a part.

    Returns:
        The evaluation, and the data set that it was made on.

    Raises:
        UserError: For a checkpoint or a file that does not fit the task.
    """
    run = load_for_evaluation(task, settings, checkpoint, world)
    data = task.evaluation_data(settings, run, file)
    return task.evaluate(settings, run, data), data


def load_for_evaluation(
    task: Task, settings: Settings, checkpoint: str, world: World, zero_shot: bool = False
) -> RunModel:
    """A checkpoint's model in eval mode, made quicker (see `Task.optimise`), with its EMA model where the task evaluates that too.

    Args:
        task: Loads the checkpoint.
        settings: evaluate.precision gives the precision, data.train what `zero_shot` refuses.
        checkpoint: Path of ours or of a foreign one.
        world: This process and the others; the model is moved to its device.
        zero_shot: Refuse a checkpoint that was fine-tuned on one of data.train.

    Raises:
        UserError: For a checkpoint that does not fit the task, or that `zero_shot` refuses.
    """
    loaded = task.load(settings, checkpoint)
    if loaded.untrained:
        raise UserError(
            f"{checkpoint}: has no weights of {', '.join(loaded.untrained)} for {task.title}, so there is nothing to evaluate; "
            "name a checkpoint of this task and these classes by init.checkpoint, or fine-tune this one first"
        )
    seen = set(settings.data.train) & set(loaded.header.notes.get("trained_on", [])) if zero_shot else ()
    if seen:
        raise UserError(f"--zero-shot: {checkpoint} was trained on {', '.join(sorted(seen))}; use --evaluate for it")
    dtype = compute_dtype(settings.evaluate.precision, world.device)
    model, ema = loaded.model.to(world.device).eval(), None
    if loaded.ema and task.ema_is_result:
        ema = copy.deepcopy(model)
        ema.load_state_dict(loaded.ema)
        ema, _ = task.optimise(ema, dtype)
    model, autocast = task.optimise(model, dtype)
    return RunModel(model, loaded.header, autocast, world, ema)


def _train(task: Task, settings: Settings, resume: bool, world: World) -> tuple[Position, Backend]:
    folder = Path(settings.output)
    if not resume and from_main((folder / RESUME_FOLDER).exists):
        raise UserError(f"{folder} holds a run already; add --resume to go on with it, or set another output")
    task.check(settings)
    data: Any = task.training_data(settings)
    trainee = assemble(task, settings, world, data)
    run = trainee.run
    notes = run.header.notes
    notes["trained_on"] = list(dict.fromkeys([*notes.get("trained_on", []), *settings.data.train]))
    evaluator = None
    if settings.data.val:
        val = task.evaluation_data(settings, run, settings.data.val)
        evaluator = make_evaluator(task, settings, run, val)
    data.transform = task.train_transform(settings, run.header)
    loop = _loop(task, settings, trainee, data, evaluator)
    resumed = resume and try_resume(loop)
    if world.is_main:
        if not resumed:  # so that nobody takes the weights of an earlier run for this one's
            for name in ("best.safetensors", "last.safetensors"):
                (folder / name).unlink(missing_ok=True)
        write_run_header(folder, settings, settings.train.seed, resumed)
    watch_processes(world, settings.train.lost_process_seconds)
    resume_step = loop.position.step - 1 if resumed else None
    with RunLog(
        folder, world.is_main, resume_step, loop.total_steps, label=folder.name, board_every=settings.train.log_every
    ) as log:
        if resumed:
            log.say(f"resumed at step {loop.position.step} of {loop.total_steps}")
        else:
            for line in trainee.notes:
                log.say(f"init.checkpoint: {line}")
        fit(loop, log)
    return loop.position, trainee.backend


def make_evaluator(task: Task, settings: Settings, run: RunModel, val: Any) -> Callable[[], dict[str, Any]]:
    """The validation within training, of the model as it is at each call.

    The model is trained on, so it is not optimised. Under bf16 its Linear weights are cast once a validation and not at
    every use; for that time they are held twice, with 2 bytes a weight more. Its fp32 weights stay as they are. Compiled
    blocks make their own casts.

    Args:
        task: Evaluates.
        settings: evaluate.precision gives the precision.
        run: The model that is trained, and its EMA model where that is evaluated too.
        val: The validation set.

    Returns:
        A callable giving the metrics, and what else is logged of them.
    """
    dtype, casts = compute_dtype(settings.evaluate.precision, run.world.device), []
    seen = replace(run, autocast=make_autocast(settings.evaluate.precision, run.world.device))
    if dtype is not None and not settings.train.compile:
        casts = [WeightCasts(model, dtype) for model in (run.model, run.ema) if model is not None]

    def evaluator() -> dict[str, Any]:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for cast in casts:
                stack.enter_context(cast.in_place())
            evaluation = task.evaluate(settings, seen, val)
        return evaluation.metrics | evaluation.logged

    return evaluator


def _loop(
    task: Task, settings: Settings, trainee: Trainee, data: Any, evaluator: Callable[[], dict[str, Any]] | None
) -> Loop:
    """The loop of a run.

    Args:
        task: The task.
        settings: The run's.
        trainee: The model side.
        data: The training set, its transform set.
        evaluator: Metrics of the model as it is; None without validation.
    """
    cfg, losses, optim, world = settings.train, settings.losses, settings.optim, trainee.run.world
    sampler = EpochSampler(
        len(data),
        cfg.batch_size,
        world.process,
        world.size,
        cfg.seed,
        drop_last=len(data) >= cfg.batch_size * world.size,
        order=getattr(data, "order", None),  # from data sets that are slow to read in random order
        accumulation=cfg.accumulation,
    )
    collate = task.collate(settings, trainee.run.header)
    loader = make_loader(data, sampler, collate, settings.data.workers, world.device.type == "cuda")
    per_epoch = len(sampler)
    steps_per_epoch = max(per_epoch // cfg.accumulation, 1)
    total = cfg.steps if cfg.steps is not None else max(per_epoch * cfg.epochs // cfg.accumulation, 1)
    ramp = losses.alpha_ramp_steps if losses.alpha_ramp_steps is not None else steps_per_epoch
    counter = BadImageCounter(settings.data.max_bad_share)
    try:
        schedule = schedule_of(optim, total, steps_per_epoch)
    except ValueError as error:
        raise UserError(f"optim: {error}") from None
    return Loop(
        folder=Path(settings.output),
        trainee=trainee,
        batches=loader,
        set_position=sampler.set_position,
        batches_per_epoch=per_epoch,
        global_batch=sampler.global_batch,
        total_steps=total,
        accumulation=cfg.accumulation,
        schedule=schedule,
        alpha=lambda step: losses.alpha * min(1.0, step / ramp) if ramp else losses.alpha,
        seed=cfg.seed,
        checkpoint_every=steps_per_epoch if cfg.checkpoint_every is None else cfg.checkpoint_every,
        evaluate_every=steps_per_epoch if cfg.evaluate_every is None else cfg.evaluate_every,
        evaluate=evaluator,
        on_batch=counter.update,
        on_device=partial(normalized, normalization=trainee.run.header.normalization),
    )


def normalized(batch: Any, normalization: Normalization) -> Any:
    """A batch whose images are normalised, where they still are 8-bit pixels."""
    if batch.images.dtype != torch.uint8:
        return batch
    return batch.with_images(normalize(batch.images, normalization))


def _test(task: Task, settings: Settings, checkpoint: str, world: World, zero_shot: bool = False) -> Metrics:
    """Evaluate on every test file, print a line each and write the results into the run's folder.

    evaluation.json is of the last split, evaluation_<split>.json of the splits before it.
    """
    run = load_for_evaluation(task, settings, checkpoint, world, zero_shot)
    folder, results = Path(settings.output), {}
    tests = task.tests(settings)
    for split, file in tests.items():
        data = task.evaluation_data(settings, run, file)
        evaluation = task.evaluate(settings, run, data)
        results[split] = evaluation.metrics
        if not world.is_main:
            continue
        line = "  ".join(f"{name} {value:.2f}" for name, value in evaluation.metrics.items())
        print(f"{split}: {line}" if len(tests) > 1 else line, flush=True)
        name = "evaluation.json" if split == list(tests)[-1] else f"evaluation_{split}.json"
        record = {"checkpoint": checkpoint, "split": split, "file": file, "metrics": evaluation.metrics}
        atomic_json(folder / name, record | evaluation.record)
        task.write(settings, evaluation, data, folder, split)
    return results
