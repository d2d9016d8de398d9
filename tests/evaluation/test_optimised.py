"""Evaluation runs an optimised model: the same ranks from fewer kernels."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_runs import TASKS, settings_of
from test_answering import parts  # noqa: F401
from test_retrieval_scores import MAX_TOKENS, make_data, tokenizer
from thread_processes import run_together
from tiny_albef import CONFIG, tiny_albef
from tiny_runs import ONE
from tiny_vqa import tiny_vqa

from benchmarks.dispatch import Dispatches
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.evaluation import reranking, retrieval
from pela_vl.evaluation.answering import answer_questions
from pela_vl.evaluation.retrieval import score_retrieval
from pela_vl.lowrank import compress
from pela_vl.settings import EvalSettings, Settings
from pela_vl.training import runner
from pela_vl.workloads.base import RunModel, Task
from pela_vl.workloads.retrieval import Retrieval
from pela_vl.workloads.vqa import Vqa


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def counted(run):
    """What it returns, and its kernels."""
    dispatches = Dispatches()
    with dispatches:
        found = run()
    return found, dispatches.total().kernels


def ranked(scores):
    return [matrix.argsort(axis=1, kind="stable").tolist() for matrix in (scores.image_to_text, scores.text_to_image)]


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_retrieval_ranks_alike(tmp_path, low_rank, dtype):
    data, settings = make_data(tmp_path), EvalSettings(k_test=4 if dtype is None else 128, image_batch=3)
    model = tiny_albef(low_rank=low_rank).eval()
    ways = (model, nullcontext if dtype is None else bf16), Retrieval().optimise(copy.deepcopy(model), dtype)

    def score(model, autocast):
        return score_retrieval(model, data, tokenizer(), settings, ONE, MAX_TOKENS, autocast)

    (plain, before), (found, after) = (counted(lambda way=way: score(*way)) for way in ways)
    if dtype is None:
        assert ranked(plain) == ranked(found)
    tolerance = 1e-4 if dtype is None else 0.05
    np.testing.assert_allclose(found.image_to_text, plain.image_to_text, rtol=tolerance, atol=tolerance)
    assert after < (0.97 if dtype is None else 0.72) * before


def test_processes_exchange_bf16_texts(tmp_path):
    """Each of three matches its images with the texts of all."""
    data, model = make_data(tmp_path), tiny_albef(low_rank=True).eval()
    model, autocast = Retrieval().optimise(model, torch.bfloat16)

    def score(world):
        settings = EvalSettings(k_test=128, image_batch=2, text_batch=3)
        return score_retrieval(model, data, tokenizer(), settings, world, MAX_TOKENS, autocast)

    alone = score(ONE).image_to_text
    for found in run_together(3, score, reranking, retrieval):
        np.testing.assert_allclose(found.image_to_text, alone, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("low_rank", [False, True])
def test_answers_rank_alike(parts, low_rank):  # noqa: F811
    answerer, data = parts
    model = tiny_vqa(vocab_size=answerer.tokenizer.vocab_size, max_positions=40)
    if low_rank:
        compress(model, 3, exclude=["text_decoder.mlm_head"])
    quick, _ = Vqa().optimise(copy.deepcopy(model), None)
    (plain, before), (found, after) = (
        counted(lambda m=m: answer_questions(replace(answerer, model=m), data, ONE)) for m in (model, quick)
    )
    assert [[answer for answer, _ in best] for best in found] == [[answer for answer, _ in best] for best in plain]
    for best, other in zip(found, plain, strict=True):
        assert [chance for _, chance in best] == pytest.approx([chance for _, chance in other], rel=1e-3)
    assert after < 0.97 * before


def test_a_checkpoint_is_optimised_when_it_is_loaded_to_be_evaluated(monkeypatch):
    """In the evaluation's type, and the EMA model too where it is a result."""
    asked, loaded = [], LoadedModel(tiny_albef().train(), Header("albef", None))
    monkeypatch.setattr(Retrieval, "load", lambda self, *_: loaded)
    monkeypatch.setattr(
        Retrieval, "optimise", lambda self, model, dtype: asked.append((model.training, dtype)) or (7, nullcontext)
    )
    settings = Settings()
    for precision in ("bf16", "fp32"):
        settings.evaluate.precision = precision
        run = runner.load_for_evaluation(Retrieval(), settings, "x", ONE)
        assert run.model == 7 and run.ema is None and run.autocast is nullcontext
    assert asked == [(False, torch.bfloat16), (False, None)]
    loaded.ema = {name: value + 1 for name, value in loaded.model.state_dict().items()}
    monkeypatch.setattr(Retrieval, "ema_is_result", True)
    assert runner.load_for_evaluation(Retrieval(), settings, "x", ONE).ema == 7 and len(asked) == 4


def test_a_model_of_another_task_stays_under_autocast():
    """A task says itself that its model computes in bf16 without autocast."""
    model, context = Task().optimise(tiny_albef().eval(), torch.bfloat16)
    assert model.visual_encoder.pos_embed.dtype == torch.float32
    assert model.visual_encoder.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    with context():
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert model.visual_encoder(torch.randn(1, 3, 32, 32)).tokens.dtype == torch.float32


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("task", ["retrieval", "grounding"])
def test_a_validation_casts_once_and_leaves_the_weights(every_list, tmp_path, task, low_rank):
    """Within training: metrics as under autocast alone, the trained weights bit by bit as before, fewer kernels."""
    settings, workload = settings_of(task, "full", every_list, tmp_path), TASKS[task]()
    settings.evaluate.precision = "bf16"
    header = Header("albef", replace(CONFIG, vocab_size=Tokenizer.load("scenes").vocab_size), tokenizer="scenes")
    model = tiny_albef(low_rank=low_rank, vocab_size=header.config.vocab_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = RunModel(model, header, bf16, ONE)
    data = workload.evaluation_data(settings, run, settings.data.test)
    plain, kernels = counted(lambda: workload.evaluate(settings, run, data).metrics)
    evaluator = runner.make_evaluator(workload, settings, run, data)
    for _ in range(2):
        found, fewer = counted(evaluator)
        assert found == pytest.approx(plain, abs=100 / len(data)) and fewer < 0.9 * kernels
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and type(p) is torch.nn.Parameter for p in model.parameters())
    assert all(getattr(module, "stacked", None) is None for module in model.modules())
