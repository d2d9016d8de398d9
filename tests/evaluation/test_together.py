"""Several processes give every one of them what one process gives alone, whatever the batches."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
from grounding_data import build, load
from test_localisation import make_model
from test_localisation import tokenizer as grounding_tokenizer
from test_retrieval_scores import MAX_TOKENS, make_data, tokenizer
from thread_processes import run_together
from tiny_albef import tiny_albef
from tiny_runs import ONE

from pela_vl.evaluation import localisation, reranking, retrieval
from pela_vl.settings import EvalSettings, GroundingSettings


@pytest.mark.parametrize("settings", [
    {"k_test": 3, "image_batch": 2, "text_batch": 2},
    {"k_test": 3, "image_batch": 1, "text_batch": 5, "cache_mb": 0.004},
    {"k_test": 0, "image_batch": 3},
], ids=["one block of texts", "several blocks", "no matching"])  # fmt: skip
def test_scores_of_retrieval(settings, tmp_path):
    data, model = make_data(tmp_path), tiny_albef().eval()

    def work(world):
        steps = []
        found = retrieval.score_retrieval(
            copy.deepcopy(model),
            data,
            tokenizer(),
            EvalSettings(**settings),
            world,
            MAX_TOKENS,
            nullcontext,
            0,
            steps.append,
        )
        return found, steps

    alone, steps = work(ONE)
    for size in (2, 3):
        for found, counted in run_together(size, work, retrieval, reranking):
            np.testing.assert_allclose(found.image_to_text, alone.image_to_text, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.text_to_image, alone.text_to_image, rtol=1e-4, atol=1e-5)
            assert counted == sorted(counted)
    # an image counts once encoded and once matched
    assert steps[-1] == len(data) * (2 if settings["k_test"] else 1) and steps[0] == settings["image_batch"]


@pytest.mark.parametrize("score", ["itm", "itc"])
def test_boxes_of_expressions(scenes, tmp_path, score):
    lists, model = build(scenes, tmp_path), make_model()
    data = load(scenes, lists, model)
    settings = GroundingSettings(score=score, image_batch=2, pair_batch=3)

    def work(world):
        steps = []
        mine = copy.deepcopy(model).train()
        found = localisation.localise(mine, data, grounding_tokenizer(), settings, world, nullcontext, 0, steps.append)
        assert mine.training
        return found.chosen, steps

    alone, steps = work(ONE)
    assert steps == [min(done, len(data)) for done in range(2, len(data) + 2, 2)]
    parts = run_together(3, work, localisation)
    assert [chosen for chosen, _ in parts] == [alone] * 3
    assert sum(counted[-1] for _, counted in parts) == len(data)
