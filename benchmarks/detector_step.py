"""Peak memory and seconds of a training step of the full-size Cascade Mask R-CNN with Swin-B, dense and low rank.

    python -m benchmarks.detector_step                   one image of 800 x 1088, both models, each in a process of its own
    python -m benchmarks.detector_step --row "low rank"  one of them, in this process

Random weights and a random image with ten objects: neither changes what a step takes. The step is the whole one: backbone,
proposals, three stages with boxes and masks, backward, AdamW.
"""

import json
import statistics
import subprocess
import sys
import time

import torch

from pela_vl.base.distributed import choose_device
from pela_vl.base.errors import run_main
from pela_vl.base.memory import keep_freed_memory
from pela_vl.base.script import script_parser
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.cost import count_parameters
from pela_vl.deploy.compression import usage_since
from pela_vl.lowrank import compress
from pela_vl.models.vision.boxes import Truth
from pela_vl.models.vision.cascade import build_detector
from pela_vl.models.vision.detector_config import DetectorConfig
from pela_vl.training.assemble import make_autocast

ROWS = {"dense": None, "low rank": 2.0}
HEIGHT, WIDTH, OBJECTS = 800, 1088, 10


def measure(row: str, batch: int, steps: int, precision: str, checkpointing: bool) -> dict:
    """In this process; `steps` are timed after one to warm up.

    Args:
        row: One of ROWS.
        batch: Images.
        steps: That are timed.
        precision: As train.precision.
        checkpointing: Recompute every block in backward.
    """
    start = usage_since(time.perf_counter()).peak_mib / 1024
    keep_freed_memory()
    device = choose_device("auto")
    torch.manual_seed(0)
    model = build_detector(DetectorConfig(drop_path=0.3))
    if ROWS[row] is not None:
        compress(model, ROWS[row], exclude=dense_heads(model), init="empty")
        for parameter in model.backbone.layers.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    model.to(device).train()
    model.set_activation_checkpointing(checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    images, autocast = torch.randn(batch, 3, HEIGHT, WIDTH, device=device), make_autocast(precision, device)
    corners = torch.rand(OBJECTS, 2) * torch.tensor([WIDTH * 0.6, HEIGHT * 0.6])
    boxes = torch.cat([corners, corners + 40 + torch.rand(OBJECTS, 2) * 250], 1).to(device)
    masks = torch.zeros(OBJECTS, HEIGHT, WIDTH, dtype=torch.bool, device=device)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    truth, seconds = Truth(boxes, torch.arange(OBJECTS, device=device), masks), []
    for _ in range(steps + 1):
        began = time.perf_counter()
        with autocast():
            losses = model.losses(model.pyramid(images), [(HEIGHT, WIDTH)] * batch, [truth] * batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    gpu = device.type == "cuda"
    gib = torch.cuda.max_memory_allocated(device) / 2**30 if gpu else usage_since(0.0).peak_mib / 1024
    found = {"row": row, "parameters": count_parameters(model), "batch": batch, "gib": gib, "start_gib": start}
    found |= {"seconds": statistics.median(seconds[1:]), "device": device.type, "precision": precision}
    return found | {"threads": torch.get_num_threads(), "checkpointing": checkpointing}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--row", choices=list(ROWS), help="measure this one here and print JSON (default: both)")
    parser.add_argument("--batch", type=int, default=1, help="images a step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="that are timed, after one (default %(default)s)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--activation-checkpointing", action="store_true")
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row, args.batch, args.steps, args.precision, args.activation_checkpointing)))
        return
    for row in ROWS:
        command = [sys.executable, "-m", "benchmarks.detector_step", "--row", row, *sys.argv[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        cost = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{row:<9} {cost['parameters']:>11,} parameters  peak {cost['gib']:.2f} GiB ({cost['start_gib']:.2f} of it before the "
            f"model)  {cost['seconds']:.1f} s a step of {cost['batch']} on {cost['device']}, {cost['threads']} thread(s), "
            f"{cost['precision']}",
            flush=True,
        )


if __name__ == "__main__":
    run_main(main)
