"""Segmentation: the step's losses, what random draws follow from, resuming, evaluation, starts, and every method."""

import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interrupted_runs import interrupted_three_times
from labelled_files import vision_settings, write_images
from PIL import Image
from segmented_files import CLASSES, segmentation_settings, write_ade

from pela_vl.base.distributed import World
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import load_ours
from pela_vl.checkpoints.ours import read_header, read_weights
from pela_vl.lowrank import low_rank_layers
from pela_vl.metrics.segmentation import pixel_confusion, segmentation_metrics
from pela_vl.training import engine, runner
from pela_vl.training.assemble import assemble
from pela_vl.workloads.classification import Classification
from pela_vl.workloads.segmentation import Segmentation, pixel_cross_entropy

WORLD = World(0, 1, torch.device("cpu"), False)


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    return write_ade(tmp_path_factory.mktemp("segmented") / "ade")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A dense ViT and Swin, and low-rank ones, trained on ImageNet's task."""
    folder, found = tmp_path_factory.mktemp("classified"), {}
    write_images(folder / "train", 2, 0)
    for backbone, kappas in (("vit", (None,)), ("swin", (None, 1.5))):
        overrides = segmentation_settings(folder, folder, backbone).model.overrides
        for kappa in kappas:
            output = folder / f"{backbone}_{kappa}"
            settings = vision_settings(folder, output, backbone, train__steps=1, model__overrides=overrides)
            settings.data.val, settings.model.init_std, settings.compress.kappa = None, 0.1, kappa
            settings.method.name = "full" if kappa is None else "svd"
            runner.train(Classification(), settings, resume=False)
            found[backbone, kappa] = f"{output}/last.safetensors"
    return found


def started(settings, checkpoint, method="full", **changes):
    """settings of a run from a checkpoint."""
    settings.model.size, settings.model.overrides, settings.model.init_std = None, {}, None
    settings.init.checkpoint, settings.method.name = checkpoint, method
    if method in ("pela", "svd"):
        settings.compress.kappa, settings.losses.fd, settings.losses.rwp = 1.5, 0.1, 0.1
    for name, value in changes.items():
        section, _, key = name.partition("__")
        setattr(getattr(settings, section), key, value)
    return settings


def prepared(settings, batches=1):
    """A trainee and its first batches."""
    task = Segmentation()
    task.check(settings)
    data = task.training_data(settings)
    trainee = assemble(task, settings, WORLD, data)
    data.transform = task.train_transform(settings, trainee.run.header)
    collate = task.collate(settings, trainee.run.header)
    numbers = range(min(4, len(data)))
    return trainee, [collate([data[epoch, number] for number in numbers]) for epoch in range(batches)]


def test_the_losses_are_mmsegs(ade, backbones, tmp_path):
    settings = started(segmentation_settings(ade, tmp_path), backbones["vit", None], segmentation__dropout=0.0)
    settings.model.drop_path = 0.0
    trainee, (batch,) = prepared(settings)
    batch.labels[:, :5] = 255
    output = trainee.step(batch, None)
    model = trainee.run.model
    again = model.decode(model.encode(batch.images).maps)
    for name, logits, weight in (("ce", again.logits, 1.0), ("auxiliary", again.auxiliary, 0.4)):
        whole = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
        each = F.cross_entropy(whole, batch.labels.long(), reduction="none", ignore_index=255)
        torch.testing.assert_close(output.terms[name], weight * each.mean())  # over all pixels, ignored ones being 0
    assert set(output.terms) == {"ce", "auxiliary"}
    nothing = torch.full((1, 4, 4), 255)
    loss, hits = pixel_cross_entropy(torch.randn(1, 3, 2, 2), nothing)
    assert loss == 0 and hits == 0


def test_every_draw_follows_from_seed_epoch_and_index(ade, backbones, tmp_path):
    settings = started(segmentation_settings(ade, tmp_path), backbones["vit", None])
    (_, first), (_, second) = (prepared(settings, 2) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert not torch.equal(first[0].images, first[1].images)


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bits(ade, backbones, tmp_path, monkeypatch):
    def settings(name):
        made = started(segmentation_settings(ade, tmp_path / name), backbones["vit", None], "pela")
        made.data.val = None
        return made

    terms = interrupted_three_times(Segmentation, settings, tmp_path, monkeypatch)
    assert set(terms) == {0, 1, 2, 3} and set(terms[0]) == {"ce", "auxiliary", "fd", "rwp"}


@pytest.mark.parametrize("mode", ["whole", pytest.param("slide", marks=pytest.mark.slow)])
def test_evaluation_is_at_the_original_size_over_the_whole_set(ade, backbones, tmp_path, mode):
    """Against a restatement, image by image with all logits in one piece; and the label images say what was counted."""
    settings = started(segmentation_settings(ade, tmp_path / "run"), backbones["swin", None])
    settings.segmentation.mode, settings.segmentation.tile_mb = mode, 0.02
    trainee, _ = prepared(settings)
    engine.save_model(tmp_path / "model.safetensors", trainee.weights(), trainee.run.header)
    settings.init.checkpoint = str(tmp_path / "model.safetensors")
    metrics = runner.evaluate(Segmentation(), settings)["val"]
    model, matrix = load_ours(tmp_path / "model.safetensors").model.eval(), 0
    task = Segmentation()
    run = runner.load_for_evaluation(task, settings, settings.init.checkpoint, WORLD)
    data = task.evaluation_data(settings, run, settings.data.val).images
    for number, (image, label) in enumerate(data.pairs):
        sample = data[number]
        seen, x = sample.image.shape[1:], sample.image[None]
        with torch.no_grad():
            if mode == "whole":
                logits = F.interpolate(model(x).logits, seen, mode="bilinear", align_corners=False)
            else:
                logits, count = torch.zeros(1, 5, *seen), torch.zeros(seen)
                for top in [min(k * 21, seen[0] - 32) for k in range((seen[0] - 32 + 20) // 21 + 1)]:
                    for left in [min(k * 21, seen[1] - 32) for k in range((seen[1] - 32 + 20) // 21 + 1)]:
                        part = model(x[:, :, top : top + 32, left : left + 32]).logits
                        part = F.interpolate(part, (32, 32), mode="bilinear", align_corners=False)
                        logits[:, :, top : top + 32, left : left + 32] += part
                        count[top : top + 32, left : left + 32] += 1
                logits = logits / count
            truth = np.array(Image.open(ade / label))
            predicted = F.interpolate(logits, truth.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        counted = np.where(truth == 0, 255, truth - 1)
        matrix = matrix + pixel_confusion(counted, predicted, 5)
        name = f"{image.rpartition('/')[2].removesuffix('.jpg')}.png"
        written = np.array(Image.open(tmp_path / "run/labels_val" / name))
        assert written.dtype == np.uint8 and np.mean(written == predicted + 1) > 0.99  # sums in another order may tie
    wanted = segmentation_metrics(matrix)
    assert {k: metrics[k] for k in wanted} == pytest.approx(wanted, abs=0.5) and metrics["mean"] == metrics["mIoU"]
    record = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert record["images"] == 7 and set(record["per_class"]) <= set(CLASSES)
    assert Image.open(tmp_path / "run/segments_val.png").width == 6 * 256
    # a label image read back gives the metrics to the digit
    again = 0
    for _, label in data.pairs:
        truth = np.array(Image.open(ade / label))
        written = np.array(Image.open(tmp_path / "run/labels_val" / label.rpartition("/")[2]))
        again = again + pixel_confusion(np.where(truth == 0, 255, truth - 1), written.astype(int) - 1, 5)
    assert segmentation_metrics(again) == {k: metrics[k] for k in wanted}
    # any cut into batches and tiles
    settings.segmentation.batch, settings.segmentation.tile_mb, settings.output = 1, 64.0, str(tmp_path / "again")
    assert runner.evaluate(Segmentation(), settings)["val"] == pytest.approx(metrics, abs=0.1)


@pytest.mark.parametrize(("backbone", "kappa"), [("vit", None), ("swin", 1.5)])
def test_the_backbone_comes_from_a_classifier_and_stays_as_it_is(ade, backbones, tmp_path, backbone, kappa):
    checkpoint = backbones[backbone, kappa]
    settings = started(segmentation_settings(ade, tmp_path, backbone), checkpoint)
    settings.model.image_size = 48
    loaded = Segmentation().load(settings, checkpoint)
    before, after = read_weights(checkpoint), loaded.model.state_dict()
    positions = ("pos_embed", "relative_position_bias_table")  # resampled: another grid, other windows
    same = [name for name in before if name in after and not name.endswith(positions)]
    assert len(same) > 20
    assert all(torch.equal(before[name], after[name]) for name in same)
    left = {name for name in before if name not in after}
    assert all(name.startswith(("backbone.head", "backbone.norm")) for name in left) and bool(left) == (
        backbone == "swin"
    )
    assert loaded.header.ranks == read_header(checkpoint).ranks and bool(loaded.header.ranks) == (kappa is not None)
    assert set(low_rank_layers(loaded.model)) == set(loaded.header.ranks)
    assert loaded.header.notes["classes"] == list(CLASSES) and loaded.header.config.labels == 5
    assert any("decode_head: starts anew" in note for note in loaded.notes)
    engine.save_model(tmp_path / "model.safetensors", after, loaded.header)
    again = Segmentation().load(settings, str(tmp_path / "model.safetensors"))
    assert not again.notes and all(torch.equal(value, again.model.state_dict()[name]) for name, value in after.items())


def test_other_classes_get_last_layers_of_their_own(ade, backbones, tmp_path):
    settings = started(segmentation_settings(ade, tmp_path / "run"), backbones["vit", None], train__steps=1)
    runner.train(Segmentation(), settings, resume=False)
    checkpoint = str(tmp_path / "run/last.safetensors")
    classes = [{"name": name, "value": value} for value, name in enumerate(("x", "y"), 1)]
    (tmp_path / "two.json").write_text(json.dumps({"classes": classes, "ignored": [0, 3, 4, 5]}))
    settings.segmentation.classes, settings.init.checkpoint = str(tmp_path / "two.json"), checkpoint
    loaded = Segmentation().load(settings, checkpoint)
    assert loaded.header.config.labels == 2 and loaded.header.notes["classes"] == ["x", "y"]
    assert sorted(loaded.notes) == [f"{head}.classifier: starts anew" for head in ("auxiliary_head", "decode_head")]
    before, after = read_weights(checkpoint), loaded.model.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before if "classifier" not in n)
    # which have learned nothing, and so are trained and not evaluated; nor are the heads that a classifier starts with
    settings.init.checkpoint = checkpoint
    with pytest.raises(UserError, match="no weights of decode_head.classifier, auxiliary_head.classifier for semantic"):
        runner.evaluate(Segmentation(), settings)
    settings.init.checkpoint = backbones["vit", None]
    with pytest.raises(UserError, match="no weights of decode_head, auxiliary_head for semantic"):
        runner.evaluate(Segmentation(), settings)


@pytest.mark.parametrize("stride", [0, 33, 341])
def test_windows_that_leave_pixels_out_are_refused(ade, backbones, tmp_path, stride):
    settings = started(segmentation_settings(ade, tmp_path / "run"), backbones["vit", None])
    trainee, _ = prepared(settings)
    settings.segmentation.mode, settings.segmentation.stride = "slide", stride
    with pytest.raises(
        UserError, match=f"segmentation.stride {stride}: windows of model.image_size 32 want 1 to 32, such as 21"
    ):
        Segmentation().evaluation_data(settings, trainee.run, settings.data.val)
    settings.segmentation.stride = 32
    assert Segmentation().evaluation_data(settings, trainee.run, settings.data.val).images


METHODS = [("pela", "vit"), ("tinybert", "swin"), ("maskalign", "vit")]
METHODS += [
    pytest.param(*pair, marks=pytest.mark.slow)
    for pair in (("pela", "swin"), ("svd", "vit"), ("lora", "vit"), ("lora", "swin"), ("tinybert", "vit"))
]
TERMS = {"pela": {"fd", "rwp"}, "tinybert": {"hidden", "attention"}, "maskalign": {"align"}}


@pytest.mark.parametrize(("method", "backbone"), METHODS)
def test_every_method_trains_and_is_loaded_again(ade, backbones, tmp_path, method, backbone):
    settings = started(segmentation_settings(ade, tmp_path / "run", backbone), backbones[backbone, None], method)
    settings.train.steps, settings.data.val = 2, None
    settings.method.student.blocks = [2] if backbone == "vit" else [1, 1, 1, 1]
    settings.method.lora.rank = 2
    runner.train(Segmentation(), settings, resume=False)
    line = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert set(line["terms"]) == {"ce", "auxiliary", *TERMS.get(method, ())}
    loaded = load_ours(tmp_path / "run/last.safetensors")
    assert loaded.header.kind == "segmentation" and loaded.header.config.labels == 5
    if method in ("tinybert", "maskalign"):
        assert loaded.model.depths == settings.method.student.blocks
    if method in ("pela", "svd"):
        assert loaded.header.ranks and not any("head" in n or "patch_embed" in n for n in loaded.header.ranks)
    if method == "lora":
        before, after = read_weights(backbones[backbone, None]), loaded.model.state_dict()
        name = (
            "backbone.blocks.0.attn.qkv.weight" if backbone == "vit" else "backbone.layers.0.blocks.0.attn.qkv.weight"
        )
        assert after.keys() >= {name} and not torch.equal(before[name], after[name])


def test_whitened_factors_see_the_training_images(ade, backbones, tmp_path):
    errors = {}
    for init in ("svd", "whitened"):
        settings = started(segmentation_settings(ade, tmp_path / init), backbones["vit", None], "pela")
        settings.compress.init, settings.compress.samples, settings.compress.kappa = init, 8, 3.0
        trainee, (batch,) = prepared(settings)
        student, teacher = trainee.run.model.eval(), trainee.method.teacher.model
        found = [model.encode(batch.images).maps[-1] for model in (student, teacher)]
        errors[init] = (found[0] - found[1]).square().mean().item()
    assert errors["whitened"] < 0.8 * errors["svd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses__itc": 1.0}, "losses.itc"),
        ({"losses__logits": 1.0}, "losses.logits"),
        ({"losses__fd_features": "pooled"}, "losses.fd_features"),
        ({"train__ema": 0.9}, "train.ema"),
        ({"train__batch_size": 1}, "two images at least"),
        ({"segmentation__classes": None}, "segmentation.classes is not set"),
        ({"segmentation__scale": [40, 160]}, "scale"),
        ({"data__hflip": 1.5}, "data.hflip 1.5"),
        ({"segmentation__scale": [40]}, "want two numbers"),
        ({"segmentation__ratio": [2.0, 0.5]}, "ratio"),
        ({"segmentation__tile_mb": 0.0}, "tile_mb"),
        ({"segmentation__auxiliary": -1.0}, "segmentation.auxiliary"),
        ({"model__overrides": {"width": 8}}, "leave them out"),
        ({"init__checkpoint": None}, "model.size"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(ade, backbones, tmp_path, change, message):
    settings = started(segmentation_settings(ade, tmp_path / "run"), backbones["vit", None], **change)
    with pytest.raises(UserError, match=message) as caught:
        runner.train(Segmentation(), settings, resume=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "run/log.jsonl").exists()


def test_a_model_of_another_number_of_classes_is_not_evaluated(ade, backbones, tmp_path):
    settings = started(segmentation_settings(ade, tmp_path / "run"), backbones["vit", None])
    trainee, _ = prepared(settings)
    (tmp_path / "six.json").write_text(
        json.dumps({"classes": [{"name": str(k), "value": k} for k in range(1, 7)], "ignored": [0]})
    )
    settings.segmentation.classes = str(tmp_path / "six.json")
    with pytest.raises(UserError, match="6 classes, but the model has 5"):
        Segmentation().evaluation_data(settings, trainee.run, settings.data.val)


def test_an_image_whose_pixels_are_all_unlabelled_counts_nothing(ade, backbones, tmp_path):
    root = write_ade(tmp_path / "ade", train=2, val=2)
    pairs = json.loads((root / "val.json").read_text())
    path = root / pairs[0]["labels"]
    stream = io.BytesIO()
    Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(stream, "PNG")
    path.write_bytes(stream.getvalue())
    settings = started(segmentation_settings(root, tmp_path / "run"), backbones["vit", None])
    trainee, _ = prepared(settings)
    task = Segmentation()
    both = task.evaluate(settings, trainee.run, task.evaluation_data(settings, trainee.run, settings.data.val))
    (root / "val.json").write_text(json.dumps(pairs[1:]))
    one = task.evaluate(settings, trainee.run, task.evaluation_data(settings, trainee.run, settings.data.val))
    assert both.metrics == one.metrics and len(both.details.images) == 2
