"""The vision half on built-in data: a small DeiT and a small Swin Transformer, compressed, recovered, and compared with their
teachers.

python tasks/demo_vision.py                     # what `make demo-vision` runs; may be interrupted and run again
python tasks/demo_vision.py --train-teachers    # trains the teachers anew instead of reading the shipped ones
"""

import os
from argparse import Namespace
from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    from pela_vl.demo.vision import VisionSizes

    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo_vision"), help="folder for results")
    parser.add_argument("--images", type=Path, default=Path("data/objects"), help="folder for the images")
    parser.add_argument("--train", type=int, default=VisionSizes.train, help="training images (default %(default)s)")
    parser.add_argument("--val", type=int, default=VisionSizes.val, help="validation images (default %(default)s)")
    parser.add_argument("--test", type=int, default=VisionSizes.test, help="test images (default %(default)s)")
    parser.add_argument("--train-teachers", action="store_true", help="train the teacher, a quarter of an hour more")
    parser.add_argument(
        "--teacher-train", type=int, default=VisionSizes.teacher_train, help="images for that (default %(default)s)"
    )
    parser.add_argument("--teacher-steps", type=int, help="of a teacher's training, instead of its configuration's")
    parser.add_argument("--steps", type=int, help="of PELA's pre-training, instead of the configurations'")
    given = parser.parse_args()
    if given.teacher_steps and not given.train_teachers:
        raise UserError("--teacher-steps: the shipped teacher is not trained; add --train-teachers")
    os.chdir(ROOT)
    _run(given)


def _run(given: Namespace) -> None:
    from dataclasses import asdict

    from pela_vl.base.files import atomic_json, atomic_write
    from pela_vl.base.progress import clock
    from pela_vl.base.system import usable_cores
    from pela_vl.demo.stages import run_stages
    from pela_vl.demo.vision import BACKBONES, VisionPaths, VisionSizes, vision_stages
    from pela_vl.demo.vision_results import collect_vision
    from pela_vl.report.vision import vision_page, vision_table

    paths = VisionPaths(given.output, given.images, given.train_teachers)
    sizes = VisionSizes(
        given.train,
        given.val,
        given.test,
        given.teacher_train,
        steps=given.steps,
        teacher_steps=given.teacher_steps,
        workers=usable_cores(),
    )
    shipped = [] if given.train_teachers else [backbone.shipped for backbone in BACKBONES.values()]
    seconds = run_stages(vision_stages(paths, sizes), paths.root, shipped)
    run = collect_vision(paths, seconds)
    atomic_json(paths.root / "demo.json", asdict(run))
    page = paths.root / "report.html"
    with atomic_write(page, "w") as stream:
        stream.write(vision_page(run))
    print(f"\n{vision_table(run)}\n\nin {clock(seconds)}; open {page} in a browser", flush=True)


if __name__ == "__main__":
    run_main(main)
