"""Weakly supervised grounding of a data set: finds for every expression one of its image's candidate boxes.

An image is encoded once for all its expressions. Heat maps are made in batches, and boxes are scored on the device. Each process
does a part of the images, and all get the whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pela_vl.base.distributed import World, gather_rows
from pela_vl.data.loader import make_image_loader, split_range
from pela_vl.data.sets.grounding import GroundingEval
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.evaluation.attribution import Autocast, Images, choose_layer, heat_maps, prepare_images
from pela_vl.metrics.boxes import CORRECT_IOU, accuracy_by_split, box_iou, choose_boxes, score_boxes
from pela_vl.metrics.gradcam import resize_heat
from pela_vl.models.albef.albef import Albef
from pela_vl.settings import GroundingSettings

NO_BOX = -1  # the image has no candidate


@dataclass
class Localised:
    """The outcome of a localisation.

    Args:
        chosen: For each expression of the data set the index of its box among the candidates, or NO_BOX.
    """

    chosen: list[int]

    def predictions(self, data: GroundingEval) -> list[dict[str, Any]]:
        """One record for each expression, in the data set's order; see docs/grounding.md for the format."""
        records = []
        for expression, choice in zip(data.expressions, self.chosen, strict=True):
            photo = data.images[expression.image]
            box = None if choice == NO_BOX else photo.candidates[choice].tolist()
            iou = 0.0 if box is None else box_iou(expression.box, box)
            records.append(
                {
                    "ref_id": expression.ref_id,
                    "sent_id": expression.sent_id,
                    "text": expression.raw,
                    "image": photo.path,
                    "split": expression.split,
                    "box": box,
                    "iou": iou,
                    "correct": iou >= CORRECT_IOU,
                }
            )
        return records


def accuracies(predictions: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracy at IoU 0.5 in % for each split, and their mean."""
    found = accuracy_by_split([p["split"] for p in predictions], [p["iou"] for p in predictions])
    return found | {"mean": sum(found.values()) / len(found)}


def localise(
    model: Albef,
    data: GroundingEval,
    tokenizer: Tokenizer,
    settings: GroundingSettings,
    world: World,
    autocast: Autocast,
    workers: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Localised:
    """Choose a box for every expression. The model is left in the mode it had.

    Texts are cut at the model's longest input only, as published.

    Args:
        model: An ALBEF.
        data: Expressions with candidate boxes.
        tokenizer: The one that the model was trained with.
        settings: Score, layer, batch sizes, and how boxes are ranked.
        world: This process and the others.
        autocast: Gives the context that forward passes run in.
        workers: Processes that read images; 0 reads them here.
        on_progress: Called with the number of images that this process has done so far; None: not called.

    Raises:
        UserError: For a layer that does not exist.
    """
    layer = choose_layer(model, settings.score, settings.layer)
    training = model.training
    model.eval()
    part = split_range(len(data), world.process, world.size)
    rows, done = [torch.zeros((0, 2), dtype=torch.int64, device=world.device)], 0
    for images, numbers in make_image_loader(data, list(part), settings.image_batch, workers):
        prepared = prepare_images(model, images.to(world.device), settings.score, layer, autocast)
        pairs = [(local, k) for local, image in enumerate(numbers.tolist()) for k in data.by_image[image]]
        for start in range(0, len(pairs), settings.pair_batch):
            local, expressions = (
                list(column) for column in zip(*pairs[start : start + settings.pair_batch], strict=True)
            )
            heat = _heat(model, data, tokenizer, prepared, local, expressions, layer, autocast)
            chosen = _choose(heat, data, expressions, settings.area_power)
            rows.append(torch.stack([torch.tensor(expressions, device=world.device), chosen], dim=1))
        done += len(images)
        if on_progress is not None:
            on_progress(done)
    model.train(training)
    found = dict(gather_rows(torch.cat(rows)).tolist())
    return Localised([found[k] for k in range(len(data.expressions))])


def expression_heat(
    model: Albef,
    data: GroundingEval,
    tokenizer: Tokenizer,
    settings: GroundingSettings,
    expressions: list[int],
    device: torch.device,
    autocast: Autocast,
) -> list[Tensor]:
    """Heat maps [height, width] of some expressions at their images' sizes, on the CPU, for looking at.

    Args:
        model: An ALBEF; it is left in the mode it had.
        data: The expressions.
        tokenizer: The one that the model was trained with.
        settings: Score and layer.
        expressions: Which ones, by number.
        device: Where the model is.
        autocast: Gives the context that forward passes run in.

    Raises:
        UserError: For a layer that does not exist.
    """
    layer = choose_layer(model, settings.score, settings.layer)
    training = model.training
    model.eval()
    maps = []
    for k in expressions:
        photo = data.images[data.expressions[k].image]
        image = data[data.expressions[k].image][None].to(device)
        prepared = prepare_images(model, image, settings.score, layer, autocast)
        heat = _heat(model, data, tokenizer, prepared, [0], [k], layer, autocast)
        maps.append(resize_heat(heat, photo.height, photo.width)[0].cpu())
    model.train(training)
    return maps


def _heat(
    model: Albef,
    data: GroundingEval,
    tokenizer: Tokenizer,
    prepared: Images,
    local: list[int],
    expressions: list[int],
    layer: int,
    autocast: Autocast,
) -> Tensor:
    """Heat [P, h, w] of expressions in the prepared images `local`."""
    longest = model.text_encoder.embeddings.position_embeddings.num_embeddings
    ids, mask = tokenizer.encode([data.expressions[k].text for k in expressions], longest)
    device = model.temp.device
    index = torch.tensor(local, device=device)
    return heat_maps(model, prepared, index, ids.to(device), mask.to(device), layer, autocast)


def _choose(heat: Tensor, data: GroundingEval, expressions: list[int], area_power: float) -> Tensor:
    """Chosen candidate [P] of each expression; those of one image follow one another and are scored together."""
    owners = [data.expressions[k].image for k in expressions]
    chosen = []
    start = 0
    while start < len(owners):
        end = start
        while end < len(owners) and owners[end] == owners[start]:
            end += 1
        photo = data.images[owners[start]]
        if len(photo.candidates):
            pixels = resize_heat(heat[start:end], photo.height, photo.width)
            chosen.append(choose_boxes(score_boxes(pixels, photo.candidates, area_power)))
        else:
            chosen.append(torch.full((end - start,), NO_BOX, device=heat.device))
        start = end
    return torch.cat(chosen)
