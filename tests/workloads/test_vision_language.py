"""One training step against the published step written out literally, and what the step must not do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_albef import tiny_albef, tiny_batch

from pela_vl.models.albef.losses import NO_NEGATIVE
from pela_vl.objectives import vision_language
from pela_vl.objectives.base import loss_sum
from pela_vl.objectives.vision_language import VisionLanguageObjective
from pela_vl.recovery.teacher import FrozenTeacher

MOMENTUM, ALPHA, QUEUE = 0.9, 0.4, 7
PRETRAIN = {"itc": 1.0, "itm": 1.0, "mlm": 1.0}
RETRIEVAL = {"itc": 1.0, "itm": 1.0, "mlm": 0.0}


def hardest(similarity, forbidden):
    """In place of the random draw: the most similar pair that is allowed."""
    index = similarity.masked_fill(forbidden, -1e9).argmax(1)
    return torch.where((~forbidden).any(1), index, NO_NEGATIVE)


def objective(weights=PRETRAIN, queue=QUEUE, match_ids=False, keep_hidden=False, **more):
    mlm = weights["mlm"] > 0
    made = VisionLanguageObjective(
        tiny_albef(mlm=mlm, **more).train(), weights, MOMENTUM, queue, match_ids, keep_hidden
    )
    torch.manual_seed(1)
    for parameter in made.companions["twin"].parameters():  # as after some steps: no longer equal to the online model
        parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def encode(model, images, ids, mask):
    """Image tokens, text-only tokens, features."""
    image = model.visual_encoder(images).tokens
    text = model.text_encoder.encode(ids, mask).tokens
    features = [F.normalize(p(t[:, 0]), dim=-1) for p, t in ((model.vision_proj, image), (model.text_proj, text))]
    return image, text, *features


def cross(model, text, mask, image):
    return model.text_encoder.fuse(text, mask, model.text_encoder.image_keys_values(image)).tokens


def mlm_logits(model, batch, image):
    masked = model.text_encoder.encode(batch.masked_ids, batch.mask).tokens
    return model.mlm_logits(cross(model, masked, batch.mask, image).flatten(0, 1)).unflatten(0, batch.ids.shape)


def published_step(model, twin, queue, batch, mlm, spread):
    """The published forward, line by line, on copies: momentum update, ITC, ITM, MLM. Returns the losses by name."""
    size = len(batch)
    with torch.no_grad():
        model.temp.clamp_(0.001, 0.5)
        online = dict(model.named_parameters())
        for name, parameter in twin.named_parameters():
            parameter.copy_(parameter * MOMENTUM + online[name] * (1 - MOMENTUM))
    image, text, image_feat, text_feat = encode(model, batch.images, batch.ids, batch.mask)
    with torch.no_grad():
        image_m, _, image_feat_m, text_feat_m = encode(twin, batch.images, batch.ids, batch.mask)
        image_all = torch.cat([image_feat_m.t(), queue.image], dim=1)
        text_all = torch.cat([text_feat_m.t(), queue.text], dim=1)
        targets = torch.zeros(size, image_all.shape[1])
        if spread:
            all_ids = torch.cat([batch.image_ids, queue.ids])
            for i in range(size):
                for j in range(len(all_ids)):
                    targets[i, j] = float(batch.image_ids[i] == all_ids[j])
                targets[i] /= targets[i].sum()
        else:
            targets.fill_diagonal_(1)
        targets_i2t = ALPHA * F.softmax(image_feat_m @ text_all / model.temp, dim=1) + (1 - ALPHA) * targets
        targets_t2i = ALPHA * F.softmax(text_feat_m @ image_all / model.temp, dim=1) + (1 - ALPHA) * targets
    sim_i2t = image_feat @ text_all / model.temp
    sim_t2i = text_feat @ image_all / model.temp
    loss_i2t = -torch.sum(F.log_softmax(sim_i2t, dim=1) * targets_i2t, dim=1).mean()
    loss_t2i = -torch.sum(F.log_softmax(sim_t2i, dim=1) * targets_t2i, dim=1).mean()
    losses = {"itc": (loss_i2t + loss_t2i) / 2}

    same = batch.image_ids[:, None] == batch.image_ids[None, :] if spread else torch.eye(size, dtype=torch.bool)
    negative_image = hardest(sim_t2i[:, :size], same)
    negative_text = hardest(sim_i2t[:, :size], same)
    output_pos = cross(model, text, batch.mask, image)
    text_both = torch.cat([text, text[negative_text]], dim=0)
    mask_both = torch.cat([batch.mask, batch.mask[negative_text]], dim=0)
    image_both = torch.cat([image[negative_image], image], dim=0)
    output_neg = cross(model, text_both, mask_both, image_both)
    logits = model.itm_head(torch.cat([output_pos[:, 0], output_neg[:, 0]], dim=0))
    labels = torch.cat([torch.ones(size, dtype=torch.long), torch.zeros(2 * size, dtype=torch.long)])
    losses["itm"] = F.cross_entropy(logits, labels)

    if mlm:
        with torch.no_grad():
            soft = F.softmax(mlm_logits(twin, batch, image_m), dim=-1)
        prediction = mlm_logits(model, batch, image)
        hard = F.cross_entropy(prediction.flatten(0, 1), batch.labels.flatten())
        distilled = -torch.sum(F.log_softmax(prediction, dim=-1) * soft, dim=-1)[batch.labels != -100].mean()
        losses["mlm"] = (1 - ALPHA) * hard + ALPHA * distilled
    return losses, image_feat_m, text_feat_m


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("weights, spread", [(PRETRAIN, False), (RETRIEVAL, True)])
def test_two_steps_are_the_published_ones(monkeypatch, weights, spread, low_rank):
    monkeypatch.setattr(vision_language, "sample_negatives", hardest)
    made = objective(weights, match_ids=spread, low_rank=low_rank)
    online = made.module.model
    with torch.no_grad():
        online.temp.fill_(0.6)  # above the range, to be clamped
    model, twin = copy.deepcopy(online), copy.deepcopy(made.companions["twin"].model)
    queue = copy.deepcopy(made.companions["queue"])
    for step in range(2):
        batch = tiny_batch(5, seed=step, image_ids=[3, 8, 3, 2, 8] if spread else None)
        prepared = made.prepare(batch, ALPHA, new_step=True)
        assert online.temp.item() <= 0.5
        output = made.module(batch, prepared)
        expected, image_feat_m, text_feat_m = published_step(model, twin, queue, batch, weights["mlm"], spread)
        assert output.terms.keys() == expected.keys()
        for name, loss in expected.items():
            torch.testing.assert_close(output.terms[name], loss, rtol=1e-5, atol=1e-6)
        for parameters in (online, model):
            parameters.zero_grad()
        loss_sum(output).backward()
        sum(expected.values()).backward()
        for (name, own), other in zip(online.named_parameters(), model.parameters(), strict=True):
            assert own.grad is not None, name
            # relative to the tensor: single entries, as of key biases, are zero but for rounding
            assert (own.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-5, name
        made.finish(batch, prepared)
        queue.push(image_feat_m, text_feat_m, batch.image_ids)
        for name, value in queue.state_dict().items():
            torch.testing.assert_close(made.companions["queue"].state_dict()[name], value)
        with torch.no_grad():
            for parameters in (online, model):
                for parameter in parameters.parameters():
                    parameter.sub_(0.05 * parameter.grad)


def run(made, batch, alpha=ALPHA):
    prepared = made.prepare(batch, alpha, new_step=True)
    return prepared, made.module(batch, prepared)


def test_every_pair_of_an_image_is_a_positive_and_never_a_negative(monkeypatch):
    seen = []

    def spy(similarity, forbidden):
        seen.append(forbidden.clone())
        return hardest(similarity, forbidden)

    monkeypatch.setattr(vision_language, "sample_negatives", spy)
    made = objective(RETRIEVAL, match_ids=True)
    batch = tiny_batch(4, image_ids=[7, 5, 7, 1])
    made.companions["queue"].ids[:3] = torch.tensor([5, 1, 7])
    prepared, _ = run(made, batch, alpha=0.0)
    same = batch.image_ids[:, None] == batch.image_ids[None, :]
    assert len(seen) == 2 and all(torch.equal(forbidden, same) for forbidden in seen)
    candidates = torch.cat([batch.image_ids, made.companions["queue"].ids])
    positive = batch.image_ids[:, None] == candidates[None, :]
    for targets in (prepared.image_to_text, prepared.text_to_image):
        assert torch.equal(targets > 0, positive)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_pretraining_takes_other_pairs_of_an_image_for_negatives():
    prepared, _ = run(objective(), tiny_batch(3, image_ids=[4, 4, 4]), alpha=0.0)
    assert torch.equal(prepared.image_to_text[:, :3], torch.eye(3))


@pytest.mark.parametrize("weights, ids", [(PRETRAIN, [0]), (RETRIEVAL, [0]), (RETRIEVAL, [6, 6, 6])])
def test_a_batch_without_negatives_still_matches_its_positives(weights, ids):
    made = objective(weights, match_ids=weights is RETRIEVAL)
    batch = tiny_batch(len(ids), image_ids=ids)
    prepared, output = run(made, batch)
    loss_sum(output).backward()
    image, text, *_ = encode(made.module.model, batch.images, batch.ids, batch.mask)
    logits = made.module.model.itm_head(cross(made.module.model, text, batch.mask, image)[:, 0])
    torch.testing.assert_close(output.terms["itm"], F.cross_entropy(logits, torch.ones(len(ids), dtype=torch.long)))
    assert all(torch.isfinite(p.grad).all() for p in made.module.parameters())
    made.finish(batch, prepared)


@pytest.mark.parametrize("queue", [0, 3])
def test_any_queue_size_goes_with_any_batch(queue):
    made = objective(queue=queue)
    for size in (4, 1, 5):
        prepared, output = run(made, tiny_batch(size))
        assert torch.isfinite(loss_sum(output))
        made.finish(tiny_batch(size), prepared)
    assert made.companions["queue"].ids.shape == (queue,)


def test_a_term_of_weight_zero_is_not_computed(monkeypatch):
    def forbidden(*arguments, **more):
        raise AssertionError("computed although its weight is 0")

    batch = tiny_batch()
    for name in PRETRAIN:
        weights = {**PRETRAIN, name: 0.0}
        made = objective(weights)
        with monkeypatch.context() as patch:
            if name == "itm":
                patch.setattr(made.module.model, "match", forbidden)
            if name == "itc":
                patch.setattr(vision_language, "soft_cross_entropy", forbidden)
            if name == "mlm":
                for model in (made.module.model, made.companions["twin"].model):
                    patch.setattr(model, "masked_states", forbidden)
                assert made.companions["twin"].model.mlm_head is None
            _, output = run(made, batch)
        assert output.terms.keys() == {other for other in PRETRAIN if other != name}


def test_weights_scale_their_terms(monkeypatch):
    monkeypatch.setattr(vision_language, "sample_negatives", hardest)
    batch = tiny_batch()
    _, plain = run(objective(), batch)
    _, scaled = run(objective({"itc": 0.5, "itm": 2.0, "mlm": 3.0}), batch)
    for name, factor in (("itc", 0.5), ("itm", 2.0), ("mlm", 3.0)):
        torch.testing.assert_close(scaled.terms[name], factor * plain.terms[name])


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_what_changes_when():
    made, batch = objective(), tiny_batch()
    online, beside = state(made.module), state(made.companions)
    prepared = made.prepare(batch, ALPHA, new_step=False)
    assert not changed(made.module, online) and not changed(made.companions, beside)
    loss_sum(made.module(batch, prepared)).backward()
    assert not changed(made.module, online) and not changed(made.companions, beside)
    made.finish(batch, prepared)
    assert not changed(made.module, online)
    assert changed(made.companions, beside) == {"queue.image", "queue.text", "queue.ids", "queue.pointer"}
    beside = state(made.companions)
    made.prepare(batch, ALPHA, new_step=True)
    names = {name for name, _ in made.companions.named_parameters()}
    assert changed(made.companions, beside) <= names and "twin.model.vision_proj.weight" in changed(
        made.companions, beside
    )
    assert all(p.grad is None for p in made.companions.parameters())


def test_hidden_states_are_given_only_when_kept():
    batch = tiny_batch()
    assert run(objective(), batch)[1].hidden == {}
    hidden = run(objective(keep_hidden=True), batch)[1].hidden
    assert {name: len(states) for name, states in hidden.items()} == {"image": 3, "text": 3, "mlm": 5}
    without = run(objective(RETRIEVAL, keep_hidden=True), tiny_batch(mlm=False))[1].hidden
    assert set(without) == {"image", "text"}


def test_without_soft_labels_the_twin_does_no_masked_pass(monkeypatch):
    made = objective()
    monkeypatch.setattr(made.companions["twin"].model, "masked_states", None)
    prepared, _ = run(made, tiny_batch(), alpha=0.0)
    assert prepared.mlm_logits is None


def test_similarities_are_fp32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = torch.randn(2, 8).bfloat16()
        result = vision_language.similarity(features, torch.randn(8, 3), torch.tensor(0.07))
    assert result.dtype == torch.float32


@pytest.mark.parametrize("weights, match_ids", [(PRETRAIN, False), (RETRIEVAL, True)])
def test_a_teacher_in_the_twins_place_gives_what_an_equal_twin_gives(weights, match_ids, monkeypatch):
    monkeypatch.setattr(vision_language, "sample_negatives", hardest)
    mlm, batch = weights["mlm"] > 0, tiny_batch(4, mlm=weights["mlm"] > 0)
    model, teacher = tiny_albef(mlm=mlm, low_rank=True).train(), tiny_albef(seed=5, mlm=mlm)
    made = VisionLanguageObjective(model, weights, 1.0, QUEUE, match_ids, twin=False)
    made.use_teacher(FrozenTeacher(copy.deepcopy(teacher)))
    like = VisionLanguageObjective(copy.deepcopy(teacher).train(), weights, 1.0, QUEUE, match_ids)
    like.module = copy.deepcopy(made.module)
    like.companions["queue"].load_state_dict(made.companions["queue"].state_dict())
    assert list(made.companions) == ["queue"]
    for _ in range(2):
        terms = []
        for one in (made, like):
            prepared = one.prepare(batch, ALPHA, new_step=one is made)  # a twin that is never updated
            terms.append(one.module(batch, prepared).terms)
            one.finish(batch, prepared)
        assert terms[0].keys() == terms[1].keys()
        for name in terms[0]:
            torch.testing.assert_close(terms[0][name], terms[1][name])
    torch.testing.assert_close(made.companions["queue"].image, like.companions["queue"].image)


def test_soft_targets_and_distillation_share_the_teachers_pass(monkeypatch):
    teacher, batch = FrozenTeacher(tiny_albef(seed=5)), tiny_batch(3)
    made = VisionLanguageObjective(tiny_albef(low_rank=True).train(), PRETRAIN, twin=False, queue_size=QUEUE)
    made.use_teacher(teacher)
    expected = FrozenTeacher(tiny_albef(seed=5)).features(batch.images, batch.ids, batch.mask, batch.masked_ids)
    passes, original = [], teacher.model.visual_encoder.forward
    monkeypatch.setattr(
        teacher.model.visual_encoder, "forward", lambda *a, **k: (passes.append(1), original(*a, **k))[1]
    )
    for step in range(2):
        batch = tiny_batch(3)
        made.prepare(batch, ALPHA, new_step=True)
        features = teacher.features(batch.images, batch.ids, batch.mask, batch.masked_ids)
        assert len(passes) == step + 1
    for stream, states in expected.items():
        for own, other in zip(features[stream], states, strict=True):
            torch.testing.assert_close(own, other)
