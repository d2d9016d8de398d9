"""Block refinement: Adam on the factors and norms of one block at a time, from closed-form factors towards the dense block.

The blocks are the members of the model's lists of layers, in the order in which they run. A block is given what the compressed
and refined blocks before it make of the samples. Its loss is the distance dy of its output from the dense model's in the metric
of what that does to the features that count, sum over tokens of w dy^T G dy with G = E g g^T of the features' gradients g at
the block's output and w = |g|^2 of the token (see lowrank/sensitivity.py), as a share of the dense output's. A plain distance
would undo what factors in two metrics have over others. Every fourth batch is held out: a block whose error on these does not
fall keeps what it had.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pela_vl.lowrank import (
    Calibration,
    Features,
    LowRankLinear,
    OutputMetric,
    PlanError,
    covariance_root,
    low_rank_layers,
)
from pela_vl.lowrank.calibration import calibration_items, eval_mode
from pela_vl.lowrank.prefix import blocks_of
from pela_vl.lowrank.sensitivity import (
    Ticks,
    feature_list,
    feature_scales,
    model_features,
    probe_gradients,
)

RATE = 1e-4
HELD_OUT = 4
"""One in so many batches is held out."""
SHRINKAGE = 0.1
"""Share of the metric that is replaced by the identity: the plain distance."""


class _Target(NamedTuple):
    """The dense block's output [..., D] at one call, and its tokens' weights [...]."""

    output: Tensor
    weights: Tensor


class _Call(NamedTuple):
    """What a block was given, and what the dense block made of it."""

    args: tuple
    kwargs: Mapping[str, Any]
    target: _Target


_Targets = dict[tuple[str, int], _Target]
"""By block and number of the call, in the order in which the calls ended."""


@dataclass(frozen=True)
class BlockReport:
    """Error of one block's output as a share of the dense output's size on held-out batches, before and after.

    parameters: names of what was trained; empty where the start was kept.
    """

    name: str
    before: float
    after: float
    parameters: tuple[str, ...]


class _Reached(Exception):
    """Ends a run at the block that is looked at."""


def refine_blocks(
    student: nn.Module,
    teacher: nn.Module,
    calibration: Calibration,
    steps: int,
    rate: float = RATE,
    features: Features | None = None,
    progress: Ticks | None = None,
    seed: int = 0,
) -> list[BlockReport]:
    """Train a compressed `student` IN PLACE block after block towards its dense teacher's blocks; a report of each.

    Memory: the outputs of all blocks for all batches, of both models, and one block's activations.

    Args:
        student: Compressed, with the teacher's names of modules.
        teacher: The dense model.
        calibration: Batches one by one (`calibration_items`), two at least.
        steps: Of Adam on each block, one batch each.
        rate: Learning rate of the first step; it falls to 0 along a cosine.
        features: What counts, see `measure_metrics`; None: the model's pooled output.
        progress: Called as progress(done, total, "refinement") after each block.
        seed: Of the batches' order.

    Raises:
        PlanError: If no list of layers holds low-rank layers, there are fewer than two batches, or a loss is not finite.
    """
    items = calibration_items(calibration)
    if len(items) < 2:
        raise PlanError("refine_steps: give two batches or more, since some are held out")
    blocks = blocks_of(student, list(low_rank_layers(student)))
    if not blocks:
        raise PlanError("refine_steps: no list of layers of the model holds low-rank layers: use recover instead")
    features = features or model_features
    reports = []
    with eval_mode(student), eval_mode(teacher), _frozen(student), _frozen(teacher):
        targets, metrics = _dense_targets(teacher, list(blocks), features, items, seed)
        order = [name for name in dict.fromkeys(name for name, _ in targets[0]) if name in metrics]
        kept: list[dict[str, Any]] = [{} for _ in items]
        for number, name in enumerate(order):
            block = blocks[name]
            calls = [_calls(student, blocks, name, features, *each) for each in zip(items, kept, targets, strict=True)]
            reports.append(_refine(name, block, calls, metrics[name], steps, rate, seed + number))
            with torch.no_grad():
                for i, found in enumerate(calls):
                    if found:
                        kept[i][name] = block(*found[0].args, **found[0].kwargs)
            if progress is not None:
                progress(number + 1, len(order), "refinement")
    return reports


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, on in wanted.items():
            parameter.requires_grad_(on)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else next(part for part in output if isinstance(part, Tensor))


def _dense_targets(
    teacher: nn.Module, names: Sequence[str], features: Features, items: Sequence[Any], seed: int
) -> tuple[list[_Targets], dict[str, Tensor]]:
    """The blocks' outputs by item, and the roots L [D, D] of their metrics, G = L L^T of unit mean diagonal."""
    generator = torch.Generator(next(teacher.parameters()).device).manual_seed(seed)
    metrics: dict[str, OutputMetric] = {}
    found: list[_Targets] = []
    scales: list[float] = []
    for item in items:
        outputs: dict[tuple[str, int], Tensor] = {}
        squares: dict[tuple[str, int], Tensor] = {}

        def gradient(call: tuple[str, int], g: Tensor, squares: dict = squares) -> None:
            if call[0] not in metrics:
                metrics[call[0]] = OutputMetric(g.shape[-1], g.device)
            metrics[call[0]].add(g)
            squares[call] = squares.get(call, 0) + g.detach().float().square().sum(-1)

        def record(name: str, module: nn.Module, args: tuple, output: Any, outputs: dict = outputs) -> Any:
            state, call = _first(output), (name, sum(block == name for block, _ in outputs))
            leaf = not state.requires_grad  # nothing before it wants a gradient
            state = state.detach().requires_grad_() if leaf else state
            outputs[call] = state.detach()
            state.register_hook(partial(gradient, call))
            return _with_first(output, state) if leaf else None

        handles = [teacher.get_submodule(name).register_forward_hook(partial(record, name)) for name in names]
        try:
            with torch.enable_grad():
                parts = feature_list(features(teacher, item))
        finally:
            for handle in handles:
                handle.remove()
        scales = scales or feature_scales(parts)
        probe_gradients(parts, scales, generator)
        none = {call: torch.ones(output.shape[:-1], device=output.device) for call, output in outputs.items()}
        found.append({call: _Target(output, squares.get(call, none[call])) for call, output in outputs.items()})
    for metric in metrics.values():
        metric.count = 1
    return found, {name: covariance_root(metric.matrix, SHRINKAGE).matrix.float() for name, metric in metrics.items()}


def _with_first(output: Any, state: Tensor) -> Any:
    if isinstance(output, Tensor):
        return state
    place = next(i for i, part in enumerate(output) if isinstance(part, Tensor))
    return type(output)([*output[:place], state, *output[place + 1 :]])


@torch.no_grad()
def _calls(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    name: str,
    features: Features,
    item: Any,
    kept: Mapping[str, Any],
    targets: _Targets,
) -> list[_Call]:
    """What the block `name` is given in a run; blocks before it give their kept outputs."""
    wanted = [target for (block, _), target in targets.items() if block == name]
    found: list[_Call] = []

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found.append(_Call(args, kwargs, wanted[len(found)]))
        if len(found) == len(wanted):
            raise _Reached

    replaced = [blocks[before] for before in kept if "forward" not in vars(blocks[before])]
    handle = blocks[name].register_forward_pre_hook(record, with_kwargs=True)
    try:
        for before, output in kept.items():
            if blocks[before] in replaced:
                blocks[before].forward = partial(_replay, blocks[before].forward, [output])
        features(model, item)
    except _Reached:
        pass
    finally:
        handle.remove()
        for block in replaced:
            del block.forward
    return found


def _replay(forward: Callable, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
    """The kept output at the first call, the block itself afterwards."""
    return outputs.pop() if outputs else forward(*args, **kwargs)


def _refine(
    name: str, block: nn.Module, calls: Sequence[list[_Call]], root: Tensor, steps: int, rate: float, seed: int
) -> BlockReport:
    every = min(HELD_OUT, len(calls))
    held = [call for found in calls[every - 1 :: every] for call in found]
    trained = [call for number, found in enumerate(calls) if number % every != every - 1 for call in found]
    parameters = _trained(block)
    if not (held and trained and parameters and steps > 0):
        return BlockReport(name, 0.0, 0.0, ())
    unit = max(sum(float(_size(call.target.output, call.target, root)) for call in trained) / len(trained), 1e-30)
    before = _error(block, held, root, unit)
    start = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    shuffle = random.Random(seed)
    queue: list[_Call] = []
    for _ in range(steps):
        if not queue:
            queue = list(trained)
            shuffle.shuffle(queue)
        with torch.enable_grad():
            loss = _distance(block, queue.pop(), root) / unit
        if not torch.isfinite(loss):
            raise PlanError(f"refine_steps: the loss of {name} is not finite: lower the rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    block.requires_grad_(False)
    block.zero_grad(set_to_none=True)
    after = _error(block, held, root, unit)
    if after < before:
        return BlockReport(name, before, after, tuple(f"{name}.{key}" for key in parameters))
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(start[key])
    return BlockReport(name, before, before, ())


def _trained(block: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a block's low-rank layers and norms."""
    found: dict[str, nn.Parameter] = {}
    for name, module in block.named_modules():
        if isinstance(module, LowRankLinear) or "norm" in type(module).__name__.lower():
            found |= {f"{name}.{key}" if name else key: parameter for key, parameter in module.named_parameters()}
    return found


def _size(states: Tensor, target: _Target, root: Tensor) -> Tensor:
    """Sum over tokens of w dy^T G dy, the states [..., D] being dy."""
    return ((states.float() @ root).square().sum(-1) * target.weights).sum()


def _distance(block: nn.Module, call: _Call, root: Tensor) -> Tensor:
    return _size(_first(block(*call.args, **call.kwargs)) - call.target.output, call.target, root)


@torch.no_grad()
def _error(block: nn.Module, calls: Sequence[_Call], root: Tensor, unit: float) -> float:
    return sum(float(_distance(block, call, root)) for call in calls) / len(calls) / unit
