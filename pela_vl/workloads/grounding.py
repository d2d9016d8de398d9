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
from pela_vl.workloads.base import Evaluation, ModelSide, require_training_files
from pela_vl.workloads.retrieval import Retrieval


@dataclass
class _Details:
    predictions: list[dict[str, Any]]
    side: ModelSide


class Grounding(Retrieval):
    """The model, the objective (ITC and ITM; texts of the same picture are no negatives) and the batches are retrieval's."""

    title = "grounding"

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if settings.data.val or settings.data.test:
            _boxes_file(settings)

    def training_data(self, settings: Settings) -> CaptionPairs:
        data = settings.data
        files = require_training_files(settings)
        return CaptionPairs(
            files, data.image_root, None, data.max_words, settings.train.seed, data.cache_mb, field="text"
        )

    def tests(self, settings: Settings) -> dict[str, str]:
        """val, and test, which holds testA and testB."""
        files = {"val": settings.data.val, "test": settings.data.test}
        return {split: file for split, file in files.items() if file}

    def evaluation_data(self, settings: Settings, side: ModelSide, file: str) -> GroundingEval:
        data = settings.data
        transform = eval_transform(side.image_size)
        return GroundingEval([file], _boxes_file(settings), data.image_root, transform, data.max_words, data.cache_mb)

    def evaluate(self, settings: Settings, side: ModelSide, data: GroundingEval) -> Evaluation:
        """Accuracy at IoU 0.5 in percent for each split of the file, and their mean."""
        own, ranks = settings.grounding, side.ranks
        layer = choose_layer(side.model, own.score, own.layer)
        share = len(split_range(len(data), ranks.rank, ranks.world))
        with Progress(share, "ground", 0, "image", ranks.is_main) as progress:
            workers = settings.data.workers
            found = localise(side.model, data, side.tokenizer, own, ranks, side.autocast, workers, progress.to)
        predictions = found.predictions(data)
        record = {
            "images": len(data),
            "expressions": len(data.expressions),
            "candidates": data.candidates_from,
            "score": own.score,
            "layer": layer,
            "area_power": own.area_power,
        }
        return Evaluation(accuracies(predictions), record, _Details(predictions, side))

    def write(self, settings: Settings, evaluation: Evaluation, data: GroundingEval, folder: Path, split: str) -> None:
        """predictions_<split>.json, and overlays/<split>_<number>_<ref_id>.png of expressions at equal distances."""
        predictions, side = evaluation.details.predictions, evaluation.details.side
        atomic_json(folder / f"predictions_{split}.json", predictions)
        count = min(settings.grounding.overlays, len(predictions))
        sample = [k * len(predictions) // count for k in range(count)]
        heat = expression_heat(
            side.model, data, side.tokenizer, settings.grounding, sample, side.ranks.device, side.autocast
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
