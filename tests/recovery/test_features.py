import pytest
import torch
from tiny_albef import tiny_albef, tiny_batch, twin_of

from pela_vl.recovery.features import feature_distillation
from pela_vl.recovery.teacher import FrozenTeacher

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


def streams(seed):
    torch.manual_seed(seed)
    return {
        "image": tuple(torch.randn(3, 5, 6) for _ in range(3)),
        "text": tuple(torch.randn(3, 4, 7) for _ in range(2)),
        "mlm": tuple(torch.randn(3, 4, 7) for _ in range(4)),
    }


def test_paper_form_is_equation_4_over_real_tokens():
    student, teacher = streams(0), streams(1)
    distances = []
    for stream in student:
        for own, target in zip(student[stream], teacher[stream], strict=True):
            squares = []
            for sample in range(3):
                for token in range(own.shape[1]):
                    if stream == "image" or MASK[sample, token]:
                        squares.append(sum((a - b) ** 2 for a, b in zip(own[sample, token], target[sample, token])))  # noqa: B905
            distances.append(sum(squares) / len(squares))
    expected = sum(distances) / (2 * 9)
    torch.testing.assert_close(feature_distillation(student, teacher, MASK), expected)


def test_released_form_is_a_mean_of_means():
    student, teacher = streams(0), streams(1)
    means = [((a - b) ** 2).mean() for s in student for a, b in zip(student[s], teacher[s], strict=True)]
    torch.testing.assert_close(feature_distillation(student, teacher, MASK, "released"), sum(means) / 9)


def test_padding_counts_in_the_released_form_only():
    student, teacher = streams(0), streams(1)
    moved = {name: tuple(state.clone() for state in states) for name, states in student.items()}
    for state in (*moved["text"], *moved["mlm"]):
        state[MASK == 0] += 3
    for form, same in (("paper", True), ("released", False)):
        values = [feature_distillation(s, teacher, MASK, form) for s in (student, moved)]
        assert torch.equal(*values) == same


def student_streams(model, batch):
    image = model.visual_encoder(batch.images, keep_hidden=True)
    text = model.text_encoder.encode(batch.ids, batch.mask, keep_hidden=True)
    keys_values = model.text_encoder.image_keys_values(image.tokens)
    mlm = model.masked_states(batch.masked_ids, batch.mask, keys_values, keep_hidden=True)
    return {"image": image.hidden, "text": text.hidden, "mlm": mlm.hidden}


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_model_is_at_distance_zero_from_itself(form):
    model, batch = tiny_albef(dropout=0.1), tiny_batch()
    teacher = FrozenTeacher(twin_of(model).train())
    features = teacher.features(batch.images, batch.ids, batch.mask, batch.masked_ids)
    assert feature_distillation(student_streams(model.eval(), batch), features, batch.mask, form).item() == 0
    other = student_streams(tiny_albef(low_rank=True).eval(), batch)
    assert feature_distillation(other, features, batch.mask, form).item() > 0


def test_streams_and_layers_must_pair():
    student, teacher = streams(0), streams(1)
    with pytest.raises(ValueError, match="mlm"):
        feature_distillation({k: v for k, v in student.items() if k != "mlm"}, teacher, MASK)
    with pytest.raises(ValueError):
        feature_distillation({**student, "text": student["text"][:1]}, teacher, MASK)


def test_teacher_is_frozen_and_gives_no_graph():
    model, batch = tiny_albef(dropout=0.1).train(), tiny_batch()
    teacher = FrozenTeacher(model)
    features = [teacher.features(batch.images, batch.ids, batch.mask, batch.masked_ids) for _ in range(2)]
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    for stream, count in (("image", 3), ("text", 3), ("mlm", 5)):
        assert len(features[0][stream]) == count
        for first, second in zip(features[0][stream], features[1][stream], strict=True):
            assert not first.requires_grad and torch.equal(first, second)
    assert set(teacher.features(batch.images, batch.ids, batch.mask, None)) == {"image", "text"}
    assert set(teacher.linear_weights()) == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def test_gradient_reaches_the_student_only():
    model, batch = tiny_albef(low_rank=True), tiny_batch()
    teacher = FrozenTeacher(tiny_albef())
    features = teacher.features(batch.images, batch.ids, batch.mask, batch.masked_ids)
    feature_distillation(student_streams(model, batch), features, batch.mask).backward()
    assert model.visual_encoder.blocks[0].attn.qkv.down.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.model.parameters())
