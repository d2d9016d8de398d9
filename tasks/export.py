"""Export a retrieval or pre-training checkpoint, dense or low rank, for other runtimes; check and time the result.

python tasks/export.py --checkpoint runs/flickr/best.safetensors --output model.onnx   (needs the export extra)
python tasks/export.py --checkpoint runs/flickr/best.safetensors --output model.pt2    (torch.export's own format)

The program takes images [B, 3, S, S] (normalised as in training), ids and mask [B, L], and gives image features and text
features [B, E], whose product is the ITC similarity, and matching logits [B, 2], of which index 1 says that they match.
"""

import argparse
import os
import statistics
import time

from pela_vl.base.errors import UserError, no_checkpoint, run_main
from pela_vl.base.script import script_parser

TOLERANCE = 1e-3


def main() -> None:
    args = _arguments()
    import torch

    from pela_vl.checkpoints.albef import load_model
    from pela_vl.deploy.export import (
        PairScorer,
        largest_difference,
        onnx_session,
        pair_inputs,
        pair_program,
        save_program,
    )
    from pela_vl.evaluation.inference import optimize_for_inference
    from pela_vl.settings import ModelSettings

    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_model(ModelSettings(image_size=args.image_size), args.checkpoint, mlm=False).model.eval()
    scorer = PairScorer(model).eval()
    inputs = pair_inputs(model, args.batch)
    with torch.no_grad():
        expected = scorer(*inputs)
        optimize_for_inference(model)
        save_program(pair_program(model), args.output)
        print(f"written: {args.output} ({os.path.getsize(args.output) / 2**20:.0f} MiB)")
        if args.output.endswith(".onnx"):
            session = onnx_session(args.output, torch.get_num_threads())
            feeds = dict(zip(("images", "ids", "mask"), (x.numpy() for x in inputs), strict=True))
            run = lambda: session.run(None, feeds)  # noqa: E731
        else:
            program = torch.export.load(args.output).module()
            run = lambda: program(*inputs)  # noqa: E731
        difference = largest_difference(run(), expected)
        print(f"largest difference to the model's own outputs: {difference:.2g}")
        if not difference < TOLERANCE:
            raise UserError(
                f"{args.output} does not answer as the model does (more than {TOLERANCE} apart): do not use it"
            )
        if args.repeats:
            for name, way in (("torch", lambda: scorer(*inputs)), ("exported", run)):
                print(f"{name:<9} {_seconds(way, args.repeats):.3f} s for a batch of {args.batch}")


def _seconds(way, repeats: int) -> float:
    way()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        way()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="ours, or a published ALBEF pre-training or retrieval file")
    parser.add_argument("--output", required=True, help="a name in .onnx or .pt2")
    parser.add_argument("--image-size", type=int, help="pixels a side; positions are interpolated to it")
    parser.add_argument("--batch", type=int, default=2, help="pairs to check and time with (any batch runs; default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="runs to time, 0 for none (default 3)")
    parser.add_argument("--threads", type=int, help="threads to use (default: all cores)")
    args = parser.parse_args()
    if not args.output.endswith((".onnx", ".pt2")):
        raise UserError(f"--output {args.output}: give a name ending in .onnx or .pt2")
    if not os.path.isfile(args.checkpoint):
        raise no_checkpoint(args.checkpoint)
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give at least 1")
    return args


if __name__ == "__main__":
    run_main(main)
