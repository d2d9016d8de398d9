"""The frontier's rows on a tiny encoder: every way keeps to the budget, and ratios are to whitened factors."""

import pytest
import torch
from torch import nn

from benchmarks.encoders import Subject
from benchmarks.frontier import add_ratios
from benchmarks.frontier_rows import WAYS, measure


@pytest.fixture(scope="module")
def subject() -> Subject:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    parts = [
        [{"input_ids": torch.randint(0, 50, (8, length))} for length in lengths] for lengths in ((5, 7, 9), (6, 8))
    ]

    def states(model: nn.Module, item: dict) -> torch.Tensor:
        return model(**item).last_hidden_state

    return Subject(
        "tiny",
        model,
        *parts,
        lambda model, item: states(model, item).mean(1),
        lambda model, item: states(model, item).flatten(0, 1),
        (24, 16),
        model.encoder,
    )


def test_every_way_keeps_to_the_budget_and_leaves_the_dense_model_alone(subject):
    before = [parameter.clone() for parameter in subject.model.parameters()]
    rows, passes = [], {}
    for way in WAYS:
        rows.append(measure(subject, 2, way, passes))
    assert all(torch.equal(old, new) for old, new in zip(before, subject.model.parameters(), strict=True))
    plain = rows[0]["parameters"]
    for row in rows:
        assert 0.9 * plain < row["parameters"] <= plain and 0 < row["err"] < 2, row
    add_ratios(rows)
    errors = {row["way"]: row["err"] for row in rows}
    for row in rows:
        assert row["ratio"] == pytest.approx(row["err"] / errors["whitened"])
    assert errors["int8 factors"] != errors["+ sequential"] and errors["second metrics"] != errors["+ sequential"]
