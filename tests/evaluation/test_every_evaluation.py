"""Every task evaluates an optimised model: in fp32 with the same metrics, in bf16 as near to fp32 as autocast is."""

import copy
from contextlib import nullcontext

import pytest
import torch
from coco_files import detection_settings, write_coco
from labelled_files import vision_settings, write_images
from method_runs import TASKS, settings_of
from segmented_files import segmentation_settings, write_ade
from tiny_albef import randomise
from tiny_runs import ONE

from benchmarks.dispatch import Dispatches
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.evaluation.localisation import expression_heat
from pela_vl.lowrank import compress
from pela_vl.training import runner
from pela_vl.workloads.albef import tokenizer_of
from pela_vl.workloads.classification import Classification
from pela_vl.workloads.detection import Detection
from pela_vl.workloads.entailment import classify
from pela_vl.workloads.segmentation import Segmentation

ALL = ["retrieval", "entailment", "vqa", "grounding", "vit", "swin", "segmentation", "detection"]
OWN_DTYPE = [name for name in ALL if name != "detection"]


@pytest.fixture(scope="module")
def folders(every_list, tmp_path_factory):
    made = tmp_path_factory.mktemp("evaluated")
    for name, each in (("train", 1), ("val", 2)):
        write_images(made / "classes" / name, each, each)
        write_coco(made, 3, each, f"{name}.json")
    return {"lists": every_list, "images": made / "classes", "ade": write_ade(made / "ade"), "coco": made}


def set_up(name, folders, output, low_rank):
    """A task with its settings; it loads a random model and not a file."""
    if name in TASKS:
        task, settings = TASKS[name](), settings_of(name, "full", folders["lists"], output)
        settings.evaluate.k_test = 128  # every pair is re-ranked
    elif name == "segmentation":
        task, settings = Segmentation(), segmentation_settings(folders["ade"], output, "swin")
    elif name == "detection":
        task, settings = Detection(), detection_settings(folders["coco"], output)
    else:
        task, settings = Classification(), vision_settings(folders["images"], output, name)
        settings.vision.batch = 32
    task.training_data(settings)  # the classes are its
    torch.manual_seed(0)
    loaded = task.load(settings, None)
    randomise(loaded.model, std=0.2 if name in TASKS else 0.05)
    if low_rank:
        compress(loaded.model, 2, exclude=dense_heads(loaded.model))
    task.load = lambda *_: copy.deepcopy(loaded)
    return task, settings


def evaluated(task, settings, precision, optimised=True):
    """What a run's evaluation loads: the model as it is optimised, or as it is, in which autocast casts."""
    settings.evaluate.precision = precision
    if not optimised:
        bf16 = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
        task.optimise = lambda model, dtype: (model, nullcontext if dtype is None else bf16)
    run = runner.load_for_evaluation(task, settings, "x", ONE)
    task.__dict__.pop("optimise", None)
    return run, task.evaluation_data(settings, run, settings.data.test or settings.data.val)


@torch.no_grad()
def scores(name, task, settings, run, data):
    """The numbers that answers are chosen by."""
    if name == "retrieval":
        return torch.from_numpy(task.evaluate(settings, run, data).details.image_to_text)
    if name == "entailment":
        return classify(settings, run, data)
    if name == "vqa":
        found = task.evaluate(settings, run, data).details
        return torch.tensor([sorted(chance for _, chance in best) for best in found])
    if name == "grounding":
        chosen = [*range(0, len(data.expressions), 12)]
        heat = expression_heat(
            run.model, data, tokenizer_of(run), settings.grounding, chosen, run.world.device, run.autocast
        )
        return torch.cat([one.flatten() for one in heat])
    images = [data.images[0].image] if name == "segmentation" else [data[number] for number in range(6)]
    with run.autocast():
        return run.model(torch.stack(images)).logits.float()


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_fp32_metrics_are_equal(folders, tmp_path, name, low_rank):
    task, settings = set_up(name, folders, tmp_path, low_rank)
    found = []
    for optimised in (False, True):
        run, data = evaluated(task, settings, "fp32", optimised)
        assert run.model.training is False and run.autocast is nullcontext
        assert any(p.requires_grad for p in run.model.parameters()) != optimised
        found.append((task.evaluate(settings, run, data).metrics, run, data))
    assert found[0][0] == found[1][0]
    if name != "detection":
        plain, own = (scores(name, task, settings, run, data) for _, run, data in found)
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("low_rank", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", OWN_DTYPE)
def test_bf16_weights_are_as_near_to_fp32_as_autocast(folders, tmp_path, name, low_rank):
    task, settings = set_up(name, folders, tmp_path, low_rank)
    exact = scores(name, task, settings, *evaluated(task, settings, "fp32", optimised=False))
    errors, kernels = [], []
    for optimised in (False, True):
        run, data = evaluated(task, settings, "bf16", optimised)
        if optimised:
            assert run.autocast is nullcontext and not torch.is_autocast_enabled("cpu")
            assert_only_what_needs_it_is_fp32(run.model)
        counted = Dispatches()
        with counted:
            found = scores(name, task, settings, run, data)
        errors.append((found - exact).square().mean().sqrt())
        kernels.append(counted.total().kernels)
    assert 0 < errors[1] < 2.5 * errors[0], errors
    assert kernels[1] < 0.8 * kernels[0], kernels


def assert_only_what_needs_it_is_fp32(model):
    """Heads that give scores, batch normalisations, and the states of the text-only layers."""
    exact = [model.get_submodule(name) for name in model.score_heads]
    exact += [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if text := getattr(model, "text_encoder", None):
        layers = [text.embeddings, *text.layers[: text.fusion_layer]]
        exact += [
            m for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Embedding | torch.nn.LayerNorm)
        ]
    fp32 = {id(parameter) for module in exact for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in fp32 else torch.bfloat16), name


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_detector_stays_under_autocast(folders, tmp_path, low_rank):
    """With its weights cast once: the same detections, to the bit."""
    task, settings = set_up("detection", folders, tmp_path, low_rank)
    (plain, before), (own, after) = (detected(task, settings, optimised) for optimised in (False, True))
    assert own == plain and own
    assert after < 0.9 * before


def detected(task, settings, optimised):
    run, data = evaluated(task, settings, "bf16", optimised)
    counted = Dispatches()
    with counted:
        found = task.evaluate(settings, run, data).details
    return found, counted.total().kernels
