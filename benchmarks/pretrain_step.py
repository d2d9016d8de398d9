"""PELA's pre-training step at full size: ours against a step written as the released code does it.

Every way runs in a process of its own, so that its peak memory is its own. Batch 4, 256 px, texts of 25 tokens.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import published
from benchmarks.models import albef_base, caption_lengths
from benchmarks.table import Row, machine
from pela_vl.base.memory import keep_freed_memory
from pela_vl.data.collate import Batch
from pela_vl.deploy.compression import usage_since
from pela_vl.lowrank import low_rank_layers
from pela_vl.methods.pela import Pela
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.losses import sample_negatives
from pela_vl.models.albef.queue import FeatureQueue
from pela_vl.models.compiled import can_compile, compile_blocks
from pela_vl.models.precision import WeightCasts, cast_weights
from pela_vl.settings import LossSettings, Settings
from pela_vl.training.assemble import make_autocast
from pela_vl.training.backends import AutocastModule
from pela_vl.training.optim import make_optimizer, parameter_groups
from pela_vl.workloads.pretraining import Pretraining

BATCH, PIXELS, LONGEST, QUEUE, EMA, ALPHA = 4, 256, 25, 65536, 0.995, 0.4
TARGET = 2.0
WAYS = {
    "published": "",
    "ema": "soft targets of the EMA model, as published",
    "teacher": "soft targets of the teacher, no EMA model",
    "teacher compiled": "the same under torch.compile",
    "teacher bf16": "the same under bf16 autocast",
}


def measure(quick: bool) -> list[Row]:
    ways = ["published", "ema", "teacher"]
    if not quick and can_compile():
        ways.append("teacher compiled")
    if not quick or machine()["bf16 in hardware"]:
        ways.append("teacher bf16")
    found = {way: _in_process(way, steps=1 if quick else 3) for way in ways}
    before, rows = found.pop("published"), []
    for way, own in found.items():
        note = f"{WAYS[way]}; peak memory {own['peak_mib']:,.0f} MiB against {before['peak_mib']:,.0f}"
        if way == "teacher bf16":
            units = machine()["bf16 in hardware"]
            note += (
                "; on a CPU with bf16 units" if units else "; this CPU has no bf16 units, so its products are emulated"
            )
        rows.append(Row.of(f"pre-training step, batch {BATCH}, {way}", before["seconds"], own["seconds"], TARGET, note))
    peaks = [r["peak_mib"] for r in (before, found["teacher"])]
    rows.append(Row("pre-training peak memory, teacher", *peaks, peaks[0] / peaks[1], unit="MiB"))
    return rows


def _in_process(way: str, steps: int) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-m", "benchmarks.pretrain_step", way, "--steps", str(steps)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (BATCH, LONGEST), generator=generator)
    mask = (torch.arange(LONGEST) < caption_lengths(BATCH).clamp(max=LONGEST)[:, None]).long()
    mask[0] = 1  # the released code pads to the longest too
    chosen = (torch.rand(ids.shape, generator=generator) < 0.15) & mask.bool()
    chosen[:, 1] = True
    images = torch.randn(BATCH, 3, PIXELS, PIXELS, generator=generator)
    labels, masked = torch.where(chosen, ids, -100), torch.where(chosen, 103, ids)
    return Batch(images, ids, mask, masked, labels, torch.arange(BATCH), torch.arange(BATCH))


def published_step(teacher, student) -> Callable[[Batch], float]:
    """Teacher with its own twin in full, student likewise, FD and RWP in the released form, AdamW."""
    twins = [copy.deepcopy(model).requires_grad_(False) for model in (teacher, student)]
    queues = [FeatureQueue(256, QUEUE), FeatureQueue(256, QUEUE)]
    teacher.requires_grad_(False)
    dense = dict(teacher.named_modules())
    dense_twin = dict(twins[0].named_modules())
    pairs = [(layer, dense[name].weight) for name, layer in low_rank_layers(student).items()]
    pairs += [(layer, dense_twin[name].weight) for name, layer in low_rank_layers(twins[1]).items()]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, weight_decay=0.02)

    def step(batch: Batch) -> float:
        forward = published.pretraining_forward
        with torch.no_grad():
            _, target = forward(teacher, twins[0], queues[0], batch, ALPHA, EMA, sample_negatives)
        losses, features = forward(student, twins[1], queues[1], batch, ALPHA, EMA, sample_negatives)
        loss = sum(losses.values()) + 0.1 * published.feature_distillation(features, target)
        loss = loss + published.weight_perturbation(pairs, 1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(teacher: Albef, student: Albef, ema: bool, precision: str) -> Callable[[Batch], float]:
    """The step that the engine runs, by the same objects.

    Args:
        teacher: The dense model.
        student: The low-rank model.
        ema: An EMA model gives the soft targets, not the teacher.
        precision: "fp32" or "bf16".
    """
    task = Pretraining()
    losses = LossSettings(
        fd=0.1,
        rwp=0.5,
        fd_form="released",
        rwp_form="released",
        momentum=EMA,
        queue_size=QUEUE,
        soft_targets="ema" if ema else "teacher",
    )
    frozen = task.make_teacher(teacher)
    step = task.step(Settings(losses=losses), student, True, frozen)
    method = Pela(student, frozen, losses)
    optimizer = make_optimizer(parameter_groups(student.named_parameters(), 1e-5, 0.02, "published", {}))
    autocast, casts = make_autocast(precision, torch.device("cpu")), None
    if precision == "bf16":
        if step.ema is not None:
            step.ema.compute_in(torch.bfloat16)
        cast_weights(teacher, torch.bfloat16)
        casts = WeightCasts(student, torch.bfloat16)
        method.use_casts(casts)
    forward = AutocastModule(step, autocast, casts)

    def run(batch: Batch) -> float:
        with torch.no_grad(), autocast():
            prepared = step.prepare(batch, ALPHA, True)
            prepared_terms = method.prepare(batch)
        output = forward(batch, prepared)
        output.terms.update(method.terms(output.features, prepared_terms))
        loss = sum(output.terms.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step.after_backward(batch, prepared)
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    teacher, student = albef_base(PIXELS, False, mlm=True), albef_base(PIXELS, True, mlm=True).train()
    if args.way == "published":
        step = published_step(teacher.train(), student)  # as released: its dropout is on
    else:
        keep_freed_memory()
        if args.way.endswith("compiled"):
            compile_blocks(student), compile_blocks(teacher)
        precision = "bf16" if args.way.endswith("bf16") else "fp32"
        step = our_step(teacher, student, args.way == "ema", precision)
    batch, seconds = make_batch(), []
    start = time.perf_counter()
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds[1:])[args.steps // 2]
    print(json.dumps({"seconds": median, "peak_mib": usage_since(start).peak_mib, "cpu": time.process_time()}))


if __name__ == "__main__":
    main()
