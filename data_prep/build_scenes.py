"""Render the built-in corpus of scenes and write its texts in the public data sets' raw formats.

Example: python data_prep/build_scenes.py --output data/scenes --train 20000 --val 1000 --test 1000
Run it again after an interruption to go on; a finished corpus is left as it is.
"""

from pathlib import Path

from pela_vl.base.errors import run_main
from pela_vl.base.script import script_parser
from pela_vl.base.system import usable_cores
from pela_vl.data.scenes import SceneRequest, build_corpus


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the corpus")
    parser.add_argument("--train", type=int, default=20000, help="images for training (default %(default)s)")
    parser.add_argument("--val", type=int, default=1000, help="images for validation (default %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="images for testing (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=64, help="side in pixels (default %(default)s)")
    parser.add_argument(
        "--full-expressions", action="store_true", help="referring expressions that all name size, colour and shape"
    )
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: the cores at hand)")
    args = parser.parse_args()
    request = SceneRequest(
        args.train,
        args.val,
        args.test,
        seed=args.seed,
        image_size=args.image_size,
        full_expressions=args.full_expressions,
    )
    made = build_corpus(request, args.output, args.workers)
    state = "complete" if made else "was complete already"
    print(f"{args.output}: {state}, {args.train} train, {args.val} val, {args.test} test images")


if __name__ == "__main__":
    run_main(main)
