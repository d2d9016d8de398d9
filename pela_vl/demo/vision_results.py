"""What the demo of the vision half found, as one record for the report."""

import base64
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.vision_loading import load_classifier
from pela_vl.demo.pipeline import machine
from pela_vl.demo.vision import BACKBONES, FITTED, MODELS, PELA, TEACHER, TRUNCATED, Backbone, VisionPaths
from pela_vl.report.vision_run import Classifier, Family, Sample, VisionRun
from pela_vl.settings import ModelSettings
from pela_vl.training.run_log import read_log

_SAMPLES = 12
_TERMS = {"ce": "cross-entropy", "fd": "FD, feature distillation", "rwp": "RWP, weight perturbation"}


def collect_vision(paths: VisionPaths, seconds: float) -> VisionRun:
    """Read the stages' results.

    Args:
        paths: Where the stages wrote.
        seconds: That they took.
    """
    families = [_family(backbone, paths) for backbone in BACKBONES.values()]
    record = _record(paths.results(next(iter(BACKBONES.values())), TEACHER))
    return VisionRun("make demo-vision", machine(), seconds, record["images"], record["classes"], families)


def _family(backbone: Backbone, paths: VisionPaths) -> Family:
    checkpoints = {name: paths.checkpoint(backbone, name) for name in MODELS}
    speeds = measure_speeds(checkpoints)
    models = []
    for name in MODELS:
        folder, counted = paths.results(backbone, name), paths.checkpoint(backbone, _counted(name)).with_suffix(".json")
        costs, when = json.loads(counted.read_text(encoding="utf-8")), "before" if name == TEACHER else "after"
        flops, record = costs["flops"][when], _record(folder)
        metrics = record["metrics"]
        models.append(
            Classifier(
                name,
                costs["parameters"][when],
                (flops["linear"] + flops["conv"]) / 1e9,
                speeds[name],
                metrics["top1"],
                metrics["top5"],
                record["class_similarity"],
                metrics["similarity_all"],
                _data_uri(folder / "classes_test.png"),
            )
        )
    losses, accuracies = _training(paths.results(backbone, PELA) / "log.jsonl")
    return Family(backbone.title, backbone.kappa, models, losses, accuracies, _samples(backbone, paths))


def _counted(model: str) -> str:
    """The compression whose record counts a model's parameters and operations."""
    return FITTED if model == FITTED else TRUNCATED


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def _training(log: Path) -> tuple[dict[str, list[tuple[int, float]]], list[tuple[int, float]]]:
    """Weighted losses by term, and validation top-1, over the steps."""
    losses: dict[str, list[tuple[int, float]]] = {}
    accuracies = []
    for line in read_log(log):
        if line.get("event") == "evaluation":
            accuracies.append((line["step"] + 1, line["top1"]))
        elif "event" not in line:
            for term, value in line["terms"].items():
                losses.setdefault(_TERMS.get(term, term), []).append((line["step"], value))
    return losses, accuracies


def _samples(backbone: Backbone, paths: VisionPaths) -> list[Sample]:
    """The first image of every eighth class."""
    rows = [
        json.loads((paths.results(backbone, name) / "predictions_test.json").read_text(encoding="utf-8"))
        for name in MODELS
    ]
    first: dict[str, int] = {}
    for place, row in enumerate(rows[0]):
        first.setdefault(row["label"], place)
    chosen = list(first.values())[:: max(len(first) // _SAMPLES, 1)][:_SAMPLES]
    return [
        Sample(
            _data_uri(paths.images(backbone) / "test" / rows[0][place]["image"]),
            rows[0][place]["label"],
            tuple(found[place]["predicted"] for found in rows),
        )
        for place in chosen
    ]


def _data_uri(file: Path) -> str:
    kind = {"jpg": "jpeg"}.get(file.suffix[1:], file.suffix[1:])
    return f"data:image/{kind};base64," + base64.b64encode(file.read_bytes()).decode("ascii")


@torch.no_grad()
def measure_speeds(checkpoints: Mapping[str, Path], batch: int = 100, rounds: int = 7) -> dict[str, float]:
    """Images a second through each classifier, the models taking turns; the median of the rounds.

    Args:
        checkpoints: By the models' names.
        batch: Images at a time.
        rounds: Timed ones; one before them warms up.
    """
    loaded = {name: load_classifier(ModelSettings(), str(path), None) for name, path in checkpoints.items()}
    times: dict[str, list[float]] = {name: [] for name in loaded}
    for turn in range(rounds + 1):
        for name, one in loaded.items():
            header: Header = one.header
            size = header.config.image_size
            images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(turn))
            model = one.model.eval()
            started = time.perf_counter()
            model(images)
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    return {name: batch / statistics.median(values) for name, values in times.items()}
