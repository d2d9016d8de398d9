"""What training adds to closed-form factors: block refinement, and distillation on calibration samples or on fresh ones.

    python -m benchmarks.recovery --data ../shared/data/coco_ccby_small/annotations.json
all-MiniLM-L6-v2 with factors in two metrics, allocated, fitted layer after layer, measured scales; then, each from these factors:
`refine_steps`, and `pela_vl.recover` on the texts that calibrated or on --fresh others, at each of --rates. Needs the packages
that benchmarks/encoders.py names. Columns as in benchmarks/frontier.py; cpu: seconds of the step alone.
"""

import argparse
import copy
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pela_vl
from benchmarks.encoders import Subject, minilm
from pela_vl.base.errors import run_main
from pela_vl.base.progress import Progress
from pela_vl.recovery.refine import refine_blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco_ccby_small/annotations.json"))
    parser.add_argument("--kappa", type=float, default=3)
    parser.add_argument("--texts", type=int, default=512, help="texts that calibrate (default %(default)s)")
    parser.add_argument("--fresh", type=int, default=1500, help="other texts (default %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of distillation (default %(default)s)")
    parser.add_argument("--refine-steps", type=int, default=100, help="a block (default %(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4, 1e-3], help="peaks (default %(default)s)")
    args = parser.parse_args()
    subject = minilm(args.data, args.texts, args.fresh)
    options: dict[str, Any] = {"init": "gauss_newton", "ranks": "allocated", "measured": True, "sequential": True}
    options |= {"calibration": subject.calibration, "features": subject.features, "strength": None}
    start = time.process_time()
    small = pela_vl.compress(copy.deepcopy(subject.model), args.kappa, **options)
    print("| from closed-form factors | texts | err | states | cpu |\n|---|---|---|---|---|")
    _row(subject, small, "nothing", args.texts, time.process_time() - start)
    start, refined = time.process_time(), copy.deepcopy(small)
    refine_blocks(refined, subject.model, subject.calibration, args.refine_steps, features=subject.features)
    what = f"{args.refine_steps} steps of refinement a block"
    _row(subject, refined, what, args.texts, time.process_time() - start)
    fresh = sum(len(item["input_ids"]) for item in subject.more)
    for batches, count in ((subject.calibration, args.texts), (subject.more, fresh)):
        for rate in args.rates:
            start, student = time.process_time(), copy.deepcopy(small)
            _distil(subject, student, batches, args.steps, rate)
            what = f"{args.steps} steps of distillation at {rate:g}"
            _row(subject, student, what, count, time.process_time() - start)


def _distil(subject: Subject, student: nn.Module, batches: list[Any], steps: int, rate: float) -> None:
    mixed = list(batches)  # they are sorted by length
    random.Random(0).shuffle(mixed)
    with Progress(steps, "distil", unit="step") as bar:
        pela_vl.recover(
            student,
            subject.model,
            mixed,
            subject.features,
            steps,
            rate,
            progress=lambda done, total, loss: bar.update(1, f"loss {loss:.4f}"),
        )


def _row(subject: Subject, model: nn.Module, what: str, count: int, cpu: float) -> None:
    errors = []
    for function in (subject.features, subject.states):
        found, expected = (subject.collect(each, function) for each in (model.eval(), subject.model))
        errors.append(float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected)))
    print(f"| {what} | {count:,} | {errors[0]:.3f} | {errors[1]:.3f} | {cpu:.0f} |", flush=True)


if __name__ == "__main__":
    run_main(main)
