"""The leaderboard file: whole, checked, and the same after any interruption; the script and its check."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from tiny_runs import PATIENCE, ROOT, environment, finish, start_processes

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import load_vqa
from pela_vl.checkpoints.ours import save_model
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.deploy import submission
from pela_vl.deploy.submission import Partial, submit
from pela_vl.settings import ModelSettings, Settings

SCRIPT = "tasks/vqa_submission.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch

    torch.manual_seed(4)
    vocab = Tokenizer.load("scenes").vocab_size
    loaded = load_vqa(ModelSettings(size="albef_test", tokenizer="scenes", init_std=0.3), None, vocab)
    path = tmp_path_factory.mktemp("model") / "vqa.safetensors"
    save_model(path, loaded.model, loaded.header)
    return path


@pytest.fixture
def settings(checkpoint, vqa_listed):
    settings = Settings()
    settings.init.checkpoint = str(checkpoint)
    settings.data.image_root, settings.data.workers = str(vqa_listed), 0
    settings.train.device, settings.train.threads = "cpu", 1
    settings.vqa.answer_list = str(vqa_listed / "vqa/answer_list.json")
    settings.vqa.k_test, settings.vqa.question_batch = 10, 4
    return settings


def questions(folder, role="test"):
    return folder / f"v2_OpenEnded_scenes_{role}_questions.json"


def ids_of(path):
    return [q["question_id"] for q in json.loads(path.read_text())["questions"]]


def test_every_question_of_the_official_file_once_in_its_order(settings, vqa_listed, tmp_path):
    assert submit(settings, questions(vqa_listed), tmp_path / "r.json") == 24
    results = json.loads((tmp_path / "r.json").read_text())
    assert [r["question_id"] for r in results] == ids_of(questions(vqa_listed))
    allowed = set(json.loads((vqa_listed / "vqa/answer_list.json").read_text()))
    assert all(set(r) == {"question_id", "answer"} and r["answer"] in allowed for r in results)
    assert len(set(r["answer"] for r in results)) > 1
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


class Killed(BaseException):
    """Stands in for a signal: nothing catches it."""


def interrupted(monkeypatch, settings, vqa_listed, output, after):
    """Stop after so many blocks, with the next line half written."""
    keep = Partial.keep

    def torn(self, number, answers):
        if self._file.tell() and number >= after:
            self._file.write('{"block": 9, "be')
            self._file.flush()
            raise Killed
        keep(self, number, answers)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Partial, "keep", torn)
        submit(settings, questions(vqa_listed), output)
    assert not output.exists()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_in_the_same_file(settings, vqa_listed, tmp_path, monkeypatch, capsys):
    submit(settings, questions(vqa_listed), tmp_path / "whole.json")
    interrupted(monkeypatch, settings, vqa_listed, tmp_path / "r.json", after=2)
    interrupted(monkeypatch, settings, vqa_listed, tmp_path / "r.json", after=4)
    asked = []
    answer = submission.answer_questions
    monkeypatch.setattr(submission, "answer_questions", lambda *a: asked.append(set(a[4])) or answer(*a))
    submit(settings, questions(vqa_listed), tmp_path / "r.json")
    assert asked == [{0, 1, 2, 3}]
    assert "going on: 16 of 24 questions are answered" in capsys.readouterr().out
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not (tmp_path / "r.json.partial").exists()


def test_answers_of_another_run_are_not_mixed_in(settings, vqa_listed, tmp_path, monkeypatch):
    interrupted(monkeypatch, settings, vqa_listed, tmp_path / "r.json", after=2)
    (tmp_path / "other.json").write_text('["red", "no", "yes", "2"]')
    settings.vqa.answer_list, settings.vqa.k_test = str(tmp_path / "other.json"), 3
    with pytest.raises(UserError, match=r"r\.json\.partial holds .* another run \(answer list, vqa\.k_test differ\)"):
        submit(settings, questions(vqa_listed), tmp_path / "r.json")


def test_bad_input_leaves_nothing_behind(settings, vqa_listed, tmp_path, monkeypatch):
    for change, message in (
        (lambda: setattr(settings.init, "checkpoint", None), "init.checkpoint is not set"),
        (lambda: setattr(settings.init, "checkpoint", str(tmp_path / "absent.pth")), "absent.pth"),
        (lambda: setattr(settings.vqa, "answer_list", None), "vqa.answer_list names no file"),
        (lambda: setattr(settings.vqa, "answer_list", str(tmp_path / "absent.json")), "absent.json: no such file"),
        (lambda: setattr(settings.data, "image_root", str(tmp_path)), "no such file .question"),
    ):
        before = settings.init.checkpoint, settings.vqa.answer_list, settings.data.image_root
        change()
        with pytest.raises(UserError, match=message):
            submit(settings, questions(vqa_listed), tmp_path / "r.json")
        settings.init.checkpoint, settings.vqa.answer_list, settings.data.image_root = before
    assert not list(tmp_path.iterdir())


# --- the script


def run(*arguments):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def test_the_check_of_a_file_made_elsewhere(vqa_listed, tmp_path):
    path, file = questions(vqa_listed), tmp_path / "r.json"
    said = json.loads((vqa_listed / "v2_scenes_test_annotations.json").read_text())["annotations"]
    right = [{"question_id": s["question_id"], "answer": s["multiple_choice_answer"]} for s in said]
    file.write_text(json.dumps(right[::-1]))
    done = run("--questions", path, "--check", file, "--annotations", vqa_listed / "v2_scenes_test_annotations.json")
    assert done.returncode == 0, done.stderr
    accuracy = float(re.search(r"accuracy ([\d.]+)", done.stdout)[1])
    assert (
        "24 questions" in done.stdout and 90 <= accuracy <= 100
    )  # the most frequent answer, given by six of ten at least
    first, second = ids_of(path)[:2]
    file.write_text(
        json.dumps([r for r in right if r["question_id"] != first] + [{"question_id": second, "answer": "x"}])
    )
    done = run("--questions", path, "--check", file)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"missing: 1 question id ({first}); given more than once: 1 question id ({second})" in done.stderr


def config(settings, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"""init: {{checkpoint: "{settings.init.checkpoint}"}}
data: {{image_root: "{settings.data.image_root}", workers: 0}}
train: {{device: cpu, threads: 1, precision: fp32}}
vqa: {{answer_list: "{settings.vqa.answer_list}", k_test: 10, question_batch: 1}}
"""
    )
    return file


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_killed_and_gone_on_with_by_one(settings, vqa_listed, tmp_path):
    """The real thing: SIGKILL to both processes while they work, then one process, against an undisturbed run on two."""
    path = questions(vqa_listed, "train")
    command = [SCRIPT, "--config", str(config(settings, tmp_path)), "--questions", str(path), "--output"]
    finish(start_processes([*command, str(tmp_path / "whole.json")], 2))
    output, partial = tmp_path / "r.json", tmp_path / "r.json.partial"
    processes = start_processes([*command, str(output)], 2)
    deadline = time.monotonic() + PATIENCE
    while not any(file.stat().st_size for file in partial.glob("rank*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.002)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not output.exists() and 0 < sum(f.read_text().count("\n") for f in partial.glob("rank*.jsonl")) < 96
    done = run(*command[1:], output)
    assert done.returncode == 0 and "going on: " in done.stdout, done.stderr
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes() and not partial.exists()
    assert Counter(r["question_id"] for r in json.loads(output.read_text())) == Counter(ids_of(path))
