"""Which share of small changes to the code the tests notice: mutmut on a random sample of a room's mutants.

The tree is copied first, so the checkout stays as it is. A mutant counts as killed when a test fails or the run ends by the
time limit; mutants of lines that no test runs count as survivors. Counted apart are survivors that do on a CPU what the code
does: a tensor's device left out, a `strict` check of lengths that are equal by construction, other words in a message. The
interval is Wilson's, of 95 %, without those.

    python tests/mutation.py metrics lowrank evaluation data
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# the narrow tests of each room
TESTS = {
    "metrics": [
        "tests/metrics",
        "tests/models/albef/test_attention_maps.py",
        "tests/evaluation/test_localisation_merged.py",
    ],
    "lowrank": ["tests/lowrank"],
    "evaluation": ["tests/evaluation"],
    "data": ["tests/data", "tests/data_prep"],
}
_KILLED = {1, 3, -24, 24, 36, 37, 152, 255, -11, -9}  # mutmut's exit codes for a failed test, a time-out and a crash
_CONFIG = """
[tool.mutmut]
source_paths = ["pela_vl/{room}"]
also_copy = {copied}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-m", "not slow", "--durations=0"]
timeout_constant = 30.0
"""


def alike(diff: str) -> str:
    """The kind of a mutant that does on a CPU what the code does, or ""."""
    lines = diff.splitlines()
    before, after = (
        " ".join(line[1:] for line in lines if line.startswith(sign) and not line.startswith(3 * sign)) for sign in "-+"
    )
    if before.count("device=") > after.count("device=") or "device=None" in after:
        return "device"
    if before.count("strict=True") > after.count("strict=True"):
        return "strict"
    prose = re.search(r"""["'][^"']* [^"']*["']""", before)  # with a blank, so no name
    if prose and (before.casefold() == after.casefold() or re.search(r"""["']XX[^"']* [^"']*XX["']""", after)):
        return "message"
    return ""


def copy_tree(target: Path) -> None:
    """The files under version control, and a link to what lies beside the checkout for tests."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, target / name)
    beside = target / "shared"
    if (ROOT.parent / "shared").exists() and not beside.exists():
        beside.symlink_to((ROOT.parent / "shared").resolve())  # the tests run in target/mutants


def mutants_of(tree: Path, room: str) -> list[str]:
    """The names of all mutants of a room, as mutmut gives them."""
    from mutmut.configuration import reset_config
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    os.chdir(tree)
    reset_config()
    names = []
    for path in sorted(Path("pela_vl", room).rglob("*.py")):
        made = mutate_file_contents(str(path), path.read_text(encoding="utf-8"))
        names += [get_mutant_name(path, name) for name in made.mutant_names]
    return names


def run_room(tree: Path, room: str, count: int, seed: int, processes: int) -> dict[str, str]:
    """Of each mutant of the sample: "killed", the kind of one that is counted apart, or "" for one that survived."""
    copied = ["pela_vl", "tests", "configs", "tasks", "data_prep", "benchmarks", "docs", "README.md", "pyproject.toml"]
    base = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tree / "pyproject.toml").write_text(base + _CONFIG.format(room=room, copied=copied, tests=TESTS[room]))
    shutil.rmtree(tree / "mutants", ignore_errors=True)
    names = mutants_of(tree, room)
    sample = sorted(random.Random(seed).sample(names, min(count, len(names))))
    print(f"{room}: {len(sample)} of {len(names)} mutants", file=sys.stderr, flush=True)
    mutmut = Path(sys.executable).with_name("mutmut")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(mutmut), "run", "--max-children", str(processes), *sample]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=sys.stderr)
    codes: dict[str, int | None] = {}
    for file in tree.glob(f"mutants/pela_vl/{room}/**/*.meta"):
        codes |= json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"]
    if done.returncode or not all(name in codes for name in sample):
        raise SystemExit(f"error: mutmut ended with {done.returncode}; its output is above")
    kinds: dict[str, str] = {}
    for name in sample:
        if codes[name] not in _KILLED:
            command = [str(mutmut), "show", name]
            diff = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True).stdout
            kinds[name] = alike(diff)
            if not kinds[name]:
                print(f"survived ({codes[name]}): {name}\n{diff}", flush=True)
    return {name: kinds.get(name, "killed") for name in sample}


def interval(killed: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share, in per cent."""
    share, spread = killed / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return 100 * (middle - half), 100 * (middle + half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="+", choices=sorted(TESTS))
    parser.add_argument("--sample", type=int, default=60, help="mutants of each room (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="folder for the copy of the tree (default: the system's)")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="mutation-", dir=args.scratch) as scratch:
        tree = Path(scratch, "tree")
        copy_tree(tree)
        for room in args.rooms:
            kinds = Counter(run_room(tree, room, args.sample, args.seed, args.processes).values())
            killed, survived = kinds.pop("killed", 0), kinds.pop("", 0)
            low, high = interval(killed, killed + survived)
            share = f"{100 * killed / (killed + survived):.1f} %  {low:.1f} to {high:.1f} %"
            apart = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"
            rows.append(f"{room:<11}{killed:>7}{survived:>9}  {share}  {apart}")
    print("\n".join(["room        killed survived  share   of 95 %           counted apart", *rows]))


if __name__ == "__main__":
    main()
