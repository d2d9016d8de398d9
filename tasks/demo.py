"""The whole method on built-in data: compress a pre-trained ALBEF, see the damage, recover it, fine-tune, compare.

python tasks/demo.py                 # what `make demo` runs; may be interrupted and run again
python tasks/demo.py --all-tasks     # `make demo-all`: SNLI-VE, RefCOCO+ and VQA too
"""

import os
import sys
from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    from pela_vl.base.progress import clock
    from pela_vl.demo.pipeline import Paths, Sizes, collect, stages
    from pela_vl.demo.stages import run_stages
    from pela_vl.report import format_table, write_report

    parser = script_parser(__doc__)
    parser.add_argument("--output", default="runs/demo", help="folder for results")
    parser.add_argument("--scenes", default="data/scenes", help="folder for the images")
    parser.add_argument("--train", type=int, default=Sizes.train, help="training images")
    parser.add_argument("--val", type=int, default=Sizes.val, help="validation images")
    parser.add_argument("--test", type=int, default=Sizes.test, help="test images")
    parser.add_argument("--pretrain-steps", type=int, default=None, help="instead of the config's")
    parser.add_argument("--retrieval-steps", type=int, default=None, help="instead of the config's")
    parser.add_argument("--all-tasks", action="store_true", help="fine-tune for the other tasks too")
    parser.add_argument("--task-steps", type=int, default=None, help="of those, instead of their configs'")
    given = parser.parse_args()
    os.chdir(ROOT)
    paths = Paths(Path(given.output), Path(given.scenes), Path("pela_vl/assets/scenes_teacher.safetensors"))
    if not paths.teacher.exists():
        raise UserError(f"{paths.teacher} is missing; it comes with the repository, so check it out again")
    sizes = Sizes(given.train, given.val, given.test, given.pretrain_steps, given.retrieval_steps)
    sizes.all_tasks, sizes.task_steps = given.all_tasks, given.task_steps
    seconds = run_stages(stages(paths, sizes), paths.root, [paths.teacher])
    demo = collect(paths, seconds, sizes.all_tasks)
    page = paths.root / "report.html"
    write_report(demo, page)
    print(f"\n{format_table(demo)}\n\nin {clock(seconds)}; open {page} in a browser", flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    run_main(main)
