"""Visual entailment (SNLI-VE): three classes, trained with the momentum twin's soft targets, judged by accuracy."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pela_vl.base.distributed import gather_rows
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.base.progress import Progress
from pela_vl.checkpoints.loading import LoadedModel, load_entailment
from pela_vl.data.loader import make_image_loader, split_range
from pela_vl.data.sets.entailment import EntailmentCollate, EntailmentEval, EntailmentPairs
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.metrics.classification import class_metrics, confusion_matrix
from pela_vl.models.albef.bert import select_images
from pela_vl.models.albef.entailment import CLASSES, AlbefEntailment
from pela_vl.objectives.entailment import EntailmentObjective
from pela_vl.report.confusion import draw_confusion
from pela_vl.settings import Settings
from pela_vl.workloads.base import Evaluation, ModelSide, require_training_files


class Entailment:
    title = "visual entailment"

    def check(self, settings: Settings) -> None:
        if settings.losses.mlm:
            raise UserError("losses.mlm belongs to pre-training; set it to 0 for visual entailment")

    def load(self, settings: Settings, checkpoint: str | None, vocab_size: int | None) -> LoadedModel[AlbefEntailment]:
        return load_entailment(settings.model, checkpoint, vocab_size)

    def objective(self, settings: Settings, model: nn.Module, keep_hidden: bool) -> EntailmentObjective:
        return EntailmentObjective(model, settings.losses.momentum, keep_hidden)

    def training_data(self, settings: Settings) -> EntailmentPairs:
        data = settings.data
        files = require_training_files(settings)
        return EntailmentPairs(files, data.image_root, None, data.max_words, settings.train.seed, data.cache_mb)

    def collate(self, settings: Settings, tokenizer: Tokenizer) -> EntailmentCollate:
        return EntailmentCollate(tokenizer, settings.data.max_tokens)

    def tests(self, settings: Settings) -> dict[str, str]:
        """Both: the field reports validation and test accuracy."""
        files = {"val": settings.data.val, "test": settings.data.test}
        return {split: file for split, file in files.items() if file}

    def evaluation_data(self, settings: Settings, side: ModelSide, file: str) -> EntailmentEval:
        data = settings.data
        return EntailmentEval(file, data.image_root, eval_transform(side.image_size), data.max_words, data.cache_mb)

    def evaluate(self, settings: Settings, side: ModelSide, data: EntailmentEval) -> Evaluation:
        """Accuracy in percent, as "mean" too, and of each class; details: predicted classes [T]."""
        predicted = classify(settings, side, data).argmax(1).cpu().numpy()
        matrix = confusion_matrix(data.targets, predicted, len(CLASSES))
        confusion = {"classes": CLASSES, "confusion": matrix.tolist()}
        record = {"images": len(data), "pairs": len(data.texts), **confusion}
        return Evaluation(class_metrics(matrix, CLASSES), record, predicted, confusion)

    def write(self, settings: Settings, evaluation: Evaluation, data: EntailmentEval, folder: Path, split: str) -> None:
        """entailment_<split>.json: predictions in the form of the lists, with `predicted`; confusion_<split>.png."""
        rows = [
            {"image": data.images[image], "sentence": text, "label": CLASSES[target], "predicted": CLASSES[found]}
            for image, text, target, found in zip(
                data.text2image, data.texts, data.targets, evaluation.details, strict=True
            )
        ]
        atomic_json(folder / f"entailment_{split}.json", rows)
        title = f"{split}: {evaluation.metrics['accuracy']:.1f} % of {len(rows):,} pairs"
        draw_confusion(evaluation.record["confusion"], CLASSES, title, folder / f"confusion_{split}.png")


@torch.no_grad()
def classify(settings: Settings, side: ModelSide, data: EntailmentEval) -> Tensor:
    """Class logits [T, 3] of every pair, on every rank; each rank takes its share of the pictures, each encoded once."""
    model, ranks = side.model.eval(), side.ranks
    share = list(split_range(len(data), ranks.rank, ranks.world))
    ids, mask = side.tokenizer.encode(data.texts, settings.data.max_tokens)
    where = [torch.zeros(0, dtype=torch.int64)]
    logits = [torch.zeros(0, len(CLASSES), device=ranks.device)]
    with Progress(len(share), "evaluate", 0, "image", ranks.is_main) as progress:
        for images, indices in make_image_loader(data, share, settings.evaluate.image_batch, settings.data.workers):
            with side.autocast():
                context = model.text_encoder.image_keys_values(model.visual_encoder(images.to(ranks.device)).tokens)
            texts = torch.tensor([text for image in indices.tolist() for text in data.image2texts[image]])
            local = torch.tensor([i for i, image in enumerate(indices.tolist()) for _ in data.image2texts[image]])
            # texts of like length go together, so that little is padding
            order = torch.argsort(mask[texts].sum(1), stable=True)
            for chosen in order.split(settings.evaluate.pair_batch):
                text = texts[chosen]
                longest = int(mask[text].sum(1).max())
                own_ids, own_mask = ids[text, :longest].to(ranks.device), mask[text, :longest].to(ranks.device)
                with side.autocast():
                    own = select_images(context, local[chosen].to(ranks.device))
                    logits.append(model.classify(own_ids, own_mask, own).float())
                where.append(text)
            progress.update(len(indices))
    place = gather_rows(torch.cat(where).to(ranks.device))
    return gather_rows(torch.cat(logits))[torch.argsort(place)]
