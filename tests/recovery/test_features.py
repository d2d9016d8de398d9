from dataclasses import replace

import pytest
import torch
from tiny_albef import copy_of, hidden_states, teacher_of, tiny_albef, tiny_batch

from pela_vl.recovery.features import Features, feature_distillation

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


def streams(seed):
    torch.manual_seed(seed)
    layers = {
        "image": tuple(torch.randn(3, 5, 6) for _ in range(3)),
        "text": tuple(torch.randn(3, 4, 7) for _ in range(2)),
        "mlm": tuple(torch.randn(3, 4, 7) for _ in range(4)),
    }
    return Features(layers, {"text": MASK, "mlm": MASK})


def test_paper_form_is_equation_4_over_real_tokens():
    student, teacher = streams(0), streams(1)
    distances = []
    for stream in student.layers:
        for own, target in zip(student.layers[stream], teacher.layers[stream], strict=True):
            squares = []
            for sample in range(3):
                for token in range(own.shape[1]):
                    if stream == "image" or MASK[sample, token]:
                        squares.append(sum((a - b) ** 2 for a, b in zip(own[sample, token], target[sample, token])))  # noqa: B905
            distances.append(sum(squares) / len(squares))
    expected = sum(distances) / (2 * 9)
    torch.testing.assert_close(feature_distillation(student, teacher), expected)


def test_released_form_is_a_mean_of_means():
    student, teacher = streams(0), streams(1)
    means = [
        ((a - b) ** 2).mean() for s in student.layers for a, b in zip(student.layers[s], teacher.layers[s], strict=True)
    ]
    torch.testing.assert_close(feature_distillation(student, teacher, "released"), sum(means) / 9)


def test_padding_counts_in_the_released_form_only():
    student, teacher = streams(0), streams(1)
    moved = replace(student, layers={k: tuple(state.clone() for state in v) for k, v in student.layers.items()})
    for state in (*moved.layers["text"], *moved.layers["mlm"]):
        state[MASK == 0] += 3
    for form, same in (("paper", True), ("released", False)):
        values = [feature_distillation(s, teacher, form) for s in (student, moved)]
        assert torch.equal(*values) == same


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_model_is_at_distance_zero_from_itself(form):
    model, batch = tiny_albef(dropout=0.1), tiny_batch()
    features = teacher_of(copy_of(model).train()).features(batch)
    assert feature_distillation(hidden_states(model.eval(), batch), features, form).item() == 0
    other = hidden_states(tiny_albef(low_rank=True).eval(), batch)
    assert feature_distillation(other, features, form).item() > 0


def test_streams_and_layers_must_pair():
    student, teacher = streams(0), streams(1)
    with pytest.raises(ValueError, match="mlm"):
        feature_distillation(Features({k: v for k, v in student.layers.items() if k != "mlm"}), teacher)
    with pytest.raises(ValueError):
        feature_distillation(Features({**student.layers, "text": student.layers["text"][:1]}), teacher)


def test_teacher_is_frozen_and_gives_no_graph():
    model, batch = tiny_albef(dropout=0.1).train(), tiny_batch()
    teacher = teacher_of(model)
    features = [teacher.features(batch).layers for _ in range(2)]
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    for stream, count in (("image", 3), ("text", 3), ("mlm", 5)):
        assert len(features[0][stream]) == count
        for first, second in zip(features[0][stream], features[1][stream], strict=True):
            assert not first.requires_grad and torch.equal(first, second)
    assert set(teacher.features(replace(batch, masked_ids=None)).layers) == {"image", "text"}
    assert set(teacher.features(batch, ("image",)).layers) == {"image"}
    assert set(teacher.linear_weights()) == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def test_gradient_reaches_the_student_only():
    model, batch = tiny_albef(low_rank=True), tiny_batch()
    teacher = teacher_of(tiny_albef())
    feature_distillation(hidden_states(model, batch), teacher.features(batch)).backward()
    assert model.visual_encoder.blocks[0].attn.qkv.down.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.model.parameters())
