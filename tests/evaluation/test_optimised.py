"""Evaluation runs an optimised model: the same ranks from fewer kernels."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_answering import parts  # noqa: F401
from test_retrieval_scores import MAX_TOKENS, make_data, tokenizer
from tiny_albef import tiny_albef
from tiny_runs import ONE
from tiny_vqa import tiny_vqa

from benchmarks.dispatch import Dispatches
from pela_vl.evaluation.answering import answer_questions
from pela_vl.evaluation.retrieval import score_retrieval
from pela_vl.lowrank import compress
from pela_vl.settings import EvalSettings, Settings
from pela_vl.training import runner
from pela_vl.workloads.grounding import Grounding
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
    quick = Retrieval().optimise(copy.deepcopy(model), dtype)
    autocast = nullcontext if dtype is None else bf16

    def score(model):
        return score_retrieval(model, data, tokenizer(), settings, ONE, MAX_TOKENS, autocast)

    (plain, before), (found, after) = (counted(lambda m=m: score(m)) for m in (model, quick))
    if dtype is None:
        assert ranked(plain) == ranked(found)
    tolerance = 1e-4 if dtype is None else 0.05
    np.testing.assert_allclose(found.image_to_text, plain.image_to_text, rtol=tolerance, atol=tolerance)
    assert after < (0.97 if dtype is None else 0.72) * before


@pytest.mark.parametrize("low_rank", [False, True])
def test_answers_rank_alike(parts, low_rank):  # noqa: F811
    answerer, data = parts
    model = tiny_vqa(vocab_size=answerer.tokenizer.vocab_size, max_positions=40)
    if low_rank:
        compress(model, 3, exclude=["text_decoder.mlm_head"])
    quick = Vqa().optimise(copy.deepcopy(model), None)
    (plain, before), (found, after) = (
        counted(lambda m=m: answer_questions(replace(answerer, model=m), data, ONE)) for m in (model, quick)
    )
    assert [[answer for answer, _ in best] for best in found] == [[answer for answer, _ in best] for best in plain]
    for best, other in zip(found, plain, strict=True):
        assert [chance for _, chance in best] == pytest.approx([chance for _, chance in other], rel=1e-3)
    assert after < 0.97 * before


def test_a_checkpoint_is_optimised_when_it_is_loaded_to_be_evaluated(monkeypatch):
    """In the evaluation's type; grounding reads queries and keys one by one and keeps its model."""
    asked, loaded = [], SimpleNamespace(model=tiny_albef().train(), header=None, ema={})
    monkeypatch.setattr(Retrieval, "load", lambda self, *_: loaded)
    monkeypatch.setattr(Retrieval, "optimise", lambda self, model, dtype: asked.append((model.training, dtype)) or 7)
    settings = Settings()
    for precision in ("bf16", "fp32"):
        settings.evaluate.precision = precision
        assert runner.load_for_evaluation(Retrieval(), settings, "x", ONE).model == 7
    assert asked == [(False, torch.bfloat16), (False, None)]
    model = tiny_albef().eval()
    assert Grounding().optimise(model, torch.bfloat16) is model and model.temp.requires_grad
