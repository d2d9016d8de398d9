"""Peak memory and seconds of a training step of UperNet, dense and low rank, each in a process of its own.

    python -m benchmarks.segmentation_step                                  UperNet-DeiT-B, one crop of 512 px
    python -m benchmarks.segmentation_step --backbone swin_base_patch4_window7_224

Random weights and images: neither changes what a step takes. Batch normalisation keeps its running statistics, since one image
gives no variance; drop path and the auxiliary head are on, in fp32 with AdamW.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from pela_vl.base.memory import keep_freed_memory
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.cost import count_parameters
from pela_vl.deploy.compression import usage_since
from pela_vl.lowrank import compress
from pela_vl.models.vision.sync_norm import SyncBatchNorm2d
from pela_vl.models.vision.uper import UperConfig, build_uper
from pela_vl.workloads.segmentation import pixel_cross_entropy

ROWS = {"dense": None, "low rank": 2.0}


def step_cost(row: str, backbone: str, batch: int, steps: int, pixels: int) -> dict[str, float | str]:
    """In this process; `steps` are timed after one to warm up."""
    start = usage_since(time.perf_counter()).peak_mib / 1024
    keep_freed_memory()
    torch.manual_seed(0)
    channels = 1024 if "large" in backbone else 512
    model = build_uper(UperConfig(backbone, 1000, pixels, drop_path=0.1, channels=channels))
    if ROWS[row] is not None:
        compress(model, ROWS[row], exclude=dense_heads(model), init="empty")
        for name, parameter in model.named_parameters():
            if name.endswith((".down.weight", ".up.weight")):
                torch.nn.init.normal_(parameter, std=0.02)
            elif name.endswith(".up.bias"):
                torch.nn.init.zeros_(parameter)
    model.train()
    for module in model.modules():
        if isinstance(module, SyncBatchNorm2d):
            module.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    images, labels = torch.randn(batch, 3, pixels, pixels), torch.randint(150, (batch, pixels, pixels))
    seconds, cpu_seconds = [], []
    for _ in range(steps + 1):
        began, cpu_began = time.perf_counter(), time.process_time()
        output = model(images)
        assert output.auxiliary is not None
        loss = pixel_cross_entropy(output.logits, labels)[0] + 0.4 * pixel_cross_entropy(output.auxiliary, labels)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    peak = usage_since(0.0).peak_mib / 1024
    return {
        "row": row,
        "parameters": count_parameters(model),
        "gib": peak,
        "start_gib": start,
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_base_patch16_224", help="timm's name (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images a step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps (default %(default)s)")
    parser.add_argument("--pixels", type=int, default=512, help="side of a crop (default %(default)s)")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    numbers = [args.backbone, args.batch, args.steps, args.pixels]
    if args.row:
        print(json.dumps(step_cost(args.row, *numbers)))
        return
    print(f"{args.backbone}, {args.batch} crop(s) of {args.pixels} px")
    for row in ROWS:
        command = [sys.executable, "-m", "benchmarks.segmentation_step", "--row", row, "--backbone", args.backbone]
        command += ["--batch", str(args.batch), "--steps", str(args.steps), "--pixels", str(args.pixels)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        cost = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{row:<9} {cost['parameters']:>12,} parameters  {cost['gib']:.2f} GiB at most ({cost['start_gib']:.2f} before the "
            f"model)  {cost['seconds']:.2f} s a step ({cost['cpu_seconds']:.2f} CPU s)  {cost['threads']} thread(s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
