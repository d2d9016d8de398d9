"""The scale of a grid that runs on a CPU: scenes, in an hour or two."""

from dataclasses import replace
from pathlib import Path

from pela_vl.demo.downstream import TASKS as DEMO_TASKS
from pela_vl.demo.downstream import Downstream, task_arguments, task_changes
from pela_vl.experiments.runs import Run
from pela_vl.experiments.scales import ONE_RECORD, Scale, Task

_STEPS = {"pretrain": 120, "retrieval": 60, "entailment": 150, "grounding": 40, "vqa": 200}
_SHORTER = 4  # times fewer steps of pre-training
_LONGER, _LARGER_BATCH = 400, 64  # the demo's own length
_EXISTENCE = ("--train", "9000", "--val", "500", "--test", "20000")  # a question of existence for 4 of 9 images


def demo_scale(root: Path, teacher: Path, quick: bool = False) -> Scale:
    """Scenes on a CPU: the demo's configurations with fewer samples, on a separate corpus.

    Args:
        root: folder of all runs.
        teacher: the dense pre-trained checkpoint.
        quick: a few steps and images, to see that everything runs; its figures mean nothing.
    """
    scenes = root / "data" / "scenes"
    lists = scenes / "lists"
    sizes = (100, 20, 20) if quick else (4000, 250, 250)
    counts = [
        part for name, size in zip(("--train", "--val", "--test"), sizes, strict=True) for part in (name, str(size))
    ]
    render = Run(
        "data/render",
        ("data_prep/build_scenes.py", "--output", str(scenes), *counts),
        (scenes,),
        resumable=True,
    )
    karpathy = ["--karpathy", str(scenes / "dataset_scenes.json"), "--image-root", str(scenes)]
    make_lists = Run(
        "data/retrieval",
        ("data_prep/build_retrieval.py", *karpathy, "--output", str(lists), "--name", "scenes"),
        (lists,),
        (render,),
    )
    small = ("train.batch_size=32", f"data.image_root={scenes}")

    def steps(task: str, divisor: int = 1) -> tuple[str, ...]:
        count = (4 if quick else _STEPS[task]) // divisor
        return f"train.steps={count}", f"optim.warmup_steps={count // 20}", f"train.checkpoint_every={count // 2}"

    most, batch = (8, 8) if quick else (_LONGER, _LARGER_BATCH)
    longer = (
        f"train.steps={most}",
        f"train.batch_size={batch}",
        f"optim.warmup_steps={most // 20}",
        f"train.checkpoint_every={most // 2}",
        f"train.evaluate_every={most // 4}",
    )
    data = (f"data.train=[{lists}/scenes_train.json]", f"data.test={lists}/scenes_test.json", "evaluate.k_test=32")
    retrieval = Task(
        "tasks/retrieval.py",
        "configs/demo/retrieval.yaml",
        (*small, *data, *steps("retrieval")),
        needs=(make_lists,),
    )
    tasks = {
        "retrieval": retrieval,
        "zero_shot": replace(retrieval, evaluate=True),
        "zero_shot_shorter": replace(retrieval, evaluate=True, length=steps("pretrain", _SHORTER)),
        "zero_shot_longer": replace(retrieval, evaluate=True, length=longer),
        "start": replace(retrieval, evaluate=True, before_pretraining=True),
    }
    for task in DEMO_TASKS:
        listed = _listed(task, scenes, render)
        tasks[task.name] = replace(listed, changes=(*listed.changes, "train.batch_size=32", *steps(task.name)))
    tasks["grounding_zero_shot"] = _full_expressions(root, quick)
    tasks["vqa_existence"] = _existence(root, quick, steps("vqa"))
    pretraining = (
        *small,
        f"data.train=[{lists}/scenes_pretrain.json]",
        f"data.val={lists}/scenes_val.json",
        *steps("pretrain"),
        f"train.evaluate_every={2 if quick else 20}",
    )
    return Scale(
        "quick" if quick else "demo",
        root,
        teacher,
        tasks,
        Task("tasks/pretrain.py", "configs/demo/pretrain.yaml", pretraining, needs=(make_lists,)),
        (f"{lists}/scenes_train.json", str(scenes)),
        # LoRA's rank in the paper's proportion to the width; merging leaves 11 of 64 patches, the paper's 3 of 576
        {"lora_rank": 3, "lora_lr": 1e-3, "merged": 14, "lower_lr": 3e-4},
        threads=("--set", "train.threads={threads}"),
        lengths={
            "zero_shot_shorter": f"{(4 if quick else _STEPS['pretrain']) // _SHORTER} steps",
            "zero_shot": f"{4 if quick else _STEPS['pretrain']} steps",
            "zero_shot_longer": f"{most} steps",
        },
    )


def _listed(task: Downstream, scenes: Path, render: Run, *arguments: str) -> Task:
    """A task whose lists are made of a corpus of scenes.

    Args:
        task: one of the demo's.
        scenes: folder of the corpus.
        render: the run that writes it.
        arguments: more of the script that makes the lists.
    """
    name = task.name if scenes.name == "scenes" else f"{task.name}_{scenes.name}"
    command = (task.builder, *task_arguments(scenes, task), *arguments)
    lists = Run(f"data/{name}", command, (scenes / "tasks" / task.name,), (render,))
    return Task(task.script, task.config, tuple(task_changes(scenes, task)), task.splits, (lists,))


def _full_expressions(root: Path, quick: bool) -> Task:
    """Grounding without fine-tuning, by expressions that say as much as the captions of pre-training."""
    scenes = root / "data" / "full_expressions"
    sizes = ("--train", "20", "--val", "20", "--test", "20" if quick else "2000")
    command = ("data_prep/build_scenes.py", "--output", str(scenes), *sizes, "--full-expressions")
    task = next(task for task in DEMO_TASKS if task.name == "grounding")
    referred = _listed(task, scenes, Run(f"data/render_{scenes.name}", command, (scenes,), resumable=True))
    return replace(referred, changes=(*referred.changes, "data.val=null"), records=ONE_RECORD, evaluate=True)


def _existence(root: Path, quick: bool, steps: tuple[str, ...]) -> Task:
    """VQA by questions of existence alone: "yes" and "no" leave little to learn for the answer decoder, which is new."""
    scenes = root / "data" / "existence"
    sizes = ("--train", "100", "--val", "20", "--test", "20") if quick else _EXISTENCE
    command = ("data_prep/build_scenes.py", "--output", str(scenes), *sizes)
    task = next(task for task in DEMO_TASKS if task.name == "vqa")
    render = Run(f"data/render_{scenes.name}", command, (scenes,), resumable=True)
    asked = _listed(task, scenes, render, "--question-types", "is there a")
    rates = ("losses.alpha=0", "optim.lr=2e-4", 'optim.lr_scale={"text_decoder.*": 5.0}', "train.batch_size=32")
    return replace(asked, changes=(*asked.changes, *rates, *steps))
