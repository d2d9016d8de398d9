"""Which share of small changes to the code the tests notice: mutmut on a random sample of a room's mutants.

The tree is copied first, so the checkout stays as it is. A mutant counts as killed when a test fails or the run ends by the
time limit; mutants of lines that no test runs count as survivors. Only the tests that run the changed function are run, and
the first failure ends a mutant. Counted apart are survivors that do what the code does: a tensor's device left out on a CPU, a
`strict` check of lengths that are equal by construction, UTF-8 in capitals or left out where it is the default (Linux), other
words in a message, and those that tests/mutation_equivalents.yaml lists with the reason of each. The interval is Wilson's, of
95 %, without those.

    python tests/mutation.py metrics lowrank evaluation data

With --keep the copy stays and is used again: mutants and the table of which test runs what are made anew only for what changed.
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
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import yaml

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
# Of these, tests that start processes, which import every mutant anew, or draw thousands of scenes: minutes a mutant. What only
# they notice counts as a survivor.
_LONG = {
    "data": [
        "tests/data/corpus/test_corpus_build.py::test_killed_and_run_again",
        "tests/data/corpus/test_corpus_build.py::test_same_bytes_with_more_workers_and_other_jobs",
        "tests/data/corpus/test_corpus_engines.py::test_a_killed_worker_is_said",
        "tests/data/corpus/test_corpus_engines.py::test_order_and_look_ahead",
        "tests/data/corpus/test_corpus_sources.py::test_json_elements_are_those_of_json_load",
        "tests/data/corpus/test_mutations_corpus.py::test_samples_are_scattered_over_the_open_shards_alike_for_any_workers",
        "tests/data/scenes/test_scenes_corpus.py::test_killed_and_run_again",
        "tests/data/scenes/test_scenes_corpus.py::test_same_bytes_with_more_workers_and_other_chunks",
        "tests/data/scenes/test_scenes_language.py::test_vocabulary_is_exactly_what_is_said",
        "tests/data/sets/test_flat.py::test_a_worker_that_is_started_anew_reads_shared_memory",
        "tests/data/sets/test_flat.py::test_workers_do_not_copy_a_list",
        "tests/data_prep/test_build_pretrain_corpus.py",  # whose workers run in a folder without mutmut's settings
        "tests/data_prep/test_build_own.py::test_a_model_is_fine_tuned_by_the_shipped_configuration",
    ],
}
_KILLED = {1, 3, -24, 24, 36, 37, 152, 255, -11, -9}  # mutmut's exit codes for a failed test, a time-out and a crash
_CONFIG = """
[tool.mutmut]
source_paths = ["pela_vl/{room}"]
also_copy = {copied}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-m", "not slow", "--durations=0", "--timeout=0", {deselected}]
timeout_constant = 4.0
timeout_multiplier = 5.0
on_dependency_change = "ignore"
"""
# Fixtures of a module are made once only while its tests stand together, and mutmut names tests in no order. What the code
# and the tests remember of the run before the mutant, in functools' caches, is forgotten.
_HOOKS = """

def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (item.location[0], item.location[1] or 0))


def pytest_sessionstart(session):
    import functools
    import gc

    here = str(session.config.rootpath)
    for thing in gc.get_objects():
        if isinstance(thing, functools._lru_cache_wrapper):
            code = getattr(getattr(thing, "__wrapped__", None), "__code__", None)
            if code is not None and code.co_filename.startswith(here):
                thing.cache_clear()
"""
_LITERAL = re.compile(r""""[^"]*"|'[^']*'""")
_TO_DEVICE = re.compile(r"\.to\((?:[\w.]+\.)?device\)")
EQUIVALENTS = ROOT / "tests" / "mutation_equivalents.yaml"


def changed(diff: str) -> tuple[str, str]:
    """The lines that a mutant takes away and those it puts there, blanks at the ends left out."""
    lines = diff.splitlines()
    before, after = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(3 * sign))
        for sign in "-+"
    )
    return before, after


def listed_equivalents() -> dict[tuple[str, str, str], str]:
    """(function, line before, line after) -> why no test can tell them apart. Raises `SystemExit` for a line that is gone."""
    found = {}
    for entry in yaml.safe_load(EQUIVALENTS.read_text(encoding="utf-8")) or []:
        place, before = entry["function"], " ".join(entry["before"].split())
        parts = place.split(".")
        files = [ROOT.joinpath(*parts[:end]).with_suffix(".py") for end in range(len(parts) - 1, 1, -1)]
        file = next((file for file in files if file.is_file()), None)
        if file is None or before not in " ".join(file.read_text(encoding="utf-8").split()):
            raise SystemExit(f"error: {EQUIVALENTS.name}: {place}: the code has no more {before!r}")
        for after in entry["after"]:
            found[place, before, " ".join(after.split())] = entry["reason"]
    return found


def _bare(line: str) -> str:
    """Without blanks, and commas before a bracket."""
    return re.sub(r",([)\]}])", r"\1", line.replace(" ", ""))


def alike(diff: str) -> str:
    """The kind of a mutant that does on a CPU what the code does, or ""."""
    before, after = changed(diff)
    if before.count("device=") > after.count("device=") or re.search(r"device ?= ?None", after):
        return "device"
    if before.count("strict=True") > after.count("strict=True"):
        return "strict"
    moved = [before[: found.start()] + ".to(None)" + before[found.end() :] for found in _TO_DEVICE.finditer(before)]
    if after in moved:
        return "device"
    codec = 'encoding="utf-8"'
    if codec in before and _bare(after) in (_bare(before.replace(codec, new)) for new in ("", "encoding=None")):
        return "codec"  # the default of Linux
    if before != after and before.casefold() == after.casefold() and re.search("""["']utf-8["']""", before):
        return "codec"  # whose name has no case
    literals = zip(_LITERAL.findall(before), _LITERAL.findall(after), strict=False)
    changed_words = [one for one, other in literals if one != other][:1]
    prose = bool(changed_words) and len(changed_words[0][1:-1].split()) > 1  # a name has no blank
    if prose and (before.casefold() == after.casefold() or re.search("""["']XX[^"']* [^"']*XX["']""", after)):
        return "message"
    return ""


def copy_tree(target: Path) -> None:
    """Bring a copy of the files under version control up to date, with a link to what lies beside the checkout for tests."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_file() and not (copy.exists() and copy.stat().st_mtime == source.stat().st_mtime):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
    with open(target / "tests" / "conftest.py", "a", encoding="utf-8") as file:
        file.write(_HOOKS)
    beside = target / "shared"
    if (ROOT.parent / "shared").exists() and not beside.exists():
        beside.symlink_to((ROOT.parent / "shared").resolve())  # the tests run in target/mutants


def make_mutants(tree: Path, room: str, processes: int) -> list[str]:
    """Write all mutants of a room where mutmut looks for them, and give their names."""
    os.chdir(tree)  # whose pyproject.toml mutmut reads when it is imported
    from mutmut.__main__ import create_mutants
    from mutmut.configuration import reset_config
    from mutmut.mutation.trampoline import set_mutant_under_test
    from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir

    reset_config()
    set_mutant_under_test("mutant_generation")
    with open(os.devnull, "w") as silent, redirect_stdout(silent):
        Path("mutants").mkdir(exist_ok=True)
        copy_src_dir()
        copy_also_copy_files()
        create_mutants(processes)
    del os.environ["MUTANT_UNDER_TEST"]
    return sorted(_codes(tree, room))


def _codes(tree: Path, room: str) -> dict[str, int | None]:
    """mutmut's exit code of every mutant."""
    codes: dict[str, int | None] = {}
    for file in tree.glob(f"mutants/pela_vl/{room}/**/*.meta"):
        codes |= json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"]
    return codes


def function_of(mutant: str) -> str:
    """pela_vl.metrics.boxes.x_area__mutmut_3 -> pela_vl.metrics.boxes.area, and a method as module.Class.method."""
    module, _, name = mutant.partition("__mutmut_")[0].rpartition(".")
    return f"{module}.{name.removeprefix('x_').removeprefix('x').strip('ǁ').replace('ǁ', '.')}"


def run_room(tree: Path, room: str, count: int, seed: int, processes: int) -> dict[str, str]:
    """Of each mutant of the sample: "killed", the kind of one that is counted apart, or "" for one that survived."""
    others = [path for path in sorted((ROOT / "pela_vl").iterdir()) if path.name not in (room, "__pycache__")]
    copied = ["tests", "configs", "tasks", "data_prep", "benchmarks", "docs", "README.md", "pyproject.toml"]
    copied += [path.relative_to(ROOT).as_posix() for path in others]
    base = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    deselected = ", ".join(f'"--deselect={test}"' for test in _LONG.get(room, []))
    options = {"room": room, "copied": copied, "tests": TESTS[room], "deselected": deselected}
    (tree / "pyproject.toml").write_text(base + _CONFIG.format(**options))
    names = make_mutants(tree, room, processes)
    sample = sorted(random.Random(seed).sample(names, min(count, len(names))))
    print(f"{room}: {len(sample)} of {len(names)} mutants", file=sys.stderr, flush=True)
    mutmut = Path(sys.executable).with_name("mutmut")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(mutmut), "run", "--max-children", str(processes), *sample]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=sys.stderr)
    codes = _codes(tree, room)
    if done.returncode or any(codes[name] is None for name in sample):
        raise SystemExit(f"error: mutmut ended with {done.returncode}; its output is above")
    known = listed_equivalents()
    kinds: dict[str, str] = {}
    for name in sample:
        if codes[name] not in _KILLED:
            command = [str(mutmut), "show", name]
            diff = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True).stdout
            kinds[name] = "listed" if (function_of(name), *changed(diff)) in known else alike(diff)
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
    parser.add_argument(
        "--keep", type=Path, help="folder for the copy of the tree, which stays (default: a temporary one)"
    )
    args = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        scratch = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutation-")))
        for room in args.rooms:
            tree = scratch.resolve() / room
            copy_tree(tree)
            kinds = Counter(run_room(tree, room, args.sample, args.seed, args.processes).values())
            killed, survived = kinds.pop("killed", 0), kinds.pop("", 0)
            low, high = interval(killed, killed + survived)
            share = f"{100 * killed / (killed + survived):.1f} %  {low:.1f} to {high:.1f} %"
            apart = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"
            rows.append(f"{room:<11}{killed:>7}{survived:>9}  {share}  {apart}")
    print("\n".join(["room        killed survived  share   of 95 %           counted apart", *rows]))


if __name__ == "__main__":
    main()
