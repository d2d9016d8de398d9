"""The student of fewer layers, and TinyBERT's terms against a literal restatement."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_albef import CONFIG, copy_of, hidden_states, randomise, teacher_of, tiny_albef, tiny_batch

from pela_vl.base.errors import UserError
from pela_vl.methods.student import cut_student
from pela_vl.methods.tinybert import TinyBert
from pela_vl.models.depth import layer_map
from pela_vl.settings import LossSettings, MethodSettings, Settings, StudentSettings


def students(**depths) -> Settings:
    return Settings(method=MethodSettings(student=StudentSettings(**depths)))


DEPTHS = students(vision_depth=2, text_depth=1, fusion_depth=1)


# --- layers


@pytest.mark.parametrize(
    ("deep", "shallow", "kept"),
    [
        (12, 6, [1, 3, 5, 7, 9, 11]),
        (6, 2, [2, 5]),
        (12, 8, [1, 2, 4, 5, 7, 8, 10, 11]),
        (4, 4, [0, 1, 2, 3]),
        (3, 1, [2]),
    ],
)
def test_every_kth_layer(deep, shallow, kept):
    assert layer_map(deep, shallow) == kept


def test_maps_are_increasing_and_end_at_the_last():
    for deep in range(1, 25):
        for shallow in range(1, deep + 1):
            found = layer_map(deep, shallow)
            assert found == sorted(set(found)) and found[-1] == deep - 1 and len(found) == shallow
    with pytest.raises(ValueError, match="cannot be taken"):
        layer_map(3, 4)


def test_a_student_is_made_of_the_teachers_layers():
    teacher = tiny_albef(vision_depth=4, text_depth=6, fusion_layer=2)
    student = copy_of(teacher)
    changed = cut_student(student, replace(CONFIG, vision_depth=4, text_depth=6), DEPTHS)
    assert changed == replace(CONFIG, vision_depth=2, text_depth=2, fusion_layer=1)
    built = tiny_albef(vision_depth=2, text_depth=2, fusion_layer=1)
    built.load_state_dict(student.state_dict())
    ours, theirs = student.state_dict(), teacher.state_dict()
    for own, other in (
        ("visual_encoder.blocks.0.", "visual_encoder.blocks.1."),
        ("visual_encoder.blocks.1.", "visual_encoder.blocks.3."),
        ("text_encoder.encoder.layer.0.", "text_encoder.encoder.layer.1."),
        ("text_encoder.encoder.layer.1.", "text_encoder.encoder.layer.5."),
    ):
        found = [name for name in ours if name.startswith(own)]
        assert found
        for name in found:
            assert torch.equal(ours[name], theirs[name.replace(own, other)])


def test_the_papers_student_by_default():
    with torch.device("meta"):
        config = replace(CONFIG, vision_depth=12, text_depth=12, fusion_layer=6, token_merging=tuple(range(12)))
        model = tiny_albef(vision_depth=12, text_depth=12, fusion_layer=6, token_merging=tuple(range(12)))
        changed = cut_student(model, config, Settings())
    assert changed.token_merging == (1, 2, 4, 5, 7, 8, 10, 11)
    assert (changed.vision_depth, changed.text_depth, changed.fusion_layer) == (8, 4, 2)
    untouched = Settings()
    untouched.init.teacher = "teacher.safetensors"
    assert cut_student(model, changed, untouched) == changed  # it is the student already


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(UserError, match="method.student: 9 layers cannot be taken of 2"):
        cut_student(tiny_albef(), CONFIG, students(vision_depth=9))
    with pytest.raises(UserError, match="fewer layers than the student"):
        TinyBert.create(tiny_albef(), teacher_of(tiny_albef(vision_depth=1)), Settings())


# --- terms


def scores_by_hand(model, stream, number, x):
    """Attention scores [B, H, N, N] of a layer on its input, head by head."""
    if stream == "image":
        block = model.visual_encoder.blocks[number]
        q, k, _ = F.linear(block.norm1(x), block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, dim=-1)
    else:
        heads = model.text_encoder.encoder.layer[number].attention.projections
        q, k = heads.query(x), heads.key(x)
    return torch.stack(
        [a @ b.transpose(1, 2) / 12**0.5 for a, b in zip(q.split(12, -1), k.split(12, -1), strict=True)], 1
    )


@pytest.mark.parametrize("mlm", [True, False])
def test_tinybert_terms_by_hand(mlm):
    teacher = tiny_albef(seed=1, vision_depth=4, text_depth=6, fusion_layer=2)
    student = copy_of(teacher)
    cut_student(student, None, DEPTHS)
    randomise(student)
    batch = tiny_batch(3)
    features = hidden_states(student, batch)
    own = features.layers
    if not mlm:
        batch = replace(batch, masked_ids=None, labels=None)
    method = TinyBert.create(student, teacher_of(teacher), Settings(losses=LossSettings(hidden=0.5, attention=2.0)))
    prepared = method.prepare(batch)
    terms = method.terms(features, prepared)
    # hidden states by number, the embeddings first: which of the teacher's stands for the student's next one
    follows = {"image": [0, 2, 4], "text": [0, 2], "mlm": [0, 2, 6]}
    hidden, attention, real = [], [], batch.mask.bool()
    for stream in ("image", "text", "mlm") if mlm else ("image", "text"):
        for i, j in enumerate(follows[stream]):
            difference = own[stream][i] - prepared.layers[stream][j]
            if stream == "image":
                hidden.append(difference.square().mean())
            else:
                hidden.append(difference[real].square().mean())
            if i == 0:
                continue
            a = scores_by_hand(student, stream, i - 1, own[stream][i - 1])
            b = scores_by_hand(teacher, stream, j - 1, prepared.layers[stream][j - 1])
            if stream == "image":
                attention.append((a - b).square().mean())
            else:
                parts = [(a - b)[n][:, real[n]][:, :, real[n]] for n in range(len(a))]
                attention.append(torch.cat([part.flatten() for part in parts]).square().mean())
    torch.testing.assert_close(terms["hidden"], 0.5 * sum(hidden) / len(hidden))
    torch.testing.assert_close(terms["attention"], 2.0 * sum(attention) / len(attention))
    sum(terms.values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.visual_encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    teacher = tiny_albef()
    method = TinyBert.create(copy_of(teacher), teacher_of(teacher), Settings())
    batch = tiny_batch(3)
    terms = method.terms(hidden_states(method.model, batch), method.prepare(batch))
    assert all(float(value.detach()) == pytest.approx(0, abs=1e-10) for value in terms.values())
