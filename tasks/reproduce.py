"""The paper's experiments: run a grid, and set what it finds beside the paper's figures.

python tasks/reproduce.py table4                          scenes on a CPU; also table5, table6, table7, figure4, table8
python tasks/reproduce.py table4 table5 --seeds 0 1 2     several seeds: mean and standard deviation
python tasks/reproduce.py table2 table3 table9 --seeds 0 1    segmentation and detection on scenes
python tasks/reproduce.py beyond_svd                      better factors, before and after pre-training
python tasks/reproduce.py rwp                             RWP at weights over four decades, in both forms, alone and beside FD
python tasks/reproduce.py table4 --scale full --teacher ALBEF_4M.pth --gpus 4 --dry-run     the launch plan, nothing is run

python tasks/reproduce.py table1 table7 figure2 --family vision     a small DeiT and Swin; also figure1, figure4, table8
python tasks/reproduce.py table1 --family vision --scale full --teacher weights --dry-run     ImageNet; weights: the released files

A grid may be interrupted and run again: what is done is skipped, and tables share the runs that they have in common. Results
are in runs/reproduce/SCALE: TABLE.csv, TABLE.md, TABLE.png, and every run's folder with its log.
"""

import argparse
import os
from importlib import import_module
from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser

ROOT = Path(__file__).resolve().parent.parent
SCENES_TEACHER = "pela_vl/assets/scenes_teacher.safetensors"
TEACHERS = {"demo": SCENES_TEACHER, "quick": SCENES_TEACHER, "full": "ALBEF_4M.pth"}
NAMES = {
    "albef": ("table4", "table5", "table6", "table7", "figure4", "table8", "beyond_svd", "rwp"),
    "vision": ("table1", "table7", "figure1", "figure2", "figure4", "table8"),
}
DENSE = {"table2": "segmentation", "table3": "detection", "table9": "batch_scaling"}
"""Tables of dense prediction, which belong to no --family: the module of pela_vl.experiments that runs each."""


def main() -> None:
    args = _arguments()
    root = _from_root(args.output or ROOT / "runs" / "reproduce") / args.scale
    teacher = _from_root(args.teacher) if args.teacher else None
    os.chdir(ROOT)
    names = [name for name in args.what if name != "table8" and name not in DENSE]
    for name in DENSE:
        if name in args.what:
            _dense(args, name, root / name)
    if "table8" in args.what:
        _table8(args, root)
    if names and args.family == "vision":
        _vision(args, names, root, teacher)
    elif names:
        _albef(args, names, root, teacher or Path(TEACHERS[args.scale]))


def _albef(args: argparse.Namespace, names: list[str], root: Path, teacher: Path) -> None:
    from pela_vl.experiments.demo_scale import demo_scale
    from pela_vl.experiments.scales import full_scale
    from pela_vl.experiments.tables import TABLES

    if args.scale == "full":
        scale = full_scale(root, teacher, args.gpus)
    else:
        scale = demo_scale(root, teacher, quick=args.scale == "quick")
    _grid(args, [table for name in names for table in TABLES[name](scale)], scale)


def _vision(args: argparse.Namespace, names: list[str], root: Path, teachers: Path | None) -> None:
    """A grid for each backbone."""
    from pela_vl.experiments.vision import VISION_TABLES, vision_demo_scales, vision_full_scales

    if args.scale == "full":
        scales = vision_full_scales(root, teachers or Path("."), args.gpus)
    else:
        scales = vision_demo_scales(root, args.scale == "quick", *([teachers] if teachers else []))
    known = [scale.backbone.name for scale in scales]
    if unknown := sorted(set(args.backbones or ()) - set(known)):
        raise UserError(f"--backbones {' '.join(unknown)}: at this scale there are {', '.join(known)}")
    for scale in (scale for scale in scales if scale.backbone.name in (args.backbones or known)):
        _grid(args, [VISION_TABLES[name](scale) for name in names], scale)


def _from_root(path: str | Path) -> Path:
    """A path as the repository's folder sees it, however it was typed: commands, and so what is done, do not depend on that."""
    whole = Path(path).resolve()
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole


def _grid(args: argparse.Namespace, tables: list, scale) -> None:
    from pela_vl.experiments.runs import Grid
    from pela_vl.experiments.tables import table_runs, trained_variants

    runs = [run for seed in args.seeds for table in tables for run in table_runs(table, scale, seed)]
    grid = Grid(runs, scale.root, [path for path in scale.inputs if path.is_file() or not args.dry_run])
    if args.dry_run:
        from pela_vl.experiments.plan import launch_plan

        variants = trained_variants(tables, scale, args.seeds)
        print("\n".join(launch_plan(grid, variants, args.gpu_tflops, args.utilisation)))
        return
    if not args.show:
        grid.execute(args.jobs, args.threads)
    from pela_vl.experiments.report import report

    for table in tables:
        print(f"\n{report(table, scale, args.seeds, grid)}", flush=True)


def _dense(args: argparse.Namespace, name: str, root: Path) -> None:
    table = import_module(f"pela_vl.experiments.{DENSE[name]}").TABLE
    if args.scale == "full":
        page = "detection" if name == "table3" else "segmentation"
        raise UserError(f"{name} runs on scenes; docs/{page}.md has the commands for the paper's data")
    sizes = table.quick if args.scale == "quick" else table.sizes
    if args.dry_run:
        print("\n".join(" ".join(run.command) for run in table.planned(root, sizes, args.seeds)))
        return
    if not args.show:
        table.execute(root, sizes, args.seeds, args.jobs, args.threads)
    print(f"\n{table.text(root, sizes, args.seeds)}", flush=True)


def _table8(args: argparse.Namespace, root: Path) -> None:
    from pela_vl.experiments.step_cost import CONFIGS, PRINTED, Request, commands, measure_all, table

    batch = args.batch or (64 if args.scale == "full" else 16)
    for config in CONFIGS if args.family == "vision" else (PRINTED,):
        request = Request(config, batch, args.steps, args.threads)
        if args.dry_run:
            print("\n".join(commands(request)))
        else:
            print(f"\n{table(measure_all(root, request, args.show), request, root)}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument(
        "what", nargs="+", choices=sorted({*sum(NAMES.values(), ()), *DENSE}), help="which of the paper's"
    )
    parser.add_argument("--family", choices=list(NAMES), default="albef", help="whose tables (default %(default)s)")
    parser.add_argument(
        "--backbones", nargs="+", metavar="NAME", help="with --family vision (default: all of the scale)"
    )
    parser.add_argument(
        "--scale",
        choices=list(TEACHERS),
        default="demo",
        help="scenes (demo), with next to no steps (quick), or the paper's data (full)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="of training (default: 0 1 2 in the demo, else 0)")
    parser.add_argument(
        "--teacher",
        help="the dense checkpoint (default: the shipped one, or ALBEF_4M.pth); of vision the folder of them",
    )
    parser.add_argument("--output", help="folder (default: runs/reproduce of the repository)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default %(default)s)")
    parser.add_argument("--threads", type=int, help="of a run on a CPU (default: the cores shared by the jobs)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, at full scale with GPU hours")
    parser.add_argument("--show", action="store_true", help="run nothing; make the tables of what is done")
    parser.add_argument("--gpus", type=int, default=4, help="of the launched runs, full scale (default %(default)s)")
    parser.add_argument(
        "--gpu-tflops", type=float, default=312, help="peak of one GPU (default %(default)s, an A100's)"
    )
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of it reached (default %(default)s)")
    parser.add_argument("--batch", type=int, help="table8: images a step (default 16 in the demo, 64 in full)")
    parser.add_argument("--steps", type=int, default=5, help="table8: steps that are timed (default %(default)s)")
    args = parser.parse_args()
    for name in args.what:
        if name not in NAMES[args.family] and name not in DENSE:
            raise UserError(f"{name} is not of --family {args.family}, which has {', '.join(NAMES[args.family])}")
    if args.backbones and args.family != "vision":
        raise UserError("--backbones goes with --family vision")
    args.seeds = list(dict.fromkeys(args.seeds or ([0, 1, 2] if args.scale == "demo" else [0])))
    for name in ("jobs", "gpus", "gpu_tflops", "utilisation", "steps", "threads", "batch"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: give a positive number")
    if args.scale == "full" and args.jobs > 1:
        raise UserError("--jobs is for the demo: at full scale one run takes all GPUs")
    return args


if __name__ == "__main__":
    run_main(main)
