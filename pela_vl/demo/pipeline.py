"""The demo's commands in order, and the report of their results."""

import base64
import io
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pela_vl.base import config
from pela_vl.base.distributed import start
from pela_vl.base.files import atomic_json
from pela_vl.base.system import usable_cores
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.ours import read_weights
from pela_vl.cost import Flops
from pela_vl.data.paths import resolve
from pela_vl.demo.downstream import downstream_results, list_stages, tuning_stages
from pela_vl.demo.stages import Stage, make_stage, set_arguments
from pela_vl.settings import ModelSettings, Settings
from pela_vl.training.run_log import read_log
from pela_vl.training.runner import evaluate_checkpoint
from pela_vl.workloads.pretraining import Pretraining

TEACHER, TRUNCATED, PELA = "teacher (dense)", "truncated (SVD only)", "PELA"


@dataclass
class Sizes:
    """Sizes of all stages; the defaults are those of `make demo`. `all_tasks`: run the downstream tasks after
    retrieval.
    """

    train: int = 8000
    val: int = 250
    test: int = 250
    pretrain_steps: int | None = None
    retrieval_steps: int | None = None
    all_tasks: bool = False
    task_steps: int | None = None
    workers: int = field(default_factory=usable_cores)


@dataclass
class Paths:
    """Where the demo's files are."""

    root: Path
    scenes: Path
    teacher: Path

    @property
    def checkpoints(self) -> dict[str, Path]:
        return {
            TEACHER: self.teacher,
            TRUNCATED: self.root / "truncated.safetensors",
            PELA: self.root / "pela" / "last.safetensors",
        }

    def evaluation(self, model: str, tuned: bool) -> Path:
        return self.root / f"{_short(model)}_{'fine_tuned' if tuned else 'zero_shot'}"


def _short(model: str) -> str:
    return model.split(" ")[0].lower()


def stages(paths: Paths, sizes: Sizes) -> list[Stage]:
    """The commands, in order."""
    scenes, lists = paths.scenes, paths.scenes / "lists"
    data = [
        f"data.image_root={scenes}",
        f"data.train=[{lists}/scenes_train.json]",
        f"data.test={lists}/scenes_test.json",
    ]
    counts = ["--train", sizes.train, "--val", sizes.val, "--test", sizes.test, "--workers", sizes.workers]
    karpathy = ["--karpathy", scenes / "dataset_scenes.json", "--image-root", scenes]
    steps = [
        make_stage("render scenes", "data_prep/build_scenes.py", ["--output", scenes, *counts], [], True),
        make_stage(
            "make the retrieval lists",
            "data_prep/build_retrieval.py",
            [*karpathy, "--output", lists, "--name", "scenes"],
            [lists],
        ),
        *list_stages(scenes),
    ]

    def evaluate(model: str) -> Stage:
        folder = paths.evaluation(model, tuned=False)
        changes = [*data, f"init.checkpoint={paths.checkpoints[model]}", f"output={folder}"]
        arguments = ["--config", "configs/demo/retrieval.yaml", "--evaluate", *set_arguments(changes)]
        return make_stage(f"evaluate without fine-tuning: {model}", "tasks/retrieval.py", arguments, [folder])

    def tune(model: str) -> Stage:
        folder = paths.evaluation(model, tuned=True)
        changes = [*data, f"init.checkpoint={paths.checkpoints[model]}", f"output={folder}"]
        if sizes.retrieval_steps:
            changes += _steps(sizes.retrieval_steps)
        arguments = ["--config", "configs/demo/retrieval.yaml", "--resume", *set_arguments(changes)]
        return make_stage(f"fine-tune and evaluate: {model}", "tasks/retrieval.py", arguments, [folder], True)

    truncated = paths.checkpoints[TRUNCATED]
    compress = [
        "--checkpoint",
        paths.teacher,
        "--output",
        truncated,
        "--kappa",
        3,
        "--json",
        paths.root / "compress.json",
    ]
    pretrain = [
        f"data.image_root={scenes}",
        f"data.train=[{lists}/scenes_pretrain.json]",
        f"data.val={lists}/scenes_val.json",
        f"init.checkpoint={truncated}",
        f"init.teacher={paths.teacher}",
        f"output={paths.root / 'pela'}",
    ]
    if sizes.pretrain_steps:
        pretrain += _steps(sizes.pretrain_steps)
    steps += [
        evaluate(TEACHER),
        make_stage("compress: every Linear to two factors", "tasks/compress.py", compress, [truncated]),
        evaluate(TRUNCATED),
        make_stage(
            "PELA: intermediate pre-training",
            "tasks/pretrain.py",
            ["--config", "configs/demo/pretrain.yaml", "--resume", *set_arguments(pretrain)],
            [paths.root / "pela"],
            True,
        ),
        evaluate(PELA),
        *(tune(model) for model in (TEACHER, TRUNCATED, PELA)),
    ]
    if sizes.all_tasks:
        steps += tuning_stages(paths.checkpoints, paths.root, scenes, sizes.task_steps)
    return steps


def _steps(count: int) -> list[str]:
    """Changes for another number of steps, with a shorter warm-up."""
    return [f"train.steps={count}", f"optim.warmup_steps={count // 20}"]


def collect(paths: Paths, seconds: float, all_tasks: bool = False) -> dict[str, Any]:
    """Read the stages' results, measure the models' speed, and write demo.json.

    Args:
        paths: of the stages' results.
        seconds: that all stages took.
        all_tasks: whether the downstream tasks ran too.

    Returns:
        What the report shows (see `report.schema`).
    """
    compressed = json.loads((paths.root / "compress.json").read_text(encoding="utf-8"))
    speeds = measure_speed({name: str(path) for name, path in paths.checkpoints.items()})
    models = []
    for name in paths.checkpoints:
        when = "before" if name == TEACHER else "after"
        flops = Flops(**compressed["flops"][when])
        models.append(
            {
                "name": name,
                "params": compressed["parameters"][when],
                "linear_params": sum(layer[when] for layer in compressed["layers"]),
                "gflops": flops.total / 1e9,
                "images_per_s": speeds[name],
                "zero_shot": _evaluation(paths, name, False)["metrics"],
                "fine_tuned": _evaluation(paths, name, True)["metrics"],
            }
        )
    tuned = {name: _evaluation(paths, name, True) for name in paths.checkpoints}
    demo = {
        "title": "PELA on scenes",
        "command": "make demo-all" if all_tasks else "make demo",
        "machine": machine(),
        "wall_seconds": seconds,
        "models": models,
        "test": {key: tuned[TEACHER][key] for key in ("images", "texts")},
        "layers": _layers(paths, compressed),
        "curves": _curves(paths),
        "evaluations": _recovery(paths),
        "evaluations_note": "validation set, contrastive scores alone",
        "queries_note": "Models after fine-tuning.",
        **_queries(paths, tuned),
    }
    if all_tasks:
        demo["tasks"] = downstream_results(list(paths.checkpoints), paths.root)
    atomic_json(paths.root / "demo.json", demo)
    return demo


def _layers(paths: Paths, compressed: dict[str, Any]) -> list[dict[str, Any]]:
    """The compressed layers with the singular values of the teacher's weights."""
    weights = read_weights(paths.teacher)
    return [
        {
            "name": layer["layer"],
            "in_features": layer["in"],
            "out_features": layer["out"],
            "rank": layer["rank"],
            "rel_error": layer["rel_error"],
            "spectrum": torch.linalg.svdvals(weights[layer["layer"] + ".weight"]).tolist(),
        }
        for layer in compressed["layers"]
    ]


def _evaluation(paths: Paths, model: str, tuned: bool) -> dict[str, Any]:
    return json.loads((paths.evaluation(model, tuned) / "evaluation.json").read_text(encoding="utf-8"))


def _curves(paths: Paths) -> dict[str, list[dict[str, Any]]]:
    folders = {"PELA pre-training": paths.root / "pela"}
    folders.update({f"fine-tune {name}": paths.evaluation(name, True) for name in paths.checkpoints})
    return {
        title: [
            {key: line[key] for key in ("step", "loss", "terms")}
            for line in read_log(folder / "log.jsonl")
            if "event" not in line
        ]
        for title, folder in folders.items()
    }


def _recovery(paths: Paths) -> list[dict[str, Any]]:
    """Validation recall during pre-training, and of the teacher and the compressed model evaluated in the same way."""
    settings = config.load(Settings, paths.root / "pela" / "config.yaml")
    assert settings.data.val is not None, "the demo's pre-training has a validation file"
    points = []
    for name in (TEACHER, TRUNCATED):
        checkpoint, world = str(paths.checkpoints[name]), start("cpu")
        evaluation, _ = evaluate_checkpoint(Pretraining(), settings, checkpoint, settings.data.val, world)
        points.append({"name": name, "step": 0, "mean": evaluation.metrics["mean"]})
    for line in read_log(paths.root / "pela" / "log.jsonl"):
        if line.get("event") == "evaluation":
            points.append({"name": PELA, "step": line["step"] + 1, "mean": line["mean"]})
    return points


def _queries(paths: Paths, tuned: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The first test images and captions with every fine-tuned model's answers; images are embedded."""
    first = tuned[TEACHER]["examples"]
    images = [
        {
            "image": _data_uri(paths.scenes, query["image"]),
            "truth": query["truth"],
            "retrieved": {name: e["examples"]["images"][i]["retrieved"] for name, e in tuned.items()},
        }
        for i, query in enumerate(first["images"])
    ]
    texts = [
        {
            "caption": query["caption"],
            "retrieved": {
                name: [
                    {"image": _data_uri(paths.scenes, answer["image"]), "hit": answer["hit"]}
                    for answer in e["examples"]["texts"][i]["retrieved"]
                ]
                for name, e in tuned.items()
            },
        }
        for i, query in enumerate(first["texts"])
    ]
    return {"image_queries": images, "text_queries": texts}


def _data_uri(root: Path, image: str) -> str:
    buffer = io.BytesIO()
    with Image.open(resolve(root, image)) as opened:
        opened.convert("RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@torch.no_grad()
def measure_speed(checkpoints: dict[str, str], batch: int = 50, rounds: int = 7) -> dict[str, float]:
    """Images a second through the image encoder of each model, measured in turn.

    Args:
        checkpoints: paths by model name.
        batch: random images of a forward pass.
        rounds: timed passes of each model, after one that is not timed. The median counts.
    """
    models = {name: load_model(ModelSettings(), path, mlm=False).model.eval() for name, path in checkpoints.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            size = model.visual_encoder.patch_embed.img_size[0]
            images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(turn))
            started = time.perf_counter()
            model.image_feature(model.visual_encoder(images).tokens)
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    return {name: batch / statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """CPU, cores and versions that the demo ran on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "python": platform.python_version(), "torch": torch.__version__}
