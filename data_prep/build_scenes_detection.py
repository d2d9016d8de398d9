"""Render scenes with boxes and masks of their objects, in COCO's layout: 10 classes, the shapes.

Example: python data_prep/build_scenes_detection.py --output data/scenes_coco --train 2000 --val 200
Run it again after an interruption to go on; a finished set is left as it is.
"""

from pathlib import Path

from pela_vl.base.errors import run_main
from pela_vl.base.script import script_parser
from pela_vl.base.system import usable_cores
from pela_vl.data.scenes.chunks import SetRequest
from pela_vl.data.scenes.detected import build_detected


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for images/, train.json and val.json")
    parser.add_argument("--train", type=int, default=2000, help="images for training (default %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="images for validation (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=128, help="side in pixels (default %(default)s)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: the cores at hand)")
    args = parser.parse_args()
    request = SetRequest(args.train, args.val, seed=args.seed, image_size=args.image_size)
    made = build_detected(request, args.output, args.workers)
    print(f"{args.output}: {'complete' if made else 'was complete already'}, {args.train} train, {args.val} val")


if __name__ == "__main__":
    run_main(main)
