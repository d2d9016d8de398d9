"""The paper's tables as grids: every command is one that a user can type, rows and figures are the paper's."""

import json
from pathlib import Path

import pytest

from pela_vl import methods
from pela_vl.base import config
from pela_vl.base.errors import UserError
from pela_vl.experiments import paper
from pela_vl.experiments.demo_scale import demo_scale
from pela_vl.experiments.results import collect
from pela_vl.experiments.runs import Grid, in_order
from pela_vl.experiments.scales import full_scale
from pela_vl.experiments.tables import TABLES, table_runs, trained_variants
from pela_vl.experiments.variants import RWP_SWEEP, RWP_WEIGHTS
from pela_vl.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SCALES = {
    "demo": demo_scale(Path("r"), Path("teacher.safetensors")),
    "full": full_scale(Path("r"), Path("ALBEF_4M.pth"), 4),
}


def commands(name, scale):
    runs = [run for table in TABLES[name](scale) for seed in (0, 1) for run in table_runs(table, scale, seed)]
    return in_order(runs)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_command_is_a_script_with_settings_that_load(scale, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = {run.name: run for name in TABLES for run in commands(name, scale)}
    folders = set()
    for run in runs.values():
        script = next(word for word in run.command if word.endswith(".py"))
        assert (ROOT / script).is_file()
        if "--config" not in run.command or "/seed1" in run.name:
            continue
        changes = [value for flag, value in zip(run.command, run.command[1:], strict=False) if flag == "--set"]
        settings = config.load(Settings, run.command[run.command.index("--config") + 1], changes)
        methods.find(settings.method.name)
        assert settings.output not in folders, "two runs in one folder"
        folders.add(settings.output)
        assert all(path.parent == Path(settings.output) for path in run.makes)


@pytest.mark.parametrize("name", TABLES)
def test_what_a_training_starts_from_is_made_by_a_run_before_it(name):
    for scale in SCALES.values():
        made = {str(scale.teacher), "null"}
        for run in commands(name, scale):
            for word in run.command:
                if word.startswith(("init.checkpoint=", "init.teacher=")):
                    assert word.split("=", 1)[1] in made
            made |= {str(path) for path in run.makes}


def test_seeds_differ_where_something_is_trained_and_only_there():
    scale = SCALES["demo"]
    for table in TABLES["table4"](scale):
        first, second = ({run.name for run in table_runs(table, scale, seed)} for seed in (0, 1))
        assert not first & second
    start = TABLES["beyond_svd"](scale)[0].rows[0]
    assert scale.run("start", start.variant, 0) == scale.run("start", start.variant, 1)


def test_the_longest_pretraining_is_of_two_rows_alone_and_the_others_have_no_cell_for_it(tmp_path):
    scale = SCALES["demo"]
    table = TABLES["beyond_svd"](scale)[0]
    runs = {run.name: run for run in in_order(table_runs(table, scale, 1))}
    longest = {
        name: " ".join(run.command) for name, run in runs.items() if name.startswith("pretrain/") and "longer" in name
    }
    assert {name.split("/")[1] for name in longest} == {
        "pela_plain_lower_rate_longer",
        "pela_gauss_newton_sequential_longer",
    }
    for name, command in longest.items():
        usual = " ".join(runs[name.replace("_longer", "")].command)
        assert [text.rfind("steps=400") > text.rfind("steps=120") for text in (command, usual)] == [True, False]
    place = next(place for place, column in enumerate(table.columns) if column.task == "zero_shot_longer")
    lines = collect(table, scale, (0, 1), Grid(commands("beyond_svd", scale), tmp_path, [])).lines
    wanted = {line.row.label: line.cells[place].wanted for line in lines}
    assert wanted == dict.fromkeys(wanted, 0) | {"dense": 1, "plain": 2, "+ sequential": 2}


def test_tables_share_the_runs_they_have_in_common():
    scale = SCALES["demo"]
    pretrained = [
        {run.name for run in commands(name, scale) if run.name.startswith("pretrain/pela/")}
        for name in TABLES
        if name != "beyond_svd"  # which trains at a rate of its own
    ]
    assert all(names == {"pretrain/pela/seed0", "pretrain/pela/seed1"} for names in pretrained)


def test_ablations_and_compressions_differ_in_what_they_say():
    scale = SCALES["demo"]
    texts = {run.name: " ".join(run.command) for run in commands("table7", scale)}
    assert "losses.rwp=0" in texts["pretrain/fd/seed0"] and "losses.fd=0" in texts["pretrain/rwp/seed0"]
    kappas = [
        run.command[run.command.index("--kappa") + 1] for run in commands("figure4", scale) if "--kappa" in run.command
    ]
    assert sorted(map(float, kappas)) == [1.5, 2, 3, 4, 6, 10]


def test_rwp_is_swept_over_four_weights_in_both_forms_alone_and_beside_fd(monkeypatch):
    monkeypatch.chdir(ROOT)
    scale, found = SCALES["demo"], set()
    for run in commands("rwp", scale):
        if run.name.startswith("pretrain/") and run.name.endswith("seed0"):
            changes = [value for flag, value in zip(run.command, run.command[1:], strict=False) if flag == "--set"]
            settings = config.load(Settings, run.command[run.command.index("--config") + 1], changes)
            losses = settings.losses
            if settings.method.name == "pela" and losses.rwp:
                found.add((losses.rwp_form, losses.rwp, losses.fd > 0))
    assert found == set(RWP_SWEEP) and len(found) == 16
    for form, weights in RWP_WEIGHTS.items():
        assert max(weights) == pytest.approx(1000 * min(weights)), form


def test_students_are_cut_from_the_checkpoint_they_start_from(monkeypatch):
    """With another teacher named, the students would stay whole (see StudentSettings)."""
    monkeypatch.chdir(ROOT)
    for scale in SCALES.values():
        for run in commands("table4", scale):
            if run.name.startswith(("pretrain/tinybert", "pretrain/maskalign")):
                changes = [value for flag, value in zip(run.command, run.command[1:], strict=False) if flag == "--set"]
                settings = config.load(Settings, run.command[run.command.index("--config") + 1], changes)
                assert settings.init.teacher is None and settings.init.checkpoint == str(scale.teacher)


def test_full_scale_keeps_an_updates_batch():
    with pytest.raises(UserError, match="1, 2 or 4"):
        full_scale(Path("r"), Path("t"), 3)
    for gpus in (1, 2, 4):
        run = full_scale(Path("r"), Path("t"), gpus).run(
            "flickr", TABLES["table4"](SCALES["full"])[0].rows[0].variant, 0
        )
        accumulation = [int(word.split("=")[1]) for word in run.command if word.startswith("train.accumulation=")]
        assert gpus * (accumulation or [1])[0] == 4


def test_variants_are_known_by_their_runs():
    scale = SCALES["full"]
    found = trained_variants(TABLES["figure4"](scale), scale, [0])
    assert found["pretrain/pela_kappa_10/seed0"].kappa == 10
    assert found["retrieval/dense/seed0"].kappa is None


def test_figures_are_the_papers():
    folder = ROOT.parent / "shared" / "reference"
    if not (folder / "paper_numbers.json").exists():
        pytest.skip("needs ../shared/reference/paper_numbers.json")
    known = json.loads((folder / "paper_numbers.json").read_text())
    pairs = [
        (paper.FLICKR, known["table4_flickr30k"], 2),
        (paper.COCO, known["table4_coco"], 2),
        (paper.TABLE5, known["table5"], 2),
        (paper.TABLE6, known["table6_refcoco_plus"], 0),
        (paper.TABLE7, known["table7_albef"], 0),
    ]
    recalls = known["table4_flickr30k"]["columns"]
    names = {"SVD only": "svd_only", "FD": "fd", "RWP": "rwp", "FD + RWP": "fd+rwp"}
    for ours, theirs, skip in pairs:
        for row, figures in ours.items():
            printed = dict(zip(theirs.get("columns", recalls), theirs[names.get(row, row)], strict=True))
            assert figures == {head: value for head, value in list(printed.items())[skip:] if value is not None}


def test_grounding_without_fine_tuning_reads_expressions_of_a_corpus_of_its_own():
    """They name size, colour and shape, which tells truncated models from dense ones."""
    runs = {run.name: run for run in commands("table6", SCALES["demo"])}
    lists = runs["data/grounding_full_expressions"]
    assert "--full-expressions" in lists.needs[0].command and "--full-expressions" not in runs["data/render"].command
    for row in ("dense", "truncated", "pela"):
        evaluated = runs[f"grounding_zero_shot/{row}/seed{int(row == 'pela')}"]
        assert "--evaluate" in evaluated.command and lists in evaluated.needs
        assert lists not in in_order([runs[f"grounding/{row}/seed1"]])
    assert "grounding_zero_shot/dense/seed1" not in runs


def test_questions_of_existence_come_from_a_corpus_of_their_own():
    runs = {run.name: run for run in commands("table5", SCALES["demo"])}
    lists = runs["data/vqa_existence"]
    assert (
        lists.command[-2:] == ("--question-types", "is there a") and "--question-types" not in runs["data/vqa"].command
    )
    rendered = lists.needs[0].command
    assert int(rendered[rendered.index("--test") + 1]) == 20000  # a test whose error is below the models' distance
    asked = {name.split("/")[1] for name in runs if name.startswith("vqa_existence/")}
    assert asked == {"dense", "truncated", "pela"}
    for row in asked:
        run = runs[f"vqa_existence/{row}/seed1"]
        assert lists in run.needs and not run.command.count("--evaluate") and "train.batch_size=32" in run.command
        assert lists not in in_order([runs[f"vqa/{row}/seed1"]])
    assert not [run for run in commands("table5", SCALES["full"]) if "existence" in run.name]
