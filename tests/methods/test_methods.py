"""Each method: what it makes of a model, the terms it adds against literal restatements, runs from settings on two tasks."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from method_runs import WORKLOADS, settings_of
from tiny_albef import HEADS, randomise, tiny_albef, tiny_batch, twin_of
from torch import nn

from pela_vl import methods, runner
from pela_vl.checkpoint import read_card
from pela_vl.cost import count_parameters
from pela_vl.distill.teacher import FrozenTeacher
from pela_vl.errors import UserError
from pela_vl.loading import load_any
from pela_vl.lowrank import low_rank_layers
from pela_vl.methods import lora, maskalign, tinybert, tome
from pela_vl.models.depth import layer_map
from pela_vl.models.outputs import StepOutput
from pela_vl.settings import LossSettings, ModelSettings, Settings, StudentSettings
from pela_vl.workloads.pretraining import Pretraining
from pela_vl.workloads.retrieval import Retrieval

DEPTHS = StudentSettings(vision_depth=2, text_depth=1, fusion_depth=1)


def states(model, batch, keep=True):
    """Hidden states as the pre-training step hands them on."""
    image = model.visual_encoder(batch.images, keep)
    text = model.text_encoder.encode(batch.ids, batch.mask, keep)
    context = model.text_encoder.image_keys_values(image.tokens)
    mlm = model.masked_states(batch.masked_ids, batch.mask, context, keep)
    return {"image": image.hidden, "text": text.hidden, "mlm": mlm.hidden}, image.kept


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
    student = twin_of(teacher)
    changed = tinybert.restructure(student, Settings(student=DEPTHS))
    assert changed == {"vision_depth": 2, "text_depth": 2, "fusion_layer": 1}
    built = tiny_albef(**changed)
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
        model = tiny_albef(vision_depth=12, text_depth=12, fusion_layer=6, token_merging=[*range(12)])
        changed = tinybert.restructure(model, Settings())
    assert changed.pop("token_merging") == [1, 2, 4, 5, 7, 8, 10, 11]
    assert changed == {"vision_depth": 8, "text_depth": 4, "fusion_layer": 2}
    untouched = Settings()
    untouched.init.teacher = "teacher.safetensors"
    assert tinybert.restructure(model, untouched)["vision_depth"] == 8  # it is the student already


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(UserError, match="student: 9 layers cannot be taken of 2"):
        tinybert.restructure(tiny_albef(), Settings(student=StudentSettings(vision_depth=9)))
    with pytest.raises(UserError, match="fewer layers than the student"):
        tinybert.build(tiny_albef(), FrozenTeacher(tiny_albef(vision_depth=1)), LossSettings())


# --- TinyBERT


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
    student = twin_of(teacher)
    tinybert.restructure(student, Settings(student=DEPTHS))
    randomise(student)
    batch = tiny_batch(3)
    own, _ = states(student, batch)
    if not mlm:
        batch = replace(batch, masked_ids=None, labels=None)
    method = tinybert.build(student, FrozenTeacher(teacher), LossSettings(hidden=0.5, attention=2.0))
    prepared = method.prepare(batch)
    terms = method.terms(StepOutput({}, own), prepared, batch)
    # hidden states by number, the embeddings first: which of the teacher's stands for the student's next one
    follows = {"image": [0, 2, 4], "text": [0, 2], "mlm": [0, 2, 6]}
    hidden, attention, real = [], [], batch.mask.bool()
    for stream in ("image", "text", "mlm") if mlm else ("image", "text"):
        for i, j in enumerate(follows[stream]):
            difference = own[stream][i] - prepared[stream][j]
            if stream == "image":
                hidden.append(difference.square().mean())
            else:
                hidden.append(difference[real].square().mean())
            if i == 0:
                continue
            a = scores_by_hand(student, stream, i - 1, own[stream][i - 1])
            b = scores_by_hand(teacher, stream, j - 1, prepared[stream][j - 1])
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
    method = tinybert.build(twin_of(teacher), FrozenTeacher(teacher), LossSettings())
    batch = tiny_batch(3)
    terms = method.terms(StepOutput({}, states(method.model, batch)[0]), method.prepare(batch), batch)
    assert all(float(value.detach()) == pytest.approx(0, abs=1e-10) for value in terms.values())


# --- MaskAlign


def masked_student(keep=0.5, **changes):
    student = tiny_albef(seed=1, image_size=64, vision_depth=3, **changes)
    maskalign.restructure(student, Settings(student=replace(DEPTHS, keep=keep)))
    return student


def test_the_student_sees_a_part_of_the_patches_in_training_alone():
    student = masked_student().train()
    images = torch.randn(4, 3, 64, 64)
    seen = student.visual_encoder(images, keep_hidden=True)
    assert seen.tokens.shape == (4, 9, 24) and seen.kept.shape == (4, 9)
    assert (seen.kept[:, 0] == 0).all() and (seen.kept.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in seen.kept.tolist()}) > 1  # each picture its own
    whole = student.eval().visual_encoder(images, keep_hidden=True)
    assert whole.tokens.shape == (4, 17, 24) and whole.kept is None
    for image in range(4):  # the first hidden state is of the places kept
        assert torch.equal(seen.hidden[0][image], whole.hidden[0][image, seen.kept[image]])


def test_alignment_by_hand():
    teacher = tiny_albef(image_size=64, vision_depth=3)
    student = masked_student().train()
    method = maskalign.build(student, FrozenTeacher(teacher), LossSettings(align=3.0))
    randomise(method.trained)
    images = torch.randn(2, 3, 64, 64)
    batch = replace(tiny_batch(2), images=images)
    own = student.visual_encoder(images, keep_hidden=True)
    output = StepOutput({}, {"image": own.hidden}, kept=own.kept)
    term = method.terms(output, method.prepare(batch), batch)["align"]
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


# --- LoRA


def adapted(seed=0):
    model = tiny_albef(seed)
    lora.restructure(model, Settings())
    return model


def test_adapters_change_nothing_at_first_and_merged_weights_compute_the_same_later():
    dense, model, batch = tiny_albef(), adapted(), tiny_batch(3)

    def run(model):
        hidden, _ = states(model.eval(), batch)
        return hidden["mlm"][-1]

    torch.testing.assert_close(run(model), run(dense))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.3)
    merged = tiny_albef(seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged.load_state_dict(lora.merged_weights(model))
    assert not torch.allclose(run(model), run(dense))
    torch.testing.assert_close(run(merged), run(model), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_adapters_heads_and_temperature_are_trained():
    model, dense = adapted(), tiny_albef()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    assert {name.partition(".")[0] for name in trained - adapters} == {*HEADS, "temp"}
    linears = [n for n, m in dense.named_modules() if isinstance(m, nn.Linear) and not n.startswith(HEADS)]
    assert {name.partition(".lora_")[0] for name in adapters} == set(linears)
    sizes = sum(16 * (m.in_features + m.out_features) for n, m in dense.named_modules() if n in linears)
    assert count_parameters(model) - count_parameters(dense) == sizes


def test_a_low_rank_model_is_refused():
    with pytest.raises(UserError, match="lora adapts a dense model"):
        lora.restructure(tiny_albef(low_rank=True), Settings())
    settings = Settings()
    settings.compress.kappa = 3.0
    with pytest.raises(UserError, match="lora adapts a dense model"):
        lora.restructure(tiny_albef(), settings)


# --- svd, tome


def test_svd_refuses_a_dense_model_and_adds_nothing():
    svd = methods.load("svd")
    with pytest.raises(UserError, match="set compress.kappa"):
        svd.build(tiny_albef(), None, LossSettings())
    method = svd.build(tiny_albef(low_rank=True), None, LossSettings())
    assert method.terms(StepOutput({}), method.prepare(None), None) == {}


def test_tome_wants_a_schedule_and_a_vit():
    with pytest.raises(UserError, match="tome wants model.token_merging"):
        tome.restructure(tiny_albef(), Settings())
    with pytest.raises(UserError, match="which Linear has not"):
        tome.restructure(nn.Linear(2, 2), Settings())
    model = tiny_albef()
    tome.restructure(model, Settings(model=ModelSettings(token_merging=1)))
    assert model.visual_encoder.merging == (1, 1)
    model = tiny_albef(token_merging=[0, 2])
    tome.restructure(model, Settings())
    assert model.visual_encoder.merging == (0, 2)


def test_a_teacher_sees_every_token():
    teacher, plain, batch = tiny_albef(token_merging=2), tiny_albef(), tiny_batch(2)
    features = FrozenTeacher(teacher).features(batch.images, batch.ids, batch.mask, None)
    expected = FrozenTeacher(plain).features(batch.images, batch.ids, batch.mask, None)
    for own, other in zip(features["image"], expected["image"], strict=True):
        assert torch.equal(own, other)


# --- runs


TERMS = {"tinybert": {"hidden", "attention"}, "maskalign": {"align"}, "pela": {"fd", "rwp"}}
QUICK = (("pretraining", "maskalign"), ("retrieval", "lora"), ("entailment", "tinybert"), ("vqa", "tinybert"))
RUNS = [
    pytest.param(task, method, marks=() if (task, method) in QUICK else pytest.mark.slow)
    for task, more in (("pretraining", ()), ("retrieval", ()), ("entailment", ("pela",)), ("vqa", ("pela",)))
    for method in ("lora", "svd", "tinybert", "maskalign", "tome", *more)
]


@pytest.mark.parametrize(("task", "method"), RUNS)
def test_a_killed_run_goes_on_bit_by_bit_and_its_checkpoint_builds_itself(listed, tmp_path, monkeypatch, task, method):
    workload = WORKLOADS[task]()
    settings = settings_of(task, method, listed, tmp_path / "whole")
    _, metrics = runner.train(workload, settings, resume=False)
    killed = settings_of(task, method, listed, tmp_path / "killed")
    save, calls = runner.save_model, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "save_model", dying)
        runner.train(workload, killed, resume=False)
    assert runner.train(workload, killed, resume=True)[1] == metrics
    files = [folder / "last.safetensors" for folder in (tmp_path / "whole", tmp_path / "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert all(set(line["terms"]) >= TERMS.get(method, set()) for line in lines if "event" not in line)

    loaded = load_any(ModelSettings(), str(files[0]))
    assert not any(name.startswith("method.") or "lora" in name for name in loaded.model.state_dict())
    numbers = read_card(files[0]).numbers
    if method in ("tinybert", "maskalign"):
        assert (numbers["vision_depth"], numbers["text_depth"], numbers["fusion_layer"]) == (1, 2, 1)
    if method == "tome":
        assert loaded.model.visual_encoder.merging == (1, 1)
        assert load_any(ModelSettings(token_merging=0), str(files[0])).model.visual_encoder.merging == ()
    assert bool(low_rank_layers(loaded.model)) == (method in ("svd", "pela"))
    if metrics:
        again = settings_of(task, "full", listed, tmp_path / "again")
        again.init.checkpoint, again.model.size = str(files[0]), None
        assert runner.evaluate(workload, again)["test"] == pytest.approx(metrics["test"], abs=1e-3)


def test_pela_and_token_merging_combine(listed, tmp_path):
    settings = settings_of("pretraining", "pela", listed, tmp_path / "run")
    settings.model.token_merging = [2, 0]
    runner.train(Pretraining(), settings, resume=False)
    loaded = load_any(ModelSettings(), str(tmp_path / "run/last.safetensors"))
    assert loaded.model.visual_encoder.merging == (2, 0) and low_rank_layers(loaded.model)
    # and the small model starts the next stage as it is
    settings = settings_of("retrieval", "full", listed, tmp_path / "next")
    settings.init.checkpoint, settings.model.size = str(tmp_path / "run/last.safetensors"), None
    runner.train(Retrieval(), settings, resume=False)
    assert read_card(tmp_path / "next/last.safetensors").numbers["token_merging"] == [2, 0]
