"""The baselines that speed is measured against compute what our own ways compute."""

import copy
import json

import pytest
import torch
from tiny_albef import teacher_of, tiny_albef, tiny_batch

from benchmarks import published, run
from benchmarks.table import Row, machine, medians, render
from pela_vl.lowrank import compress, low_rank_layers
from pela_vl.models.albef.losses import NO_NEGATIVE
from pela_vl.models.ema import EmaModel
from pela_vl.recovery.features import feature_distillation
from pela_vl.recovery.perturbation import Perturbation
from pela_vl.workloads import contrastive
from pela_vl.workloads.contrastive import ContrastiveStep

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def hardest(similarity, forbidden):
    index = similarity.masked_fill(forbidden, -1e9).argmax(1)
    return torch.where((~forbidden).any(1), index, NO_NEGATIVE)


@pytest.mark.parametrize("low_rank", [False, True])
def test_the_published_loop_gives_our_matching_scores(low_rank):
    model, batch = tiny_albef(low_rank=low_rank).eval(), tiny_batch(5)
    with torch.no_grad():
        image = published.vit_states(model, batch.images)[-1]
        torch.testing.assert_close(image, model.visual_encoder(batch.images).tokens, **CLOSE)
        text = published.text_states(model, batch.ids, batch.mask)[-1]
        scores = published.rerank_image(model, text, batch.mask, image[2])
        keys_values = model.text_encoder.image_keys_values(image[2:3])
        torch.testing.assert_close(scores, model.match(text, batch.mask, keys_values)[:, 1], **CLOSE)


def test_the_published_pretraining_step_has_our_losses(monkeypatch):
    monkeypatch.setattr(contrastive, "sample_negatives", hardest)
    teacher, batch = tiny_albef(seed=3), tiny_batch(4)
    student = compress(copy.deepcopy(teacher), 3, exclude=["vision_proj", "text_proj", "itm_head", "mlm_head"]).train()
    ema = EmaModel(student, ("itm_head", "temp"))
    weights = {"itc": 1.0, "itm": 1.0, "mlm": 1.0}
    ours = ContrastiveStep(student, weights, False, ema, None, 0.9, 7, keep_features=True)
    own, twin = copy.deepcopy(student), copy.deepcopy(student)
    queue, other_queue = (copy.deepcopy(ours.queue) for _ in range(2))
    losses, features = published.pretraining_forward(own, twin, queue, batch, 0.4, 0.9, hardest)
    with torch.no_grad():
        pair = copy.deepcopy(teacher), copy.deepcopy(teacher)
        _, target = published.pretraining_forward(*pair, other_queue, batch, 0.4, 0.9, hardest)

    prepared = ours.prepare(batch, 0.4, first=True)
    output = ours(batch, prepared)
    ours.after_backward(batch, prepared)
    for name, loss in losses.items():
        torch.testing.assert_close(output.terms[name], loss, **CLOSE)
    frozen = teacher_of(teacher)
    fd = feature_distillation(output.features, frozen.features(batch), "released")
    torch.testing.assert_close(fd, published.feature_distillation(features, target), **CLOSE)
    layers, dense = low_rank_layers(student), frozen.linear_weights()
    rwp = Perturbation(layers, dense).penalty(1e-3, "released")
    pairs = [(layer, dense[name]) for name, layer in low_rank_layers(own).items()]
    torch.testing.assert_close(rwp, published.weight_perturbation(pairs, 1e-3), **CLOSE)
    torch.testing.assert_close(queue.image, ours.queue.image, **CLOSE)


def test_the_table_says_what_was_met():
    rows = [
        Row.of("one", 6.0, 2.0, target=2.5, note="why"),
        Row.of("two", 3.0, 2.0, target=2.0),
        Row("three", None, 1.0),
    ]
    lines = render(rows, machine()).splitlines()
    assert "3.00x" in lines[2] and lines[2].endswith("met") and "1.50x" in lines[3] and lines[3].endswith("missed")
    assert "-" in lines[4] and lines[5] == "[1] why" and lines[-1].startswith("machine: cpu")


def test_ways_take_turns():
    order = []
    found = medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3 and found.keys() == {"a", "b"}


def test_a_subject_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def broken(quick):
        raise RuntimeError("no")

    subjects = {"rerank": lambda quick: [Row.of("kept", 2.0, 1.0)], "inference": broken}
    monkeypatch.setattr(run, "subject", subjects.get)
    code = run.main(
        ["--only", *subjects, "--threads", str(torch.get_num_threads()), "--json", str(tmp_path / "b.json")]
    )
    written = json.loads((tmp_path / "b.json").read_text())
    assert code == 1 and written["failed"] == ["inference"] and [row["what"] for row in written["rows"]] == ["kept"]
    assert "kept" in capsys.readouterr().out
