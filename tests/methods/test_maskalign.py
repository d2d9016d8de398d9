"""MaskAlign: what the student sees of an image, and its term against a literal restatement."""

from dataclasses import replace

import pytest
import torch
from tiny_albef import randomise, teacher_of, tiny_albef, tiny_batch

from pela_vl.base.errors import UserError
from pela_vl.methods.maskalign import MaskAlign
from pela_vl.recovery.features import Features
from pela_vl.settings import LossSettings, MethodSettings, Settings, StudentSettings


def masked_student(keep=0.5, **changes):
    student = tiny_albef(seed=1, image_size=64, vision_depth=3, **changes)
    MaskAlign.restructure(student, None, Settings(method=MethodSettings(student=StudentSettings(keep=keep))))
    return student


def test_the_student_sees_a_part_of_the_patches_in_training_alone():
    student = masked_student().train()
    images = torch.randn(4, 3, 64, 64)
    seen = student.visual_encoder(images, keep_hidden=True)
    assert seen.tokens.shape == (4, 9, 24) and seen.kept.shape == (4, 9)
    assert (seen.kept[:, 0] == 0).all() and (seen.kept.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in seen.kept.tolist()}) > 1  # each image its own
    whole = student.eval().visual_encoder(images, keep_hidden=True)
    assert whole.tokens.shape == (4, 17, 24) and whole.kept is None
    for image in range(4):  # the first hidden state is of the places kept
        assert torch.equal(seen.hidden[0][image], whole.hidden[0][image, seen.kept[image]])


def test_alignment_by_hand():
    teacher = tiny_albef(image_size=64, vision_depth=3)
    student = masked_student().train()
    method = MaskAlign.create(student, teacher_of(teacher), Settings(losses=LossSettings(align=3.0)))
    randomise(method.trained)
    images = torch.randn(2, 3, 64, 64)
    batch = replace(tiny_batch(2), images=images)
    own = student.visual_encoder(images, keep_hidden=True)
    features = Features({"image": own.hidden}, places={"image": own.kept})
    term = method.terms(features, method.prepare(batch))["align"]
    goal = teacher.eval().visual_encoder(images, keep_hidden=True).hidden[1:]
    parts = []
    for t in range(3):
        mixed = sum(
            method.trained.mix[s, t] * (own.hidden[s + 1] @ adaptor.weight.T + adaptor.bias)
            for s, adaptor in enumerate(method.trained.adaptors)
        )
        for image in range(2):
            for token, place in enumerate(own.kept[image].tolist()):
                wanted = goal[t][image, place]
                wanted = (wanted - wanted.mean()) / (wanted.var(unbiased=False) + 1e-5).sqrt()
                off = (mixed[image, token] - wanted).abs()
                parts.append(torch.where(off < 1, off.square() / 2, off - 0.5).mean())
    torch.testing.assert_close(term, 3 * torch.stack(parts).mean())
    term.backward()
    assert all(p.grad is not None for p in method.trained.parameters())


def test_share_of_patches_is_checked():
    for keep in (0.0, 1.5):
        with pytest.raises(UserError, match="student.keep is a share"):
            masked_student(keep)
