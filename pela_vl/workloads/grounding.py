"""Weakly supervised grounding: trained as retrieval on image-text pairs, tested by Grad-CAM over candidate boxes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_write
from pela_vl.base.progress import Progress
from pela_vl.data.loader import split_range
from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.sets.grounding import GroundingEval
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.attribution import choose_layer
from pela_vl.evaluation.localisation import accuracies, expression_heat, localise
from pela_vl.report.overlays import grounding_overlay
from pela_vl.settings import Settings
from pela_vl.workloads.albef import tokenizer_of
from pela_vl.workloads.base import Evaluation, RunModel, require_training_files, val_and_test
from pela_vl.workloads.contrastive import ContrastiveTask


@dataclass
class _Details:
    predictions: list[dict[str, Any]]
    run: RunModel


class Grounding(ContrastiveTask):
    """Trained as retrieval is: by ITC and ITM, where texts of the same image are no negatives."""

    title = "grounding"

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if settings.data.val or settings.data.test:
            _boxes_file(settings)

    def training_data(self, settings: Settings) -> CaptionPairs:
        data = settings.data
        files = require_training_files(settings)
        return CaptionPairs(
            files,
            data.image_root,
            None,
            data.max_words,
            settings.train.seed,
            data.cache_mb,
            field="text",
            stored_pixels=True,  # boxes are in the frame of the stored pixels, as in the evaluation
        )

    def tests(self, settings: Settings) -> dict[str, str]:
        """val, and test, which holds testA and testB."""
        return val_and_test(settings)

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> GroundingEval:
        """Expressions with their candidate boxes.

        Args:
            settings: grounding.boxes names the boxes file; `data` the images' root, longest expression and cache.
            run: Image size and normalisation are its header's.
            file: JSON list of expressions.

        Raises:
            UserError: If grounding.boxes is not set, or the files do not fit each other.
        """
        data = settings.data
        transform = eval_transform(run.image_size, run.header.normalization)
        return GroundingEval([file], _boxes_file(settings), data.image_root, transform, data.max_words, data.cache_mb)

    def evaluate(self, settings: Settings, run: RunModel, data: GroundingEval) -> Evaluation:
        """Accuracy at IoU 0.5 in percent for each split of the file, and their mean.

        Args:
            settings: `grounding` gives the score, the layer and how boxes are ranked.
            run: The model and the processes.
            data: Expressions with candidate boxes.
        """
        grounding, world = settings.grounding, run.world
        layer = choose_layer(run.model, grounding.score, grounding.layer)
        part = len(split_range(len(data), world.process, world.size))
        with Progress(part, "ground", 0, "image", world.is_main) as progress:
            workers = settings.data.workers
            found = localise(run.model, data, tokenizer_of(run), grounding, world, run.autocast, workers, progress.to)
        predictions = found.predictions(data)
        record = {
            "images": len(data),
            "expressions": len(data.expressions),
            "candidates": data.candidates_from,
            "score": grounding.score,
            "layer": layer,
            "area_power": grounding.area_power,
        }
        return Evaluation(accuracies(predictions), record, _Details(predictions, run))

    def write(self, settings: Settings, evaluation: Evaluation, data: GroundingEval, folder: Path, split: str) -> None:
        """Write predictions_<split>.json, and overlays/<split>_<number>_<ref_id>.png of expressions at equal distances.

        Args:
            settings: drawings.overlays is the number of drawings.
            evaluation: Of `evaluate`; its details hold predictions and model.
            data: The expressions that were evaluated.
            folder: Of the run.
            split: "val" or "test"; part of the files' names.
        """
        predictions, run = evaluation.details.predictions, evaluation.details.run
        atomic_json(folder / f"predictions_{split}.json", predictions)
        count = min(settings.drawings.overlays, len(predictions))
        sample = [k * len(predictions) // count for k in range(count)]
        heat = expression_heat(
            run.model, data, tokenizer_of(run), settings.grounding, sample, run.world.device, run.autocast
        )
        for k, heat_map in zip(sample, heat, strict=True):
            prediction, expression = predictions[k], data.expressions[k]
            image = data.read(prediction["image"]).resize((heat_map.shape[1], heat_map.shape[0]))
            text = f"{'+' if prediction['correct'] else '-'} {prediction['text']}"
            panel = grounding_overlay(image, np.asarray(heat_map), text, expression.box, prediction["box"])
            with atomic_write(folder / "overlays" / f"{split}_{k:06d}_{prediction['ref_id']}.png") as file:
                panel.save(file, format="PNG")


def _boxes_file(settings: Settings) -> str:
    if settings.grounding.boxes is None:
        raise UserError("grounding.boxes is not set: name the boxes file that build_refcoco_plus.py wrote")
    return settings.grounding.boxes
