"""One training step against the published step written out literally, and what the step must not do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_albef import teacher_of, tiny_albef, tiny_batch
from tiny_runs import loss_of

from pela_vl.models.albef.losses import NO_NEGATIVE
from pela_vl.models.ema import EmaModel
from pela_vl.workloads import contrastive
from pela_vl.workloads.contrastive import ContrastiveStep

MOMENTUM, ALPHA, QUEUE = 0.9, 0.4, 7
PRETRAIN = {"itc": 1.0, "itm": 1.0, "mlm": 1.0}
RETRIEVAL = {"itc": 1.0, "itm": 1.0, "mlm": 0.0}


def hardest(similarity, forbidden):
    """In place of the random draw: the most similar pair that is allowed."""
    index = similarity.masked_fill(forbidden, -1e9).argmax(1)
    return torch.where((~forbidden).any(1), index, NO_NEGATIVE)


def ema_of(model, mlm=True):
    """The EMA model that a pre-training or retrieval run has."""
    return EmaModel(model, ("itm_head", "temp") if mlm else ("itm_head", "temp", "mlm_head"))


def make_step(weights=PRETRAIN, queue=QUEUE, match_ids=False, keep_features=False, **more):
    mlm = weights["mlm"] > 0
    model = tiny_albef(**{"mlm": mlm} | more).train()
    made = ContrastiveStep(model, weights, match_ids, ema_of(model, mlm), None, MOMENTUM, queue, keep_features)
    torch.manual_seed(1)
    for parameter in made.ema.parameters():  # as after some steps: no longer equal to the model
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
        if not spread:  # in fine-tuning the temperature is left alone
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
    monkeypatch.setattr(contrastive, "sample_negatives", hardest)
    made = make_step(weights, match_ids=spread, low_rank=low_rank)
    online = made.model
    with torch.no_grad():
        online.temp.fill_(0.6)  # above the range, to be clamped in pre-training
    model, twin = copy.deepcopy(online), copy.deepcopy(made.ema.model)
    queue = copy.deepcopy(made.queue)
    for step in range(2):
        batch = tiny_batch(5, seed=step, image_ids=[3, 8, 3, 2, 8] if spread else None)
        prepared = made.prepare(batch, ALPHA, first=True)
        assert (online.temp.item() <= 0.5) == (not spread)
        output = made(batch, prepared)
        expected, image_feat_m, text_feat_m = published_step(model, twin, queue, batch, weights["mlm"], spread)
        assert output.terms.keys() == expected.keys()
        for name, loss in expected.items():
            torch.testing.assert_close(output.terms[name], loss, rtol=1e-5, atol=1e-6)
        for parameters in (online, model):
            parameters.zero_grad()
        loss_of(output).backward()
        sum(expected.values()).backward()
        for (name, own), other in zip(online.named_parameters(), model.parameters(), strict=True):
            assert own.grad is not None, name
            # relative to the tensor: single entries, as of key biases, are zero but for rounding
            assert (own.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-5, name
        made.after_backward(batch, prepared)
        queue.push(image_feat_m, text_feat_m, batch.image_ids)
        for name, value in queue.state_dict().items():
            torch.testing.assert_close(made.queue.state_dict()[name], value)
        with torch.no_grad():
            for parameters in (online, model):
                for parameter in parameters.parameters():
                    parameter.sub_(0.05 * parameter.grad)


def run(made, batch, alpha=ALPHA):
    prepared = made.prepare(batch, alpha, first=True)
    return prepared, made(batch, prepared)


def test_every_pair_of_an_image_is_a_positive_and_never_a_negative(monkeypatch):
    seen = []

    def spy(similarity, forbidden):
        seen.append(forbidden.clone())
        return hardest(similarity, forbidden)

    monkeypatch.setattr(contrastive, "sample_negatives", spy)
    made = make_step(RETRIEVAL, match_ids=True)
    batch = tiny_batch(4, image_ids=[7, 5, 7, 1])
    made.queue.ids[:3] = torch.tensor([5, 1, 7])
    prepared, _ = run(made, batch, alpha=0.0)
    same = batch.image_ids[:, None] == batch.image_ids[None, :]
    assert len(seen) == 2 and all(torch.equal(forbidden, same) for forbidden in seen)
    candidates = torch.cat([batch.image_ids, made.queue.ids])
    positive = batch.image_ids[:, None] == candidates[None, :]
    for targets in (prepared.image_to_text, prepared.text_to_image):
        assert torch.equal(targets > 0, positive)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_pretraining_takes_other_pairs_of_an_image_for_negatives():
    prepared, _ = run(make_step(), tiny_batch(3, image_ids=[4, 4, 4]), alpha=0.0)
    assert torch.equal(prepared.image_to_text[:, :3], torch.eye(3))


@pytest.mark.parametrize("weights, ids", [(PRETRAIN, [0]), (RETRIEVAL, [0]), (RETRIEVAL, [6, 6, 6])])
def test_a_batch_without_negatives_still_matches_its_positives(weights, ids):
    made = make_step(weights, match_ids=weights is RETRIEVAL)
    batch = tiny_batch(len(ids), image_ids=ids)
    prepared, output = run(made, batch)
    loss_of(output).backward()
    image, text, *_ = encode(made.model, batch.images, batch.ids, batch.mask)
    logits = made.model.itm_head(cross(made.model, text, batch.mask, image)[:, 0])
    torch.testing.assert_close(output.terms["itm"], F.cross_entropy(logits, torch.ones(len(ids), dtype=torch.long)))
    assert all(torch.isfinite(p.grad).all() for p in made.model.parameters())
    made.after_backward(batch, prepared)


@pytest.mark.parametrize("queue", [0, 3])
def test_any_queue_size_goes_with_any_batch(queue):
    made = make_step(queue=queue)
    for size in (4, 1, 5):
        prepared, output = run(made, tiny_batch(size))
        assert torch.isfinite(loss_of(output))
        made.after_backward(tiny_batch(size), prepared)
    assert made.queue.ids.shape == (queue,)


def test_a_term_of_weight_zero_is_not_computed(monkeypatch):
    def forbidden(*arguments, **more):
        raise AssertionError("computed although its weight is 0")

    batch = tiny_batch()
    for name in PRETRAIN:
        weights = {**PRETRAIN, name: 0.0}
        made = make_step(weights)
        with monkeypatch.context() as patch:
            if name == "itm":
                patch.setattr(made.model, "match", forbidden)
                patch.setattr(made.model, "match_beside_masked", forbidden)
            if name == "itc":
                patch.setattr(contrastive, "soft_cross_entropy", forbidden)
            if name == "mlm":
                for model in (made.model, made.ema.model):
                    patch.setattr(model, "masked_states", forbidden)
                    patch.setattr(model, "match_beside_masked", forbidden)
                assert made.ema.model.mlm_head is None
            _, output = run(made, batch)
        assert output.terms.keys() == {other for other in PRETRAIN if other != name}


def test_weights_scale_their_terms(monkeypatch):
    monkeypatch.setattr(contrastive, "sample_negatives", hardest)
    batch = tiny_batch()
    _, plain = run(make_step(), batch)
    _, scaled = run(make_step({"itc": 0.5, "itm": 2.0, "mlm": 3.0}), batch)
    for name, factor in (("itc", 0.5), ("itm", 2.0), ("mlm", 3.0)):
        torch.testing.assert_close(scaled.terms[name], factor * plain.terms[name])


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_what_changes_when():
    made, batch = make_step(), tiny_batch()
    before = state(made)
    prepared = made.prepare(batch, ALPHA, first=False)
    assert not changed(made, before)
    loss_of(made(batch, prepared)).backward()
    assert not changed(made, before)
    made.after_backward(batch, prepared)
    assert changed(made, before) == {"queue.image", "queue.text", "queue.ids", "queue.pointer"}
    before = state(made)
    made.prepare(batch, ALPHA, first=True)
    names = changed(made, before)
    assert all(name.startswith("ema.") for name in names) and "ema.model.vision_proj.weight" in names
    assert all(p.grad is None for p in made.ema.parameters())


def test_hidden_states_are_given_only_when_asked_for():
    batch = tiny_batch()
    assert run(make_step(), batch)[1].features.layers == {}
    features = run(make_step(keep_features=True), batch)[1].features
    assert {name: len(states) for name, states in features.layers.items()} == {"image": 3, "text": 3, "mlm": 5}
    assert set(features.masks) == {"text", "mlm"} and not features.places
    without = run(make_step(RETRIEVAL, keep_features=True), batch)[1].features
    assert set(without.layers) == {"image", "text"}


def test_without_soft_labels_the_ema_model_makes_no_masked_pass(monkeypatch):
    made = make_step()
    monkeypatch.setattr(made.ema.model, "masked_states", None)
    prepared, _ = run(made, tiny_batch(), alpha=0.0)
    assert prepared.mlm_logits is None


def test_similarities_are_fp32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = torch.randn(2, 8).bfloat16()
        result = contrastive.similarity(features, torch.randn(8, 3), torch.tensor(0.07))
    assert result.dtype == torch.float32


@pytest.mark.parametrize("weights, match_ids", [(PRETRAIN, False), (RETRIEVAL, True)])
def test_a_teacher_gives_the_soft_targets_that_an_equal_ema_model_gives(weights, match_ids, monkeypatch):
    monkeypatch.setattr(contrastive, "sample_negatives", hardest)
    mlm, batch = weights["mlm"] > 0, tiny_batch(4, mlm=weights["mlm"] > 0)
    model, teacher = tiny_albef(mlm=mlm, low_rank=True).train(), tiny_albef(seed=5, mlm=mlm)
    made = ContrastiveStep(model, weights, match_ids, None, teacher_of(copy.deepcopy(teacher)), 1.0, QUEUE)
    like = ContrastiveStep(copy.deepcopy(model), weights, match_ids, ema_of(teacher, mlm), None, 1.0, QUEUE)
    like.queue.load_state_dict(made.queue.state_dict())
    for _ in range(2):
        terms = []
        for one in (made, like):
            prepared = one.prepare(batch, ALPHA, first=one is made)  # an EMA model that is never updated
            terms.append(one(batch, prepared).terms)
            one.after_backward(batch, prepared)
        assert terms[0].keys() == terms[1].keys()
        for name in terms[0]:
            torch.testing.assert_close(terms[0][name], terms[1][name])
    torch.testing.assert_close(made.queue.image, like.queue.image)


def test_soft_targets_and_distillation_share_the_teachers_pass(monkeypatch):
    teacher, batch = teacher_of(tiny_albef(seed=5)), tiny_batch(3)
    made = ContrastiveStep(tiny_albef(low_rank=True).train(), PRETRAIN, False, None, teacher, queue_size=QUEUE)
    expected = teacher_of(tiny_albef(seed=5)).features(batch)
    passes, original = [], teacher.model.visual_encoder.forward
    monkeypatch.setattr(
        teacher.model.visual_encoder, "forward", lambda *a, **k: (passes.append(1), original(*a, **k))[1]
    )
    for step in range(2):
        batch = tiny_batch(3)
        made.prepare(batch, ALPHA, first=True)
        features = teacher.features(batch)
        assert len(passes) == step + 1
    for stream, states in expected.layers.items():
        for state, other in zip(features.layers[stream], states, strict=True):
            torch.testing.assert_close(state, other)
