"""Render scenes with a label image each, in ADE20K's layout, and write their lists: 18 classes, shapes and backgrounds.

Example: python data_prep/build_scenes_segmentation.py --output data/scenes_ade --train 2000 --val 200
Run it again after an interruption to go on; a finished set is left as it is. The lists are in OUTPUT/lists.
"""

from pathlib import Path

from pela_vl.base.errors import run_main
from pela_vl.base.script import script_parser
from pela_vl.base.system import usable_cores
from pela_vl.data.public.segmentation import find_ade, write_found
from pela_vl.data.scenes.segmented import SegmentedRequest, build_segmented


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for images/, annotations/ and lists/")
    parser.add_argument("--train", type=int, default=2000, help="images for training (default %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="images for validation (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=128, help="side in pixels (default %(default)s)")
    parser.add_argument("--plain", action="store_true", help="every object is of one colour all over: learnt faster")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: the cores at hand)")
    args = parser.parse_args()
    request = SegmentedRequest(args.train, args.val, seed=args.seed, image_size=args.image_size, plain=args.plain)
    made = build_segmented(request, args.output, args.workers)
    found = find_ade(args.output, partial=True)
    paths = write_found(found, args.output / "lists", "ade20k")
    state = "complete" if made else "was complete already"
    print(f"{args.output}: {state}, {len(found.splits['train'])} train, {len(found.splits['val'])} val")
    print(f"lists: {', '.join(str(path) for path in paths.values())}")


if __name__ == "__main__":
    run_main(main)
