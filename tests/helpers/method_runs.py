"""Runs of every method in every task at test size: which there are, and their settings; the lists are `every_list`'s."""

from pathlib import Path

from pela_vl import methods
from pela_vl.settings import MethodSettings, Settings, StudentSettings
from pela_vl.workloads.entailment import Entailment
from pela_vl.workloads.grounding import Grounding
from pela_vl.workloads.pretraining import Pretraining
from pela_vl.workloads.retrieval import Retrieval
from pela_vl.workloads.vqa import Vqa

TASKS = {
    "pretraining": Pretraining,
    "retrieval": Retrieval,
    "entailment": Entailment,
    "vqa": Vqa,
    "grounding": Grounding,
}
FINE_TUNING = ("retrieval", "entailment", "vqa", "grounding")
METHODS = sorted(methods.METHODS)
LISTS = {"entailment": "entailment/snli_ve", "vqa": "vqa/vqa", "grounding": "refs/refs"}


def settings_of(task: str, method: str, listed: Path, output: Path) -> Settings:
    """Three steps from random weights, a state after each, and an evaluation on the test list."""
    made = Settings(output=str(output), method=MethodSettings(method))
    made.model.size, made.model.tokenizer, made.model.dropout = "albef_test", "scenes", 0.1
    data, lists = made.data, listed / LISTS.get(task, "lists/scenes")
    made.vqa.answer_list, made.vqa.k_test = str(listed / "vqa/answer_list.json"), 8
    made.grounding.boxes, made.drawings.overlays = str(listed / "refs/refs_boxes.json"), 0
    data.train, data.image_root, data.workers = [f"{lists}_train.json"], str(listed), 0
    data.val, data.test = None, f"{lists}_test.json"
    data.min_scale, data.hflip, data.augment = 1.0, 0.0, False
    made.losses.queue_size, made.evaluate.k_test, made.losses.alpha_ramp_steps = 8, 3, 2
    made.train.steps, made.train.batch_size, made.train.threads, made.train.checkpoint_every = 3, 4, 1, 1
    made.train.device, made.train.precision = "cpu", "fp32"
    if method in ("svd", "pela"):
        made.compress.kappa, made.losses.fd, made.losses.rwp = 3.0, 0.1, 0.1
    if method == "tome":
        made.model.token_merging = 1
    if method in ("tinybert", "maskalign"):
        made.method.student = StudentSettings(vision_depth=1, text_depth=1, fusion_depth=1, keep=0.5)
    return made
