"""Object detection: training, what draws follow from, resuming, evaluation, every method, and images without anything."""

import json

import numpy as np
import pytest
import torch
from coco_files import CLASSES, detection_settings, write_coco
from interrupted_runs import interrupted_three_times, logged_terms
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pela_vl.base.distributed import World
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import load_ours
from pela_vl.checkpoints.ours import read_header, read_weights
from pela_vl.lowrank import low_rank_layers
from pela_vl.training import runner
from pela_vl.training.assemble import assemble
from pela_vl.workloads.detection import Detection

PROCESS = World(0, 1, torch.device("cpu"), False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, 8, 0, "train.json")
    write_coco(folder, 5, 1, "val.json")
    return folder


@pytest.fixture(scope="module")
def dense(images, tmp_path_factory):
    settings = detection_settings(images, tmp_path_factory.mktemp("dense"), train__steps=1)
    runner.train(Detection(), settings, resume=False)
    return f"{settings.output}/last.safetensors"


def started(settings, checkpoint, method="full", **changes):
    """settings of a run from a checkpoint."""
    settings.model.size, settings.model.overrides = None, {}
    settings.init.checkpoint, settings.method.name = checkpoint, method
    if method in ("pela", "svd"):
        settings.compress.kappa = 1.5
    for name, value in changes.items():
        section, _, key = name.partition("__")
        setattr(getattr(settings, section), key, value)
    return settings


def prepared(task, settings, batches=1):
    """A trainee and its first batches."""
    task.check(settings)
    data = task.training_data(settings)
    trainee = assemble(task, settings, PROCESS, data)
    data.transform = task.train_transform(settings, trainee.run.header)
    collate = task.collate(settings, trainee.run.header)
    return trainee, [collate([data[epoch, i] for i in range(3)]) for epoch in range(batches)]


@pytest.mark.slow
def test_training_learns_every_part(images, tmp_path):
    settings = detection_settings(images, tmp_path / "run", train__steps=3)
    _, metrics = runner.train(Detection(), settings, resume=False)
    before = load_before(settings)
    after = read_weights(tmp_path / "run/last.safetensors")
    still = [name for name in after if torch.equal(before[name], after[name])]
    assert all("running" not in name for name in still) and not [n for n in still if n.endswith("weight")]
    assert set(logged_terms(tmp_path / "run")[0]) == {
        "rpn_objectness",
        "rpn_box",
        *(f"{name}_{stage}" for name in ("class", "box", "mask") for stage in (1, 2, 3)),
    }
    numbers = {f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75")}
    assert set(metrics["val"]) == {*numbers, "mean"}
    header = read_header(tmp_path / "run/last.safetensors")
    assert header.kind == "detection" and header.notes["classes"] == list(CLASSES)  # in the order of the ids


def load_before(settings):
    """The weights that a run of these settings begins with."""
    task = Detection()
    task.training_data(settings)
    torch.manual_seed(settings.train.seed)
    return task.load(settings, None).model.state_dict()


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bits(images, dense, tmp_path, monkeypatch):
    def settings(name):
        return started(detection_settings(images, tmp_path / name, detection__crop=True), dense, "svd", data__val=None)

    interrupted_three_times(Detection, settings, tmp_path, monkeypatch)


def test_every_draw_follows_from_seed_epoch_and_index(images, dense, tmp_path):
    settings = started(detection_settings(images, tmp_path, detection__crop=True), dense)
    (_, first), (_, second) = (prepared(Detection(), settings, 3) for _ in range(2))
    torch.rand(5), np.random.rand(5)  # global generators do not matter
    for a, b in zip(first, second, strict=True):
        for name in ("images", "sizes", "boxes", "labels", "owners", "masks"):
            assert torch.equal(getattr(a, name), getattr(b, name))
    assert len({tuple(batch.sizes.flatten().tolist()) for batch in first}) > 1
    settings.train.seed = 7
    other = prepared(Detection(), settings)[1][0]
    assert other.images.shape != first[0].images.shape or not torch.equal(other.images, first[0].images)


def test_evaluation_is_cocos_and_its_files_are_read_by_coco(images, dense, tmp_path):
    settings = started(detection_settings(images, tmp_path / "eval"), dense)
    metrics = runner.evaluate(Detection(), settings)["val"]
    record = json.loads((tmp_path / "eval/evaluation.json").read_text())
    assert record["metrics"] == metrics and record["images"] == 5 and set(record["per_class"]) == {"box", "mask"}
    truth = COCO(str(images / "val.json"))
    found = truth.loadRes(str(tmp_path / "eval/detections_val.json"))
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        own = found
        if kind == "segm":
            rows = json.loads((tmp_path / "eval/detections_val.json").read_text())
            own = truth.loadRes([{k: v for k, v in row.items() if k != "bbox"} for row in rows])
        evaluation = COCOeval(truth, own, kind)
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
        assert metrics[f"{name}_ap"] == pytest.approx(100 * evaluation.stats[0])
        assert metrics[f"{name}_ap50"] == pytest.approx(100 * evaluation.stats[1])
        assert record["numbers"][name]["ar"] == pytest.approx(100 * evaluation.stats[8])
    rows = json.loads((tmp_path / "eval/detections_val.json").read_text())
    assert {row["category_id"] for row in rows} <= {3, 7, 90} and len(rows) > 5
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth.dataset["images"]}
    assert all(row["segmentation"]["size"] == sizes[row["image_id"]] for row in rows)
    with Image.open(tmp_path / "eval/images_val.png") as sheet:
        assert min(sheet.size) > 300


METHODS = ["full", "svd", "lora", "pela", "tinybert"]
TERMS = {"pela": {"fd"}, "tinybert": {"hidden"}}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_loaded_again(images, dense, tmp_path, method):
    settings = started(detection_settings(images, tmp_path / "run", data__val=None), dense, method, train__steps=1)
    settings.method.student.blocks, settings.method.lora.rank = [1, 1, 1, 1], 2
    settings.losses.fd, settings.losses.attention = 0.1, 0.0
    runner.train(Detection(), settings, resume=False)
    terms = set(logged_terms(tmp_path / "run")[0])
    assert {term for term in terms if "_" not in term} == TERMS.get(method, set())
    loaded, before = load_ours(tmp_path / "run/last.safetensors"), read_weights(dense)
    after = loaded.model.state_dict()
    assert not torch.equal(after["box_heads.0.logits.weight"], before["box_heads.0.logits.weight"])
    if method in ("svd", "pela"):
        ranks = set(loaded.header.ranks)
        assert set(low_rank_layers(loaded.model)) == ranks and all(".blocks." in name for name in ranks)
        assert any(name.endswith("attn.proj") for name in ranks)  # Table 3's model factorises it
    if method == "tinybert":
        assert loaded.model.depths == [1, 1, 1, 1]
    if method == "lora":
        assert after.keys() == before.keys()


def test_a_batch_without_objects_and_one_without_proposals(images, dense, tmp_path):
    settings = started(detection_settings(images, tmp_path), dense)
    trainee, (batch,) = prepared(Detection(), settings)
    empty = batch._map(lambda tensor: tensor)
    empty = type(batch)(
        batch.images, batch.sizes, batch.boxes[:0], batch.labels[:0], batch.owners[:0], batch.masks[:0], batch.indices
    )
    model = trainee.run.model
    for proposals in (settings.detection.proposals, None):
        if proposals is None:
            model.propose = lambda pyramid, sizes, truths=None: (
                [torch.zeros(0, 4) for _ in sizes],
                {"loss_objectness": torch.zeros(()), "loss_rpn_box_reg": torch.zeros(())},
            )
        for own in (batch, empty):
            terms = trainee.step(own, None).terms
            assert all(torch.isfinite(value) for value in terms.values())
            if own is empty:
                assert all(float(terms[f"{name}_{stage}"]) == 0 for name in ("box", "mask") for stage in (1, 2, 3))
            sum(terms.values()).backward()
    model.eval()
    found = model.detect(batch.images, [(64, 64)] * 3)
    assert [len(own.scores) for own in found] == [0, 0, 0] and found[0].masks.shape == (0, 28, 28)


def test_nothing_found_and_nothing_true_are_measured(images, dense, tmp_path):
    settings = started(detection_settings(images, tmp_path / "none", detection__score=1.0), dense)
    metrics = runner.evaluate(Detection(), settings)["val"]
    assert metrics["box_ap"] == metrics["mask_ap"] == metrics["mean"] == 0
    assert json.loads((tmp_path / "none/detections_val.json").read_text()) == []
    document = json.loads((images / "val.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**document, "annotations": []}))
    settings = started(detection_settings(images, tmp_path / "empty"), dense, data__val=str(tmp_path / "empty.json"))
    assert runner.evaluate(Detection(), settings)["val"] == {"mean": 0.0}


def test_boxes_alone_are_learned_where_there_are_no_masks(tmp_path):
    write_coco(tmp_path, 4, 0, "train.json", masks=False)
    write_coco(tmp_path, 3, 1, "val.json", masks=False)
    settings = detection_settings(tmp_path, tmp_path / "run", train__steps=1)
    with pytest.raises(UserError, match="train.json: objects without a mask; set detection.masks: false"):
        runner.train(Detection(), settings, resume=False)
    settings.detection.masks = False
    _, metrics = runner.train(Detection(), settings, resume=False)
    assert "box_ap" in metrics["val"] and not any(name.startswith("mask") for name in metrics["val"])
    rows = json.loads((tmp_path / "run/detections_val.json").read_text())
    assert rows and all("segmentation" not in row for row in rows)
    again = started(detection_settings(tmp_path, tmp_path / "low"), f"{settings.output}/last.safetensors", "svd")
    again.detection.masks, again.train.steps = False, 1
    runner.train(Detection(), again, resume=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses__itc": 1.0}, "losses.itc"),
        ({"losses__fd_features": "pooled"}, "losses.fd_features"),
        ({"train__ema": 0.5}, "train.ema"),
        ({"detection__short": []}, "detection.short"),
        ({"data__hflip": -0.5}, "data.hflip -0.5"),
        ({"detection__samples": 0}, "detection.samples|samples 0"),
        ({"detection__score": 1.5}, "detection.score"),
        ({"model__overrides": {"width": 8}}, "leave them out"),
        ({"compress__kappa": 1.5, "compress__init": "whitened"}, "compress.init: object detection"),
        ({"data__train": []}, "data.train"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(images, dense, tmp_path, change, message):
    settings = started(detection_settings(images, tmp_path / "run"), dense, **change)
    with pytest.raises(UserError, match=message) as caught:
        runner.train(Detection(), settings, resume=False)
    assert "\n" not in str(caught.value)
