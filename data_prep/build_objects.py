"""Render single objects with labels, a folder a class: colour x shape (100 classes), with --textured x texture (400).

Example: python data_prep/build_objects.py --output data/objects --train 30000 --val 2000
Run it again after an interruption to go on; a finished set is left as it is.
"""

import os
from pathlib import Path

from pela_vl.base.errors import run_main
from pela_vl.base.script import script_parser
from pela_vl.data.scenes.objects import ObjectRequest, build_objects


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for train/, val/ and test/")
    parser.add_argument("--train", type=int, default=30000, help="images for training (default %(default)s)")
    parser.add_argument("--val", type=int, default=2000, help="images for validation (default %(default)s)")
    parser.add_argument("--test", type=int, default=0, help="images for testing (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=64, help="side in pixels (default %(default)s)")
    parser.add_argument("--textured", action="store_true", help="textures are classes too")
    parser.add_argument("--plain", action="store_true", help="every object is of one colour all over: learnt faster")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    args = parser.parse_args()
    counts = (args.train, args.val, args.test)
    kinds = {"textured": args.textured, "plain": args.plain}
    request = ObjectRequest(*counts, seed=args.seed, image_size=args.image_size, **kinds)
    made = build_objects(request, args.output, args.workers)
    state = "complete" if made else "was complete already"
    print(
        f"{args.output}: {state}, {len(request.classes)} classes, {args.train} train, {args.val} val, {args.test} test"
    )


if __name__ == "__main__":
    run_main(main)
