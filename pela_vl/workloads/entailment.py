"""Visual entailment (SNLI-VE): three classes, trained with the EMA model's soft targets, measured by accuracy.

Shapes: B pairs, L text tokens, T pairs of a test.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pela_vl.base.distributed import gather_rows
from pela_vl.base.files import atomic_json
from pela_vl.base.progress import Progress
from pela_vl.checkpoints.albef import load_entailment
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.data.loader import make_image_loader, split_range
from pela_vl.data.sets.entailment import EntailmentCollate, EntailmentEval, EntailmentPairs
from pela_vl.data.transforms import eval_transform
from pela_vl.metrics.classification import class_metrics, confusion_matrix
from pela_vl.models.albef.attention import select_images
from pela_vl.models.albef.entailment import CLASSES, AlbefEntailment
from pela_vl.models.albef.losses import distilled_cross_entropy
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.report.confusion import draw_confusion
from pela_vl.settings import Settings
from pela_vl.workloads.albef import AlbefPass, AlbefTask, ema_of, load_tokenizer, tokenizer_of
from pela_vl.workloads.base import (
    Evaluation,
    RunModel,
    StepOutput,
    TrainingStep,
    require_training_files,
    val_and_test,
)

PAIR_BATCH = 256


class EntailmentBatch(Protocol):
    """images [B, 3, S, S]; ids, mask int64 [B, L]; targets int64 [B], indices of `models.albef.entailment.CLASSES`."""

    images: Tensor
    ids: Tensor
    mask: Tensor
    targets: Tensor


@dataclass
class ClassTargets:
    """What the EMA model predicts for a batch, without gradients: logits [B, 3], or None where alpha is 0."""

    alpha: float
    logits: Tensor | None


class EntailmentStep(TrainingStep[AlbefEntailment]):
    """(1 - alpha) * CE + alpha * CE to the EMA model's softmax, mean over the batch (term "ce")."""

    @torch.no_grad()
    def prepare(self, batch: EntailmentBatch, alpha: float, first: bool) -> ClassTargets:
        """The EMA model's logits of the batch, after its update.

        Args:
            batch: On the device.
            alpha: Weight of the soft labels; at 0 no logits are computed.
            first: Whether the EMA model is updated now.
        """
        super().prepare(batch, alpha, first)
        if alpha <= 0:
            return ClassTargets(alpha, None)
        return ClassTargets(alpha, self.ema_model(batch.images, batch.ids, batch.mask))

    def forward(self, batch: EntailmentBatch, prepared: ClassTargets) -> StepOutput:
        states = AlbefPass(self.model, batch, self.keep_features)
        _, text = states.image, states.text
        logits = self.model.classify_encoded(text.tokens, batch.mask, states.keys_values)
        loss = distilled_cross_entropy(logits, batch.targets, prepared.logits, prepared.alpha).mean()
        accuracy = (logits.detach().argmax(1) == batch.targets).float().mean()
        output = StepOutput({"ce": loss}, metrics={"accuracy": accuracy})
        if self.keep_features:
            output.features = states.features()
        return output


class Entailment(AlbefTask[AlbefEntailment]):
    """Fine-tuning for visual entailment (SNLI-VE)."""

    title = "visual entailment"
    kind = "entailment"

    def load_model(
        self, settings: Settings, checkpoint: str | None, vocab_size: int | None
    ) -> LoadedModel[AlbefEntailment]:
        """An `AlbefEntailment`; its classifier is new where the checkpoint is of another task.

        Args:
            settings: `model` gives the size.
            checkpoint: Path of ours or of a foreign one; None for random weights.
            vocab_size: Entries of the tokeniser that the settings name, or None.

        Raises:
            UserError: For a checkpoint that does not fit.
        """
        return load_entailment(settings.model, checkpoint, vocab_size)

    def step(
        self,
        settings: Settings,
        model: AlbefEntailment,
        keep_features: bool,
        teacher: FrozenTeacher[AlbefEntailment] | None,
    ) -> EntailmentStep:
        """The training step.

        Args:
            settings: losses.momentum is the EMA model's.
            model: The model to train, in its final shape.
            keep_features: Whether the step returns the hidden states that distillation pairs.
            teacher: Not used: the EMA model gives the soft labels.
        """
        return EntailmentStep(model, ema_of(settings, model), settings.losses.momentum, keep_features)

    def training_data(self, settings: Settings) -> EntailmentPairs:
        data = settings.data
        files = require_training_files(settings)
        return EntailmentPairs(files, data.image_root, None, data.max_words, settings.train.seed, data.cache_mb)

    def collate(self, settings: Settings, header: Header) -> EntailmentCollate:
        return EntailmentCollate(load_tokenizer(header.tokenizer), settings.data.max_tokens)

    def tests(self, settings: Settings) -> dict[str, str]:
        """Both: the field reports validation and test accuracy."""
        return val_and_test(settings)

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> EntailmentEval:
        """Pairs of an image and a sentence, the images read once each.

        Args:
            settings: `data` gives the images' root, the longest sentence in words, and the cache.
            run: Image size and normalisation are its header's.
            file: JSON list with "image", "sentence" and "label".
        """
        data, transform = settings.data, eval_transform(run.image_size, run.header.normalization)
        return EntailmentEval(file, data.image_root, transform, data.max_words, data.cache_mb)

    def evaluate(self, settings: Settings, run: RunModel, data: EntailmentEval) -> Evaluation:
        """Accuracy in percent, as "mean" too, and of each class. The details are the predicted classes [T].

        Args:
            settings: `evaluate` gives batch sizes; `data` the workers and the longest sentence.
            run: The model and the processes.
            data: Pairs with labels.
        """
        predicted = classify(settings, run, data).argmax(1).cpu().numpy()
        matrix = confusion_matrix(data.targets, predicted, len(CLASSES))
        confusion = {"classes": CLASSES, "confusion": matrix.tolist()}
        record = {"images": len(data), "pairs": len(data.texts), **confusion}
        return Evaluation(class_metrics(matrix, CLASSES), record, predicted, confusion)

    def write(self, settings: Settings, evaluation: Evaluation, data: EntailmentEval, folder: Path, split: str) -> None:
        """Write entailment_<split>.json and confusion_<split>.png.

        The JSON list is in the form of the annotation lists, with a field `predicted`.

        Args:
            settings: Not used.
            evaluation: Of `evaluate`; its details are the predicted classes [T].
            data: The pairs that were evaluated.
            folder: Of the run.
            split: "val" or "test"; part of the files' names.
        """
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
def classify(settings: Settings, run: RunModel, data: EntailmentEval) -> Tensor:
    """Class logits [T, 3] of every pair, in every process. Each process does a part of the images and encodes each image once.

    Args:
        settings: evaluate.image_batch images are encoded at a time, evaluate.pair_batch pairs are fused at a time;
            data.max_tokens cuts sentences.
        run: The model, which is put in eval mode, and the processes.
        data: The pairs.
    """
    model, world = run.model.eval(), run.world
    part = list(split_range(len(data), world.process, world.size))
    ids, mask = tokenizer_of(run).encode(data.texts, settings.data.max_tokens)
    where = [torch.zeros(0, dtype=torch.int64)]
    logits = [torch.zeros(0, len(CLASSES), device=world.device)]
    with Progress(len(part), "evaluate", 0, "image", world.is_main) as progress:
        for images, indices in make_image_loader(data, part, settings.evaluate.image_batch, settings.data.workers):
            with run.autocast():
                context = model.text_encoder.image_keys_values(model.visual_encoder(images.to(world.device)).tokens)
            texts = torch.tensor([text for image in indices.tolist() for text in data.image2texts[image]])
            local = torch.tensor([i for i, image in enumerate(indices.tolist()) for _ in data.image2texts[image]])
            # texts of similar length go together, so that there is little padding
            order = torch.argsort(mask[texts].sum(1), stable=True)
            for chosen in order.split(settings.evaluate.pair_batch or PAIR_BATCH):
                text = texts[chosen]
                longest = int(mask[text].sum(1).max())
                text_ids, text_mask = ids[text, :longest].to(world.device), mask[text, :longest].to(world.device)
                with run.autocast():
                    pair_context = select_images(context, local[chosen].to(world.device))
                    logits.append(model.classify(text_ids, text_mask, pair_context).float())
                where.append(text)
            progress.update(len(indices))
    place = gather_rows(torch.cat(where).to(world.device))
    return gather_rows(torch.cat(logits))[torch.argsort(place)]
