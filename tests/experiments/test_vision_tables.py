"""The vision half's tables as grids: every command loads, backbones are compressed as the paper says, plans count hours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pela_vl import methods
from pela_vl.base import config
from pela_vl.base.errors import UserError
from pela_vl.experiments import paper
from pela_vl.experiments.plan import estimate, launch_plan
from pela_vl.experiments.runs import Grid, in_order
from pela_vl.experiments.tables import table_runs, trained_variants
from pela_vl.experiments.vision import RELEASED, VISION_TABLES, vision_demo_scales, vision_full_scales
from pela_vl.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SCALES = [*vision_demo_scales(Path("r")), *vision_full_scales(Path("r"), Path("weights"), 4)]
NAMES = [f"{scale.name}-{scale.backbone.name}" for scale in SCALES]


def commands(name, scale, seeds=(0, 1)):
    return in_order(run for seed in seeds for run in table_runs(VISION_TABLES[name](scale), scale, seed))


@pytest.mark.parametrize("scale", SCALES, ids=NAMES)
def test_every_command_is_a_script_with_settings_that_load(scale, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = {run.name: run for name in VISION_TABLES for run in commands(name, scale, (0,))}
    made, folders = {str(scale.teacher), "null"}, set()
    for run in runs.values():
        script = next(word for word in run.command if word.endswith(".py"))
        assert (ROOT / script).is_file()
        for word in run.command:
            if word.startswith(("init.checkpoint=", "init.teacher=")):
                assert word.split("=", 1)[1] in made
        made |= {str(path) for path in run.makes}
        if "--config" not in run.command:
            continue
        changes = [value for flag, value in zip(run.command, run.command[1:], strict=False) if flag == "--set"]
        settings = config.load(Settings, run.command[run.command.index("--config") + 1], changes)
        methods.find(settings.method.name)
        assert settings.compress.kappa is None or "--evaluate" in run.command
        assert settings.output not in folders, "two runs in one folder"
        folders.add(settings.output)


@pytest.mark.parametrize("name", VISION_TABLES)
def test_rows_have_the_papers_figures_of_their_backbone(name):
    for scale in SCALES:
        table = VISION_TABLES[name](scale)
        assert table.rows[0].label == "dense" and table.rows[0].variant.kappa is None
        for row in table.rows:
            printed = {} if name == "table7" else paper.TABLE1[scale.backbone.printed]
            printed = printed | paper.TABLE7_VISION[scale.backbone.printed] if name == "table7" else printed
            if row.paper and row.label != "SVD only":
                assert row.paper == {"top-1": printed[row.label]}


def test_the_papers_backbones_are_compressed_as_the_paper_says():
    full = {scale.backbone.name: scale for scale in SCALES if scale.name == "full"}
    assert set(full) == set(RELEASED)
    kappas, excluded = {}, {}
    for name, scale in full.items():
        (cut,) = [run for run in commands("figure2", scale, (0,)) if run.name.startswith("compressed/")]
        kappas[name] = cut.command[cut.command.index("--kappa") + 1]
        excluded[name] = "*.attn.proj" in cut.command
        assert f"weights/{RELEASED[name]}" in cut.command
    assert kappas == {"deit_base": "2", "swin_base": "1.5", "deit3_large": "2"}
    assert excluded == {"deit_base": False, "swin_base": True, "deit3_large": False}
    labels = {name: [row.label for row in VISION_TABLES["table1"](scale).rows] for name, scale in full.items()}
    assert "MaskAlign" not in labels["swin_base"] and "ToMe" not in labels["swin_base"]
    assert {"TinyBERT", "MaskAlign", "ToMe", "PELA"} < set(labels["deit_base"])


def test_seeds_train_and_what_draws_nothing_runs_once():
    for scale in SCALES:
        first, second = ({run.name for run in commands("table7", scale, (seed,))} for seed in (0, 1))
        assert {"classify/dense/seed0", "classify/truncated/seed0"} <= first & second
        assert not {name for name in first & second if name.startswith("pretrain/")}


@pytest.mark.slow
def test_a_plan_counts_the_student_and_for_fd_the_teacher():
    scale = next(scale for scale in SCALES if scale.name == "full" and scale.backbone.name == "deit_base")
    table = VISION_TABLES["table7"](scale)
    known = trained_variants([table], scale, [0])
    runs = {run.name: run for run in commands("table7", scale, (0,))}
    flops = {}
    for row in ("neither", "fd"):
        run = runs[f"pretrain/{row}/seed0"]
        found = estimate(run, known[run.name], 312, 0.3)
        assert found.samples == 1_281_167 and found.epochs == 50
        flops[row] = found.flops / 1e9
    # Table 1's GFLOPs and attention's products (2 x 2 x 197^2 x 768 x 12), three passes of the student and one of the teacher
    attention = 4 * 197**2 * 768 * 12 / 1e9
    assert flops["neither"] == pytest.approx(3 * (16.958 + attention), rel=1e-3)
    assert flops["fd"] - flops["neither"] == pytest.approx(33.697 + attention, rel=1e-3)
    lines = launch_plan(Grid(list(runs.values()), Path("r"), []), known, 312, 0.3)
    assert any(
        "deepspeed --num_gpus 4 tasks/classify.py --config configs/vision/deit_base.yaml" in line for line in lines
    )
    assert "GPU hours in all" in lines[-1]


def test_three_gpus_are_refused():
    with pytest.raises(UserError, match="--gpus 3"):
        vision_full_scales(Path("r"), Path("w"), 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_grid_runs_to_its_figures(tmp_path):
    command = [
        sys.executable,
        "tasks/reproduce.py",
        "figure1",
        "figure2",
        "table7",
        "--family",
        "vision",
        "--backbones",
        "deit",
        "--seeds",
        "0",
    ]
    command += ["--scale", "quick", "--output", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [folder.name for folder in (tmp_path / "quick" / "vision").iterdir()] == ["deit"]
    for backbone in ("deit",):
        folder = tmp_path / "quick" / "vision" / backbone
        for name in ("figure1", "figure2"):
            assert (folder / f"{name}.png").stat().st_size > 5000
        rows = (folder / "figure2.md").read_text().splitlines()
        assert [row.split("|")[1].strip() for row in rows if row.startswith("| ")][1:] == [
            "---",
            "dense",
            "SVD only",
            "PELA",
        ]
        record = json.loads((folder / "classify" / "pela" / "seed0" / "evaluation.json").read_text())
        assert 0.9 < len(record["class_similarity"]) / 100 <= 1
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert "started" not in again.stderr and again.stdout == done.stdout
