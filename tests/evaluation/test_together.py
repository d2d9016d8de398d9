"""Several processes give every one of them what one process gives alone, whatever the batches."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
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


def test_splits_count_alike_and_area_weighs_by_its_power(monkeypatch):
    rows = [{"split": split, "iou": iou} for split, iou in (("a", 0.5), ("a", 0.4), ("b", 1.0), ("c", 0.0))]
    assert localisation.accuracies(rows) == {"a": 50.0, "b": 100.0, "c": 0.0, "mean": 50.0}
    # a hot spot in the first box, and a box around all of it
    heat = torch.ones(1, 10, 10)
    heat[:, :2, :2] = 5.0
    image = SimpleNamespace(height=10, width=10, candidates=torch.tensor([[0.0, 0, 2, 2], [0, 0, 10, 10]]))
    data = SimpleNamespace(images=[image], expressions=[SimpleNamespace(image=0)])
    monkeypatch.setattr(localisation, "resize_heat", lambda heat, height, width: heat)
    chosen = {power: localisation._choose(heat, data, [0], power).tolist() for power in (0.0, 0.5, 1.0)}
    assert chosen == {0.0: [1], 0.5: [1], 1.0: [0]}
