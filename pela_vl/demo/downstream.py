"""The demo's downstream tasks: SNLI-VE, RefCOCO+ and VQA on scenes, each fine-tuned from every model with equal steps."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pela_vl.demo.stages import Stage, make_stage, set_arguments


@dataclass(frozen=True)
class Downstream:
    """A downstream task.

    Attributes:
        builder, arguments: the script that writes its lists, and its arguments with {scenes} and {lists} to be filled
            in.
        data: configuration keys of paths below these folders.
        splits: evaluation files by split.
        metrics: (split, metric, column head) of the columns shown.
    """

    name: str
    title: str
    builder: str
    arguments: tuple[str, ...]
    data: Mapping[str, str]
    splits: Mapping[str, str]
    metrics: tuple[tuple[str, str, str], ...]

    @property
    def script(self) -> str:
        return f"tasks/{self.name}.py"

    @property
    def config(self) -> str:
        return f"configs/demo/{self.name}.yaml"


TASKS = (
    Downstream(
        "entailment",
        "SNLI-VE",
        "data_prep/build_snli_ve.py",
        ("--source", "{scenes}", "--image-root", "{scenes}", "--image-pattern", "images/{{split}}/{{id}}.jpg")
        + ("--output", "{lists}", "--name", "snli_ve"),
        {
            "data.train": "[{lists}/snli_ve_train.json]",
            "data.val": "{lists}/snli_ve_dev.json",
            "data.test": "{lists}/snli_ve_test.json",
            "data.image_root": "{scenes}",
        },
        {"val": "evaluation_val.json", "test": "evaluation.json"},
        (
            ("val", "accuracy", "val"),
            ("test", "accuracy", "test"),
            ("test", "entailment", "entails"),
            ("test", "neutral", "neutral"),
            ("test", "contradiction", "contradicts"),
        ),
    ),
    Downstream(
        "grounding",
        "RefCOCO+",
        "data_prep/build_refcoco_plus.py",
        ("--refs", "{scenes}/refs(unc).p", "--instances", "{scenes}/instances.json")
        + ("--detections", "{scenes}/dets.json")
        + ("--image-root", "{scenes}", "--output", "{lists}", "--name", "refs"),
        {
            "data.train": "[{lists}/refs_train.json]",
            "data.val": "{lists}/refs_val.json",
            "data.test": "{lists}/refs_test.json",
            "data.image_root": "{scenes}",
            "grounding.boxes": "{lists}/refs_boxes.json",
        },
        {"val": "evaluation_val.json", "test": "evaluation.json"},
        (("val", "val", "val"), ("test", "testA", "testA"), ("test", "testB", "testB")),
    ),
    Downstream(
        "vqa",
        "VQA",
        "data_prep/build_vqa.py",
        ("--raw", "{scenes}", "--image-root", "{scenes}", "--output", "{lists}"),
        {
            "data.train": "[{lists}/vqa_train.json]",
            "data.test": "{lists}/vqa_test.json",
            "data.image_root": "{scenes}",
            "vqa.answer_list": "{lists}/answer_list.json",
        },
        {"test": "evaluation.json"},
        (
            ("test", "mean", "all"),
            ("test", "yes/no", "yes/no"),
            ("test", "number", "number"),
            ("test", "other", "other"),
        ),
    ),
)


def list_stages(scenes: Path) -> list[Stage]:
    """The stages that write each task's lists, as a user does from the public downloads."""
    stages = []
    for task in TASKS:
        arguments, lists = task_arguments(scenes, task), [task_lists(scenes, task)]
        stages.append(make_stage(f"make the lists of {task.title}", task.builder, arguments, lists))
    return stages


def task_arguments(scenes: Path, task: Downstream) -> list[str]:
    """Arguments of the script that writes a task's lists from a folder of scenes."""
    return [part.format(scenes=scenes, lists=task_lists(scenes, task)) for part in task.arguments]


def task_changes(scenes: Path, task: Downstream) -> list[str]:
    """Configuration changes that name a task's lists."""
    return [f"{key}={value.format(scenes=scenes, lists=task_lists(scenes, task))}" for key, value in task.data.items()]


def tuning_stages(checkpoints: Mapping[str, Path], root: Path, scenes: Path, steps: int | None) -> list[Stage]:
    """The stages that fine-tune every model for each task.

    Args:
        checkpoints: by model name.
        root: folder of the demo's runs.
        scenes: folder of the corpus.
        steps: of each fine-tuning; None: the configuration's.
    """
    stages = []
    for task in TASKS:
        for model, checkpoint in checkpoints.items():
            folder, changes = task_folder(root, task, model), task_changes(scenes, task)
            changes += [f"init.checkpoint={checkpoint}", f"output={folder}"]
            if steps:
                changes += [f"train.steps={steps}", f"optim.warmup_steps={steps // 20}"]
            arguments = ["--config", task.config, "--resume", *set_arguments(changes)]
            title = f"{task.title}, fine-tune and evaluate: {model}"
            stages.append(make_stage(title, task.script, arguments, [folder], True))
    return stages


def task_lists(scenes: Path, task: Downstream) -> Path:
    """Folder of a task's lists."""
    return scenes / "tasks" / task.name


def task_folder(root: Path, task: Downstream, model: str) -> Path:
    """Folder of a model's run of a task.

    Args:
        root: folder of the demo's runs.
        task: the task.
        model: name of the model; its first word names the folder.
    """
    return root / task.name / model.split(" ")[0].lower()


def downstream_results(models: list[str], root: Path) -> dict[str, Any]:
    """The report's `tasks`: by task, the column heads and each model's row of percentages."""
    return {
        task.title: {
            "columns": [head for _, _, head in task.metrics],
            "rows": {model: _row(task_folder(root, task, model), task) for model in models},
        }
        for task in TASKS
    }


def _row(folder: Path, task: Downstream) -> list[float | None]:
    records = {split: json.loads((folder / file).read_text(encoding="utf-8")) for split, file in task.splits.items()}
    return [records[split]["metrics"].get(metric) for split, metric, _ in task.metrics]
