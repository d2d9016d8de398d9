"""Image classification: the step's losses, what random draws follow from, resuming, evaluation, and every method."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from interrupted_runs import interrupted_three_times
from labelled_files import CLASSES, vision_settings, write_images
from timm.loss import SoftTargetCrossEntropy

from pela_vl.base.distributed import World
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import load_ours
from pela_vl.checkpoints.ours import EMA, read_header, read_weights
from pela_vl.checkpoints.vision_loading import load_classifier
from pela_vl.data.sets.labelled import LabelledImages, load_labelled
from pela_vl.data.vision_transforms import CentreTransform
from pela_vl.lowrank import low_rank_layers
from pela_vl.models.token_merging import reductions
from pela_vl.training import runner
from pela_vl.training.assemble import assemble, make_teacher
from pela_vl.workloads.classification import Classification
from pela_vl.workloads.image_calibration import ImageCalibration

RANKS = World(0, 1, torch.device("cpu"), False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    write_images(folder / "train", 5, 0)
    write_images(folder / "val", 3, 1)
    return folder


@pytest.fixture(scope="module")
def dense(images, tmp_path_factory):
    """A dense ViT and a dense Swin of the six classes."""
    found = {}
    for backbone in ("vit", "swin"):
        settings = vision_settings(images, tmp_path_factory.mktemp(backbone), backbone, train__steps=1)
        settings.model.init_std = 0.1
        runner.train(Classification(), settings, resume=False)
        found[backbone] = f"{settings.output}/last.safetensors"
    return found


def started(settings, checkpoint, method, **changes):
    """settings of a run from a checkpoint."""
    settings.model.size, settings.model.overrides = None, {}
    settings.init.checkpoint, settings.method.name = checkpoint, method
    if method in ("pela", "svd"):
        settings.compress.kappa, settings.losses.fd, settings.losses.rwp = 1.5, 0.1, 0.1
    for name, value in changes.items():
        section, _, key = name.partition("__")
        setattr(getattr(settings, section), key, value)
    return settings


def prepared(task, settings, batches=1):
    """A trainee and its first batches."""
    task.check(settings)
    data = task.training_data(settings)
    trainee = assemble(task, settings, RANKS, data)
    data.transform = task.train_transform(settings, trainee.run.header)
    collate = task.collate(settings, trainee.run.header)
    numbers = range(4)
    return trainee, [collate([data[epoch, 7 * i + 3] for i in numbers]) for epoch in range(batches)]


def test_the_losses_are_timms_and_fd_reads_the_forward_pass_of_the_cross_entropy(images, dense, tmp_path):
    settings = started(vision_settings(images, tmp_path), dense["vit"], "pela", losses__logits=0.5)
    settings.model.drop_path = 0.5
    trainee, (batch,) = prepared(Classification(), settings)
    calls = []
    trainee.run.model.register_forward_hook(lambda *_: calls.append(1))
    step, teacher = trainee.step, trainee.method.teacher
    shown = step.prepare(batch, 0.0, first=True)
    given = trainee.method.prepare(batch)
    torch.manual_seed(3)
    output = step(batch, shown)
    assert len(calls) == 1
    # the last block's output, which FD compares, leads to the very logits that the cross-entropy was taken of
    net = trainee.run.model.backbone
    logits = net.forward_head(net.norm(output.features.layers["blocks"][-1]))
    torch.testing.assert_close(output.terms["ce"], SoftTargetCrossEntropy()(logits, batch.labels))
    target = SoftTargetCrossEntropy()(logits, teacher.model(batch.images).logits.softmax(1))
    torch.testing.assert_close(output.terms["logits"], 0.5 * target)
    terms = trainee.method.terms(output.features, given)
    by_hand = torch.stack(
        [
            (a - b).square().sum(-1).mean() / 2
            for a, b in zip(output.features.layers["blocks"], teacher.model(batch.images, True).hidden, strict=True)
        ]
    ).mean()
    torch.testing.assert_close(terms["fd"], 0.1 * by_hand)
    assert batch.labels.sum(1).allclose(torch.ones(4)) and (batch.labels > 0).all()  # smoothed, and mixed


def test_drop_path_is_the_students_alone(images, dense, tmp_path):
    settings = started(vision_settings(images, tmp_path), dense["vit"], "pela")
    settings.model.drop_path = 0.9
    trainee, (batch,) = prepared(Classification(), settings)
    teacher = trainee.method.teacher
    a, b = (teacher.features(batch).layers["blocks"][-1] for _ in range(2))
    assert torch.equal(a, b)
    c, d = (trainee.step(batch, None).features.layers["blocks"][-1] for _ in range(2))
    assert not torch.equal(c, d)


def test_fd_on_the_pooled_feature_alone(images, dense, tmp_path):
    settings = started(vision_settings(images, tmp_path), dense["swin"], "pela", losses__fd_features="pooled")
    settings.losses.fd_form = "released"
    trainee, (batch,) = prepared(Classification(), settings)
    output = trainee.step(batch, None)
    found = trainee.method.terms(output.features, trainee.method.prepare(batch))["fd"]
    pooled, target = output.features.layers["pooled"][0], trainee.method.teacher.model(batch.images).pooled
    torch.testing.assert_close(found, 0.1 * (pooled - target).square().mean())
    assert set(output.features.layers) == {"pooled"}


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bits(images, dense, tmp_path, monkeypatch):
    def settings(name):
        return started(
            vision_settings(images, tmp_path / name), dense["vit"], "pela", train__ema=0.9, losses__logits=0.3
        )

    terms = interrupted_three_times(Classification, settings, tmp_path, monkeypatch)
    assert set(terms) == {0, 1, 2, 3} and set(terms[0]) == {"ce", "fd", "rwp", "logits"}


def test_the_ema_model_is_saved_and_evaluated(images, dense, tmp_path):
    settings = started(vision_settings(images, tmp_path / "run"), dense["vit"], "full", train__ema=0.5)
    settings.optim.lr = 0.05
    _, metrics = runner.train(Classification(), settings, resume=False)
    measures = {"top1", "top5", "mean", "similarity", "similarity_all"}
    assert measures | {f"ema_{name}" for name in measures} == set(metrics["val"])
    weights = read_weights(tmp_path / "run/last.safetensors")
    name = "backbone.blocks.0.attn.qkv.weight"
    started_from = read_weights(dense["vit"])[name]
    assert not torch.equal(weights[name], weights[EMA + name]) and not torch.equal(weights[EMA + name], started_from)
    # of the EMA's evaluation: the same file with the EMA weights as the model's
    task = Classification()
    run = runner.load_for_evaluation(task, settings, str(tmp_path / "run/last.safetensors"), RANKS)
    found = task.evaluate(settings, run, task.evaluation_data(settings, run, settings.data.val)).metrics
    run.model, run.ema = run.ema, None
    alone = task.evaluate(settings, run, task.evaluation_data(settings, run, settings.data.val)).metrics
    assert alone["top1"] == found["ema_top1"] and alone["top5"] == found["ema_top5"]


def test_the_last_step_is_in_the_ema_model_as_in_timms(images, dense, tmp_path):
    settings = started(vision_settings(images, tmp_path / "run"), dense["vit"], "full", train__ema=0.75)
    settings.train.steps, settings.optim.lr = 1, 0.05  # of two micro-batches
    runner.train(Classification(), settings, resume=False)
    weights, before = read_weights(tmp_path / "run/last.safetensors"), read_weights(dense["vit"])
    name = "backbone.blocks.0.attn.qkv.weight"
    assert not torch.equal(weights[name], before[name])
    torch.testing.assert_close(weights[EMA + name], 0.75 * before[name] + 0.25 * weights[name])


def test_evaluation_counts_what_the_model_predicts_and_writes_it(images, dense, tmp_path):
    settings = vision_settings(images, tmp_path / "eval")
    settings.model.size, settings.model.overrides, settings.init.checkpoint = None, {}, dense["vit"]
    metrics = runner.evaluate(Classification(), settings)["val"]
    rows = json.loads((tmp_path / "eval/predictions_val.json").read_text())
    record = json.loads((tmp_path / "eval/evaluation.json").read_text())
    hits = [row["label"] == row["predicted"] for row in rows]
    assert len(rows) == 18 and metrics["top1"] == pytest.approx(100 * np.mean(hits)) == record["metrics"]["top1"]
    assert metrics["top5"] >= metrics["top1"] and set(record["per_class"]) == set(CLASSES)
    for name in CLASSES:
        mine = [hit for row, hit in zip(rows, hits, strict=True) if row["label"] == name]
        assert record["per_class"][name] == pytest.approx(100 * np.mean(mine))
    assert (tmp_path / "eval/classes_val.png").stat().st_size > 1000
    # Figure 2's number, by hand over all pairs of a class
    task = Classification()
    run = runner.load_for_evaluation(task, settings, dense["vit"], RANKS)
    data = task.evaluation_data(settings, run, settings.data.val)
    with torch.no_grad():
        features = run.model(torch.stack([data[i] for i in range(18)])).feature
    for number, name in enumerate(CLASSES):
        own = torch.nn.functional.normalize(features[torch.from_numpy(data.targets == number)].double())
        pairs = [own[0] @ own[1], own[0] @ own[2], own[1] @ own[2]]
        assert record["class_similarity"][name] == pytest.approx(float(sum(pairs)) / 3, abs=1e-5)
    assert metrics["similarity"] == pytest.approx(np.mean(list(record["class_similarity"].values())))
    # any cut into batches gives the same
    settings.vision.batch, settings.output = 2, str(tmp_path / "again")
    assert runner.evaluate(Classification(), settings)["val"] == pytest.approx(metrics)


def test_other_classes_get_a_classifier_of_their_own(images, dense, tmp_path):
    write_images(tmp_path / "train", 2, 5, ("x", "y", "z"))
    settings = started(vision_settings(tmp_path, tmp_path / "run"), dense["vit"], "full", data__val=None)
    task = Classification()
    task.training_data(settings)
    loaded = task.load(settings, dense["vit"])
    assert loaded.header.config.classes == 3 and loaded.header.notes["classes"] == ["x", "y", "z"]
    assert any("head: starts anew" in note for note in loaded.notes)
    kept, old = loaded.model.state_dict(), read_weights(dense["vit"])
    assert all(torch.equal(kept[n], old[n]) for n in old if not n.startswith("backbone.head."))
    # and a checkpoint is not evaluated on classes that it does not know
    settings.data.val = str(tmp_path / "train")
    settings.init.checkpoint = dense["vit"]
    with pytest.raises(UserError, match="class 'x' is none of the 6"):
        runner.evaluate(Classification(), settings)


@pytest.mark.parametrize("own_file", [True, False])
def test_a_teacher_that_knows_other_classes_has_no_predictions_to_give(images, dense, tmp_path, own_file):
    write_images(tmp_path / "train", 2, 5, ("x", "y", "z"))
    settings = started(
        vision_settings(tmp_path, tmp_path / "run"), dense["vit"], "pela", data__val=None, losses__logits=0.5
    )
    if own_file:
        settings.init.teacher = dense["vit"]
    with pytest.raises(UserError, match="losses.logits: .* has no weights of head for these classes"):
        prepared(Classification(), settings)
    settings.losses.logits = 0.0  # the blocks' outputs are there whatever the classes
    prepared(Classification(), settings)


def test_a_teacher_of_any_timm_model_sees_every_token(images, tmp_path):
    """Its file says what it is by model.size alone."""
    settings = vision_settings(images, tmp_path / "run")
    made = load_classifier(settings.model, None, CLASSES)
    torch.save(made.model.backbone.state_dict(), tmp_path / "deit_tiny.pth")
    settings.init.checkpoint = settings.init.teacher = str(tmp_path / "deit_tiny.pth")
    settings.method.name, settings.compress.kappa, settings.losses.fd = "pela", 2.0, 1.0
    settings.model.token_merging = 1
    for teacher in (settings.init.teacher, None):
        settings.init.teacher = teacher
        loaded = Classification().load(settings, settings.init.checkpoint)
        frozen = make_teacher(Classification(), settings, loaded)
        student, model = loaded.model, frozen.model
        assert student.merging == tuple(reductions(1, 3)) and model.merging == () and model is not student
        state = made.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_every_draw_follows_from_seed_epoch_and_index(images, dense, tmp_path):
    settings = started(vision_settings(images, tmp_path), dense["vit"], "full")
    (_, first), (_, second) = (prepared(Classification(), settings, 2) for _ in range(2))
    torch.rand(5), np.random.rand(5)  # global generators do not matter
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert not torch.equal(first[0].images, first[1].images)
    order = Classification().training_data(settings).order(1, 0, 8)[:8]  # repeated augmentation: two views an image
    assert len(set(order)) == 8 and len({number % 30 for number in order}) == 4
    settings.train.seed = 7
    assert not torch.equal(prepared(Classification(), settings)[1][0].images, first[0].images)


METHODS = [
    ("pela", "vit"),
    ("pela", "swin"),
    ("svd", "vit"),
    ("svd", "swin"),
    ("lora", "vit"),
    ("lora", "swin"),
    ("tinybert", "vit"),
    ("tinybert", "swin"),
    ("maskalign", "vit"),
    ("tome", "vit"),
]
TERMS = {"pela": {"fd", "rwp"}, "tinybert": {"hidden", "attention"}, "maskalign": {"align"}}


QUICK = {("pela", "vit"), ("svd", "swin"), ("lora", "swin"), ("tinybert", "vit"), ("maskalign", "vit"), ("tome", "vit")}


@pytest.mark.parametrize(
    ("method", "backbone"),
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in METHODS],
)
def test_every_method_trains_and_is_loaded_again(images, dense, tmp_path, method, backbone):
    settings = started(vision_settings(images, tmp_path / "run", backbone), dense[backbone], method, train__steps=2)
    settings.method.student.blocks = [2] if backbone == "vit" else [2, 2]
    settings.method.lora.rank = 2
    if method == "tome":
        settings.model.token_merging = 1
    runner.train(Classification(), settings, resume=False)
    line = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert set(line["terms"]) == {"ce", *TERMS.get(method, ())}
    loaded = load_ours(tmp_path / "run/last.safetensors")
    before, after = read_weights(dense[backbone]), loaded.model.state_dict()
    assert loaded.header.kind == "classification" and loaded.header.notes["classes"] == list(CLASSES)
    assert not torch.equal(after["backbone.head.fc.weight" if backbone == "swin" else "backbone.head.weight"],
                           before["backbone.head.fc.weight" if backbone == "swin" else "backbone.head.weight"])  # fmt: skip
    if method == "lora":
        assert after.keys() == before.keys()
        dead = [n for n in before if torch.equal(before[n], after[n]) and n.endswith("qkv.weight")]
        assert not dead
    if method in ("tinybert", "maskalign"):
        assert sum(loaded.model.depths) < len(read_header(dense[backbone]).config.depths) + 10
        assert loaded.model.depths == settings.method.student.blocks
    if method == "tome":
        assert loaded.model.merging == tuple(reductions(1, 3))
    if method in ("pela", "svd"):
        assert set(low_rank_layers(loaded.model)) == set(loaded.header.ranks)
        assert not any("patch_embed" in n or "downsample" in n or "head" in n for n in loaded.header.ranks)


@pytest.mark.parametrize(
    ("method", "backbone", "change", "message"),
    [
        ("maskalign", "swin", {}, "needs? all"),
        ("tinybert", "vit", {"blocks": []}, "how many blocks to keep"),
        ("tinybert", "vit", {"blocks": [1, 1]}, "wants 1 numbers"),
        ("tinybert", "swin", {"blocks": [2, 9]}, "cannot be taken"),
    ],
)
def test_what_a_method_cannot_do(images, dense, tmp_path, method, backbone, change, message):
    settings = started(vision_settings(images, tmp_path / "run", backbone), dense[backbone], method)
    settings.method.student.blocks = change.get("blocks", [2, 2])
    with pytest.raises(UserError, match=message):
        runner.train(Classification(), settings, resume=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses__itc": 1.0}, "losses.itc"),
        ({"losses__fd_features": "pooled"}, "pooled is for method pela"),
        ({"losses__logits": 1.0}, "has no teacher"),
        ({"train__ema": 1.0}, "train.ema"),
        ({"vision__mixup": -1.0}, "vision: "),
        ({"vision__repeats": 0}, "vision.repeats"),
        ({"vision__rand_augment": "rnd-m9"}, "vision.rand_augment 'rnd-m9'"),
        ({"vision__batch": 0}, "vision.batch 0"),
        ({"data__hflip": 2.0}, "data.hflip 2.0"),
        ({"data__min_scale": 0.0}, "data.min_scale 0.0"),
        ({"vision__resize": 8}, "vision.resize"),
        ({"model__overrides": {"width": 8}}, "leave them out"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(images, dense, tmp_path, change, message):
    settings = started(vision_settings(images, tmp_path / "run"), dense["vit"], "full", **change)
    with pytest.raises(UserError, match=message) as caught:
        runner.train(Classification(), settings, resume=False)
    assert "\n" not in str(caught.value)


def test_settings_are_refused_before_data_and_model_are_read(images, tmp_path, monkeypatch):
    def read(*_):
        raise AssertionError("was read")

    for name in ("training_data", "load"):
        monkeypatch.setattr(Classification, name, read)
    for key, value in (("rand_augment", "rand-x9"), ("rand_augment", "rand-m9.5"), ("batch", 0)):
        settings = vision_settings(images, tmp_path / "run", **{f"vision__{key}": value})
        with pytest.raises(UserError, match=f"vision.{key}"):
            runner.train(Classification(), settings, resume=False)
    settings = vision_settings(images, tmp_path / "run", vision__rand_augment="rnd-m9", data__augment=False)
    with pytest.raises(AssertionError, match="was read"):  # the policy is not used
        runner.train(Classification(), settings, resume=False)


def test_an_evaluation_alone_refuses_a_batch_of_no_images(images, dense, tmp_path):
    settings = started(vision_settings(images, tmp_path / "run"), dense["vit"], "full", vision__batch=0)
    with pytest.raises(UserError, match="vision.batch 0: want 1 image at least"):
        runner.evaluate(Classification(), settings)


def test_whitened_factors_keep_the_outputs_on_training_images_better(images, dense, tmp_path):
    errors = {}
    for init in ("svd", "whitened"):
        settings = started(vision_settings(images, tmp_path / init), dense["vit"], "pela", compress__init=init)
        settings.compress.samples, settings.compress.kappa = 20, 3.0
        trainee, (batch,) = prepared(Classification(), settings)
        student, teacher = trainee.run.model.eval(), trainee.method.teacher.model
        errors[init] = (student(batch.images).pooled - teacher(batch.images).pooled).square().mean().item()
    assert errors["whitened"] < 0.7 * errors["svd"]


def test_calibration_batches_that_run_side_by_side_read_the_same_images(images):
    data = LabelledImages(load_labelled([images / "train"]), None)
    calibration = ImageCalibration(data, [i % len(data) for i in range(80)], CentreTransform(32, 36), False)

    class Model(torch.nn.Linear):
        def forward(self, pixels):
            return type("Output", (), {"logits": pixels})

    model = Model(1, 1)
    alone = [run(model)[0] for run in calibration]
    with ThreadPoolExecutor(5) as pool:
        together = list(pool.map(lambda run: run(model)[0], calibration))
    assert data.transform is None and len(alone) == 5
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
