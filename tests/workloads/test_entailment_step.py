"""The entailment step: its loss re-stated, its EMA model, and the published losses and gradients at full size."""

import copy
import importlib.util
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_albef import CONFIG, randomise, tiny_batch
from tiny_runs import loss_of
from torch import Tensor

from pela_vl.checkpoints import convert_checkpoint
from pela_vl.lowrank import apply_plan
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.models.albef.entailment import build_entailment
from pela_vl.models.ema import EmaModel
from pela_vl.workloads.entailment import EntailmentStep

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"


@dataclass
class Pairs:
    images: Tensor
    ids: Tensor
    mask: Tensor
    targets: Tensor


def tiny() -> tuple[EntailmentStep, Pairs]:
    """A step whose EMA model differs from its model."""
    torch.manual_seed(0)
    model = randomise(build_entailment(CONFIG.for_task("entailment"), dropout=0.0))
    step = EntailmentStep(model, EmaModel(model), momentum=0.9)
    randomise(step.ema.model)
    batch = tiny_batch()
    return step, Pairs(batch.images, batch.ids, batch.mask, torch.tensor([2, 0, 1, 1]))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_loss_is_the_formula_with_the_updated_ema_model(alpha):
    step, batch = tiny()
    model, ema = step.model, step.ema.model
    expected_ema = copy.deepcopy(ema)
    with torch.no_grad():
        for (_, a), (_, b) in zip(expected_ema.named_parameters(), model.named_parameters(), strict=True):
            a.mul_(0.9).add_(0.1 * b)
    output = step(batch, step.prepare(batch, alpha, first=True))
    logits = model(batch.images, batch.ids, batch.mask)
    soft = expected_ema.eval()(batch.images, batch.ids, batch.mask).softmax(1)
    expected = 0.0
    for row in range(4):
        log = logits[row].log_softmax(0)
        expected += -(1 - alpha) * log[batch.targets[row]] - alpha * (log * soft[row]).sum()
    assert loss_of(output).item() == pytest.approx(expected.item() / 4, rel=1e-5)
    assert output.metrics["accuracy"].item() == (logits.argmax(1) == batch.targets).float().mean().item()


def test_the_ema_model_moves_once_an_optimiser_step_and_never_by_gradient():
    step, batch = tiny()
    ema = step.ema
    before = copy.deepcopy(ema.state_dict())
    prepared = step.prepare(batch, 0.4, first=False)
    loss_of(step(batch, prepared)).backward()
    step.after_backward(batch, prepared)
    assert all(torch.equal(value, before[name]) for name, value in ema.state_dict().items())
    assert all(parameter.grad is None for parameter in ema.parameters())
    assert all(parameter.grad is not None for parameter in step.model.parameters())
    step.prepare(batch, 0.0, first=True)
    assert not torch.equal(ema.state_dict()["model.cls_head.0.weight"], before["model.cls_head.0.weight"])


def recipe():
    path = REFERENCE / "parity" / "recipe.py"
    if not path.is_file():
        pytest.skip("the published outputs (../shared/reference/parity) are not here")
    spec = importlib.util.spec_from_file_location("parity_recipe", path)
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def published_state(made, low_rank: bool) -> dict[str, Tensor]:
    """The SNLI-VE checkpoint that the recipe gives, EMA weights included, under the published or the released low-rank names."""
    shapes = {k: v["shape"] for k, v in json.loads((REFERENCE / "state_dicts" / "ve.json").read_text()).items()}
    state = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        factors = low_rank and len(shape) == 2 and "cls_head" not in name and "embeddings" not in name
        factors = factors and leaf == "weight"
        if factors:
            rank = shape[0] * shape[1] // (3 * (shape[0] + shape[1]))
            state[f"{layer}.0.weight"], state[f"{layer}.1.weight"] = [rank, shape[1]], [shape[0], rank]
        elif low_rank and leaf == "bias" and f"{layer}.0.weight" in state:
            state[f"{layer}.1.bias"] = shape
        else:
            state[name] = shape
    return {name: torch.from_numpy(np.asarray(made.tensor(name, shape))) for name, shape in state.items()}


def published_name(name: str, ranks: dict[str, int]) -> str:
    """The published name of one of our parameters."""
    layer, _, leaf = name.rpartition(".")
    part = layer.rpartition(".")
    if part[0] in ranks:
        return f"{part[0]}.{'0' if part[2] == 'down' else '1'}.{leaf}"
    return name


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", ["ve", "ve_lowrank"])
def test_published_logits_losses_and_gradient_norms(file):
    made = recipe()
    stored = np.load(REFERENCE / "parity" / f"{file}.npz")
    converted = convert_checkpoint(published_state(made, file == "ve_lowrank"))
    assert converted.kind == "entailment" and converted.image_size == 384
    config = replace(ALBEF_SIZES["albef_base"], image_size=384).for_task("entailment")
    with torch.device("meta"):
        model = build_entailment(config)
        if converted.ranks:
            apply_plan(model, converted.ranks, init="empty")
        step = EntailmentStep(model, EmaModel(model))
    model.load_state_dict(converted.online, assign=True)
    step.ema.model.load_state_dict(converted.momentum, assign=True)
    model.eval()
    ids, mask = made.tokens("ve", [11, 6, 16], 16)
    assert (ids == stored["ids"]).all() and (mask == stored["att"]).all()
    images = torch.from_numpy(made.image("ve", 3, 384))
    batch = Pairs(images, torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(stored["targets"]))
    logits, expected = model(batch.images, batch.ids, batch.mask).detach(), torch.from_numpy(stored["logits"])
    off = {"logits": ((logits - expected).abs().max() / expected.abs().max()).item()}
    for alpha, first in ((0.4, True), (0.0, False)):  # alpha 0 makes no use of the EMA model
        output = loss_of(step(batch, step.prepare(batch, alpha, first)))
        if alpha:
            output.backward()
        key = f"loss_a0{round(10 * alpha)}"
        off[key] = abs(output.item() / float(stored[key]) - 1)
    assert float(stored["loss_nodistill"]) == float(stored["loss_a00"])
    norms = dict(zip(stored["grad_names"].tolist(), stored["grad_norms"].tolist(), strict=True))
    ours = {published_name(name, converted.ranks): p.grad.norm().item() for name, p in model.named_parameters()}
    assert set(ours) == {name for name in norms if "_m." not in name}
    # A key's bias shifts all scores of a query alike: its gradient is zero, and its stored norm rounding.
    zero = {name for name in ours if name.endswith((".key.bias", ".key.1.bias"))}
    largest = max(norms[name] for name in ours)
    assert len(zero) == 18 and all(max(ours[name], norms[name]) < 1e-6 * largest for name in zero)
    # The last fusion layers' queries and keys have dense gradients of 1e-7 to 1e-5 of the largest, which rounding of fp32
    # alone moves by up to 1e-3, the stored ones too (as double precision shows): hence a floor.
    floor = 1e-5 * largest
    apart = {name: abs(ours[name] - norms[name]) / max(norms[name], floor) for name in ours if name not in zero}
    off["gradient norms"] = max(apart.values())
    worst = max((name for name in ours if name not in zero), key=lambda name: abs(ours[name] / norms[name] - 1))
    off[f"without floor, {worst}"] = abs(ours[worst] / norms[worst] - 1)
    print(f"\n{file}: largest relative differences", {name: f"{value:.1e}" for name, value in off.items()})
    assert off["logits"] < 1e-4 and off["loss_a04"] < 1e-5 and off["loss_a00"] < 1e-5
    assert off["gradient norms"] < 1e-3
