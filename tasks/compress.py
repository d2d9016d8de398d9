"""Turn a dense checkpoint into a low-rank one and say what that saves and costs.

python tasks/compress.py --checkpoint ALBEF_4M.pth --output albef_4m_k3.safetensors
python tasks/compress.py --random albef_base --output random_k3.safetensors   (no weights at hand: just to try)

python tasks/compress.py --checkpoint ALBEF_4M.pth --output albef_4m_k3.safetensors --init gauss_newton --ranks allocated \
    --sequential --calibration flickr30k_train.json --image-root data/flickr   (for real inputs; see docs/beyond_svd.md)

python tasks/compress.py --checkpoint deit_base_patch16_224-b5f2ef4d.pth --kappa 2 --output deit_base_k2.safetensors

The output takes the place of the input as init.checkpoint of the other scripts (pre-training also wants init.teacher).
"""

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path

from pela_vl.base.errors import UserError, no_checkpoint, run_main
from pela_vl.base.script import script_parser

ASKED = (
    "kappa",
    "rank_multiple",
    "init",
    "ranks",
    "measured",
    "sequential",
    "strength",
    "refine_steps",
    "fast_products",
)


def main() -> None:
    args = _arguments()
    start = time.perf_counter()
    import torch

    from pela_vl.base.files import atomic_json
    from pela_vl.base.stages import StageBars
    from pela_vl.checkpoints.loading import dense_heads
    from pela_vl.checkpoints.ours import save_model
    from pela_vl.deploy.compression import compress_with_ema, usage_since
    from pela_vl.deploy.dense import calibration_for, describe, load_dense
    from pela_vl.settings import CompressSettings
    from pela_vl.training.assemble import check_compression

    if args.threads:
        torch.set_num_threads(args.threads)
    loaded = load_dense(args.checkpoint, args.random or args.backbone, args.image_size)
    what = describe(loaded)
    print(f"{args.checkpoint or 'random weights, ' + args.random}: {what}", flush=True)
    for note in loaded.notes:
        print(f"  {note}")
    if loaded.header.ranks:
        raise UserError(f"{args.checkpoint} is low rank already; compress the dense checkpoint that it came from")
    exclude = list(dict.fromkeys([*dense_heads(loaded.model), *args.exclude]))
    asked = {name: getattr(args, name) for name in ASKED}
    settings = CompressSettings(exclude=exclude, samples=args.samples, **asked)
    check_compression(settings)
    calibration = None
    if args.calibration:
        calibration = calibration_for(loaded, args.calibration, args.image_root, args.samples, args.resize)
    with StageBars() as bars:
        result = compress_with_ema(loaded, settings, bars.show, calibration)
    loaded.header.notes["compressed"] = {
        "from": os.path.basename(args.checkpoint) if args.checkpoint else "random weights",
        "exclude": settings.exclude,
        "dense": list(result.dense),
        "notes": list(result.notes),
    } | asked
    save_model(args.output, loaded.model, loaded.header, extra=result.ema)
    used = usage_since(start)
    print(f"{result.table()}\n\n{result.totals(loaded.header)}")
    print(f"took {used.seconds:.1f} s ({used.cpu_seconds:.1f} CPU s), peak memory {used.peak_mib:,.0f} MiB")
    print(f"written: {args.output} ({os.path.getsize(args.output) / 2**20:.0f} MiB)")
    if args.json:
        source = {"source": args.checkpoint or f"random {args.random}", "recognised": what}
        atomic_json(args.json, source | asked | result.record() | {"usage": asdict(used)})


def _arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="dense model: ours, a published ALBEF file of any task, or a DeiT or Swin")
    source.add_argument("--random", metavar="SIZE", help="instead, random weights, such as albef_base or timm's names")
    parser.add_argument("--backbone", help="timm's name of an image classifier other than the three released ones")
    parser.add_argument("--output", required=True, help="the low-rank checkpoint to write, a .safetensors file")
    parser.add_argument("--kappa", type=float, default=3.0, help="factors hold 1/kappa of the weights (default 3)")
    parser.add_argument(
        "--exclude", nargs="+", action="extend", default=[], metavar="GLOB", help="more modules to keep dense"
    )
    parser.add_argument("--rank-multiple", type=int, default=1, help="round ranks down to multiples of it (default 1)")
    parser.add_argument(
        "--init",
        choices=("svd", "whitened", "gauss_newton"),
        default="svd",
        help="factors nearest to the weights (default), or, on --calibration, with the outputs or the features that the "
        "task reads nearest to the dense ones",
    )
    parser.add_argument(
        "--ranks",
        choices=("uniform", "allocated"),
        default="uniform",
        help="the same kappa in every layer (default), or one budget spread over the layers by what a rank buys",
    )
    parser.add_argument("--measured", action="store_true", help="allocate by measured errors of the layers too")
    parser.add_argument(
        "--sequential", action="store_true", help="fit each layer to what the compressed ones before it give"
    )
    parser.add_argument("--strength", type=_strength, default=0.5, help="of that, 0 to 1 or auto (default %(default)s)")
    parser.add_argument(
        "--refine-steps",
        type=int,
        default=0,
        help="of Adam on each block towards the dense one's output (default none)",
    )
    parser.add_argument(
        "--fast-products", action="store_true", help="of the samples' pass: inputs rounded to bf16 (CPU) or TF32 (GPU)"
    )
    parser.add_argument(
        "--calibration",
        metavar="LIST",
        help="samples of the model's task for these; of a classifier, a folder a class too",
    )
    parser.add_argument("--resize", type=int, help="a classifier's calibration: shorter side before the centre crop")
    parser.add_argument("--image-root", default=".", help="what the list's paths are relative to (default %(default)s)")
    parser.add_argument("--samples", type=int, default=256, help="entries of the list to use (default %(default)s)")
    parser.add_argument("--image-size", type=int, help="pixels a side; positions are interpolated to it")
    parser.add_argument("--threads", type=int, help="threads to use (default: all cores)")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    if args.checkpoint and not os.path.exists(args.checkpoint):
        raise no_checkpoint(args.checkpoint)
    if not args.output.endswith(".safetensors"):
        raise UserError(f"--output {args.output}: give a name ending in .safetensors")
    if os.path.isdir(args.output):
        raise UserError(f"--output {args.output}: is a folder; name a file")
    if args.checkpoint and Path(args.checkpoint).resolve() == Path(args.output).resolve():
        raise UserError(f"--output {args.output}: is the dense checkpoint itself, which is still needed as the teacher")
    if (args.init != "svd") != (args.calibration is not None):
        raise UserError("--calibration LIST.json and --init whitened or gauss_newton go together: give both or neither")
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: give a positive number of entries")
    if args.image_size is not None and args.image_size < 1:
        raise UserError(f"--image-size {args.image_size}: give a positive number of pixels")
    return args


def _strength(text: str) -> float | None:
    return None if text == "auto" else float(text)


if __name__ == "__main__":
    run_main(main)
