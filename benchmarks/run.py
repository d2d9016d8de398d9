"""Measure what users wait for against the published way, print one table and write it as JSON.

    python benchmarks/run.py            everything: half an hour on two cores, most of it bf16 where that is emulated
    python benchmarks/run.py --quick    fewer repetitions and smaller slices, under three minutes
    python benchmarks/run.py --only rerank inference

Run it with nothing else on the machine. A subject that fails is reported and the others still run. docs/performance.md
explains every row. The corpus builder has a command of its own, benchmarks/corpus.py.
"""

import argparse
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
SUBJECTS = (
    "rerank",
    "vqa_ranking",
    "pretrain_step",
    "inference",
    "segmentation",
    "detection",
    "compression",
    "loading",
)


def subject(name: str):
    """A subject's `measure(quick)`."""
    return import_module(f"benchmarks.{name}").measure


def main(argv: list[str] | None = None) -> int:
    present = [name for name in SUBJECTS if (Path(__file__).parent / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and smaller slices")
    parser.add_argument(
        "--only", nargs="+", choices=present, default=present, metavar="SUBJECT", help=", ".join(present)
    )
    parser.add_argument("--threads", type=int, help="threads for torch (default: one a core)")
    parser.add_argument("--json", default="runs/benchmarks.json", help="where the figures go (default: %(default)s)")
    args = parser.parse_args(argv)
    threads = args.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    # before torch is imported, here and in the processes that subjects start
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

    import torch

    from benchmarks.table import machine, render

    torch.set_num_threads(threads)
    about = machine()  # before a subject sets threads of its own
    rows, failed, started = [], [], time.perf_counter()
    for name in args.only:
        start = time.perf_counter()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += subject(name)(args.quick)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    about |= {"quick": args.quick, "minutes": round((time.perf_counter() - started) / 60, 1)}
    print(render(rows, about))
    path = Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, "rows": [asdict(row) for row in rows], "failed": failed}, indent=1))
    print(f"written: {path}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
