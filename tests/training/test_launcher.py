"""The scripts under the deepspeed launcher, two processes on one machine."""

import json

import pytest
from launched_runs import launched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def launch(script, config, output, *changes, processes=2, more=()):
    """Run to the end; processes 0 is a plain process without the launcher."""
    arguments = [f"tasks/{script}.py", "--config", str(config), *more, "--set", f"output={output}"]
    arguments += [part for change in changes for part in ("--set", change)]
    return launched(processes, *arguments)


def training_lines(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "event" not in line]


def test_pretraining_in_bf16_with_activation_checkpointing_and_resumed_without_launcher(pela_config, tmp_path):
    run = tmp_path / "run"
    common = ("train.checkpoint_every=0", "train.precision=bf16", "train.activation_checkpointing=true")
    common += ("optim.schedule=constant", "train.batch_size=3")
    launch("pretrain", pela_config, run, *common, "train.steps=4", "deepspeed.stage=2")
    lines = training_lines(run)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(set(line["terms"]) == {"itc", "itm", "mlm", "fd", "rwp"} for line in lines)
    assert all(isinstance(line["grad_norm"], float) and line["loss"] > 0 for line in lines)
    launch(
        "pretrain", pela_config, run, *common, "train.steps=6", "train.accumulation=4", processes=0, more=["--resume"]
    )
    assert [line["step"] for line in training_lines(run)] == [0, 1, 2, 3, 4, 5]


def test_retrieval_evaluates_on_all_ranks_as_in_one_process(pela_config, listed, tmp_path):
    common = ("method=full", "losses.mlm=0", "losses.fd=0", "losses.rwp=0", "train.steps=3", "train.batch_size=2")
    common += ("optim.schedule=constant", f"data.val={listed / 'lists/scenes_val.json'}")
    common += (f"data.test={listed / 'lists/scenes_test.json'}",)
    launch("retrieval", pela_config, tmp_path / "run", *common)
    two = json.loads((tmp_path / "run/evaluation.json").read_text())["metrics"]
    best = f"init.checkpoint={tmp_path / 'run/best.safetensors'}"
    again = (*common, best, "compress.kappa=null", "model.size=null")
    launch("retrieval", pela_config, tmp_path / "again", *again, processes=0, more=["--evaluate"])
    assert json.loads((tmp_path / "again/evaluation.json").read_text())["metrics"] == pytest.approx(two)


def test_bad_input_ends_every_rank_with_one_line(pela_config, tmp_path):
    with pytest.raises(AssertionError) as caught:
        launch("pretrain", pela_config, tmp_path / "run", "data.train=[absent.json]")
    assert "error: absent.json" in str(caught.value) and "Traceback" not in str(caught.value)
