"""The training step that pre-training, retrieval and grounding share: ITC and ITM, and MLM in pre-training.

Shapes: B samples, N image tokens, L text tokens, E joint width, A = B + queue candidates, M masked tokens.
Source: ALBEF (Li et al., NeurIPS 2021), equations 1 to 7.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pela_vl.base.distributed import gather_rows
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.data.collate import Batch, Collate
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.bert import KeyValue, select_images
from pela_vl.models.albef.losses import (
    NO_NEGATIVE,
    diagonal_targets,
    distilled_targets,
    masked_language_loss,
    matching_loss,
    positive_targets,
    sample_negatives,
    soft_cross_entropy,
)
from pela_vl.models.albef.queue import FeatureQueue
from pela_vl.models.ema import EmaModel
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import Settings
from pela_vl.workloads.albef import AlbefPass, AlbefTask, ema_of, load_tokenizer, teacher_for_targets
from pela_vl.workloads.base import StepOutput, TrainingStep

TEMPERATURE_RANGE = (0.001, 0.5)


@dataclass
class SoftTargets:
    """What the EMA model (or the teacher in its place) predicts for a batch; all without gradients.

    Args:
        alpha: Weight of the soft targets.
        image_feature: Joint features [B, E].
        text_feature: Joint features [B, E].
        image_candidates: The batch's and the queue's image features [E, A].
        text_candidates: The batch's and the queue's text features [E, A].
        image_to_text: Targets [B, A].
        text_to_image: Targets [B, A].
        mlm_logits: Vocabulary logits [M, V] of the masked tokens, or None.
    """

    alpha: float
    image_feature: Tensor
    text_feature: Tensor
    image_candidates: Tensor
    text_candidates: Tensor
    image_to_text: Tensor
    text_to_image: Tensor
    mlm_logits: Tensor | None


def similarity(features: Tensor, candidates: Tensor, temp: Tensor) -> Tensor:
    """features @ candidates / temp in fp32, whatever the autocast: a small temperature magnifies rounding.

    Args:
        features: Joint features [B, E] of unit length.
        candidates: Joint features [E, A] of the other modality.
        temp: Temperature, 0-d.

    Returns:
        Similarities [B, A].
    """
    with torch.autocast(features.device.type, enabled=False):
        return features.float() @ candidates.float() / temp.float()


def _labels(batch: Batch) -> Tensor:
    """The masked tokens' labels [B, L]. Raises ValueError for a batch whose texts are not masked."""
    if batch.labels is None:
        raise ValueError("MLM needs masked texts: give `Collate` an mlm_probability")
    return batch.labels


class ContrastiveStep(TrainingStep[Albef]):
    """An ALBEF, its weighted loss terms, the feature queues, and what gives the soft targets.

    Args:
        model: The model to train.
        weights: Of "itc", "itm" and "mlm"; a term of weight 0 is not computed.
        match_ids: Pairs of the same image id are positives (retrieval); otherwise only a sample's own pair is
            (pre-training).
        ema: Gives the soft targets; None where `teacher` does.
        teacher: Gives the soft targets and the queue's features. Its pass is the one that FD reads.
        momentum: Of the EMA model.
        queue_size: Features kept of earlier batches.
        keep_features: Return the hidden states that distillation pairs.
    """

    def __init__(
        self,
        model: Albef,
        weights: dict[str, float],
        match_ids: bool,
        ema: EmaModel[Albef] | None = None,
        teacher: FrozenTeacher[Albef] | None = None,
        momentum: float = 0.995,
        queue_size: int = 65536,
        keep_features: bool = False,
    ):
        super().__init__(model, ema, momentum, keep_features)
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.match_ids = match_ids
        self.teacher = teacher
        self.queue = FeatureQueue(model.vision_proj.out_features, queue_size)

    @torch.no_grad()
    def prepare(self, batch: Batch, alpha: float, first: bool) -> SoftTargets:
        """Update the EMA model at the start of an optimiser step; then compute the soft targets.

        In pre-training the temperature is clamped first. Fine-tuning leaves it alone, as published (ALBEF's
        models/model_pretrain.py and model_retrieval.py).

        Args:
            batch: Images, texts and image ids, on the device.
            alpha: Weight of the soft targets; at 0 no MLM logits are computed.
            first: Whether this is the first micro-batch of an optimiser step.

        Raises:
            ValueError: If MLM is trained and the batch's texts are not masked.
        """
        if first and not self.match_ids:
            self.model.temp.clamp_(*TEMPERATURE_RANGE)
        super().prepare(batch, alpha, first)
        if self.teacher is not None:
            source, states = self.teacher.model, self.teacher.run(batch)
        else:
            source, states = self.ema_model, AlbefPass(self.ema_model, batch, keep_hidden=False)
        image_feature = source.image_feature(states.image.tokens).float()
        text_feature = source.text_feature(states.text.tokens).float()
        mlm_logits = None
        if "mlm" in self.weights and alpha > 0:
            mlm_logits = source.mlm_logits(states.masked.tokens[_labels(batch) >= 0])
        image_candidates = torch.cat([image_feature.T, self.queue.image], dim=1)
        text_candidates = torch.cat([text_feature.T, self.queue.text], dim=1)
        if self.match_ids:
            one_hot = positive_targets(batch.image_ids, torch.cat([batch.image_ids, self.queue.ids]))
        else:
            one_hot = diagonal_targets(len(batch.ids), image_candidates.shape[1], image_feature.device)
        temp = self.model.temp
        return SoftTargets(
            alpha,
            image_feature,
            text_feature,
            image_candidates,
            text_candidates,
            distilled_targets(similarity(image_feature, text_candidates, temp), one_hot, alpha),
            distilled_targets(similarity(text_feature, image_candidates, temp), one_hot, alpha),
            mlm_logits,
        )

    def forward(self, batch: Batch, prepared: SoftTargets) -> StepOutput:
        model, states = self.model, AlbefPass(self.model, batch, self.keep_features)
        image, text = states.image, states.text
        similarity_i2t = similarity(model.image_feature(image.tokens), prepared.text_candidates, model.temp)
        similarity_t2i = similarity(model.text_feature(text.tokens), prepared.image_candidates, model.temp)
        output = StepOutput(
            {}, metrics={"temp": model.temp.detach().clone()}
        )  # a copy: the log reads it after the update
        if "itc" in self.weights:
            itc = soft_cross_entropy(similarity_i2t, prepared.image_to_text)
            itc = (itc + soft_cross_entropy(similarity_t2i, prepared.text_to_image)) / 2
            output.terms["itc"] = self.weights["itc"] * itc
        if "itm" in self.weights:
            itm, accuracy = self._matching(batch, text.tokens, states.keys_values, similarity_i2t, similarity_t2i)
            output.terms["itm"], output.metrics["itm_accuracy"] = self.weights["itm"] * itm, accuracy
        if "mlm" in self.weights:
            labels = _labels(batch)
            predicted = labels >= 0
            logits = model.mlm_logits(states.masked.tokens[predicted])
            mlm = masked_language_loss(logits, labels[predicted], prepared.mlm_logits, prepared.alpha)
            output.terms["mlm"] = self.weights["mlm"] * mlm
        if self.keep_features:
            output.features = self._features(states)
        return output

    def _features(self, states: AlbefPass) -> Features:
        """The hidden states of the streams that went into the losses."""
        return states.features() if "mlm" in self.weights else states.features(("image", "text"))

    def _matching(
        self,
        batch: Batch,
        text_tokens: Tensor,
        keys_values: list[KeyValue],
        similarity_i2t: Tensor,
        similarity_t2i: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Positive pairs, each text with a hard-negative image, each image with a hard-negative text: one fused pass.

        Args:
            batch: The batch.
            text_tokens: Encoded texts [B, L, D].
            keys_values: The images' keys and values for every fusion layer.
            similarity_i2t: Image-to-text similarities [B, A].
            similarity_t2i: Text-to-image similarities [B, A].

        Returns:
            The loss, and the fraction of pairs that were classified right.
        """
        size = len(batch.ids)
        pairs = torch.arange(size, device=text_tokens.device)
        if self.match_ids:
            forbidden = batch.image_ids[:, None] == batch.image_ids[None, :]
        else:
            forbidden = torch.eye(size, dtype=torch.bool, device=text_tokens.device)
        with torch.no_grad():
            negative_image = sample_negatives(similarity_t2i[:, :size], forbidden)
            negative_text = sample_negatives(similarity_i2t[:, :size], forbidden)
        with_image, with_text = negative_image != NO_NEGATIVE, negative_text != NO_NEGATIVE
        texts = torch.cat([pairs, pairs[with_image], negative_text[with_text]])
        images = torch.cat([pairs, negative_image[with_image], pairs[with_text]])
        logits = self.model.match(text_tokens[texts], batch.mask[texts], select_images(keys_values, images))
        with torch.no_grad():
            correct = (logits[:size].argmax(1) == 1).sum() + (logits[size:].argmax(1) == 0).sum()
        return matching_loss(logits[:size], logits[size:]), correct / len(logits)

    @torch.no_grad()
    def start_from(self, loaded: LoadedModel) -> None:
        """Start the queues with a published file's features where they have the same size, as published.

        Queues of another size are left behind, with a note; the run's own start at random.
        """
        queues, ids = loaded.queues, self.queue.ids
        image, text = queues.get("image_queue"), queues.get("text_queue")
        if image is None or text is None:
            return
        if not image.shape == text.shape == self.queue.image.shape:
            held, wanted = image.shape[-1], self.queue.image.shape[-1]
            loaded.notes.append(f"feature queues: left behind ({held} entries; losses.queue_size is {wanted})")
            return
        self.queue.image.copy_(image)
        self.queue.text.copy_(text)
        if "idx_queue" in queues:
            ids.copy_(queues["idx_queue"].flatten())
        if "queue_ptr" in queues:
            self.queue.pointer.copy_(queues["queue_ptr"].flatten() % max(len(ids), 1))

    @torch.no_grad()
    def after_backward(self, batch: Batch, prepared: SoftTargets) -> None:
        """Push the features of all processes into the queue."""
        self.queue.push(
            gather_rows(prepared.image_feature), gather_rows(prepared.text_feature), gather_rows(batch.image_ids)
        )


class ContrastiveTask(AlbefTask[Albef]):
    """What pre-training, retrieval and grounding share: model, training step and batches.

    Class attributes:
        match_ids: See `ContrastiveStep`.
    """

    kind = "albef"
    terms: ClassVar[tuple[str, ...]] = ("itc", "itm")
    match_ids: ClassVar[bool] = True

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if not any(self.loss_weights(settings).values()):
            raise UserError(f"losses: {' and '.join(self.terms)} are all 0, so there is nothing to train on")

    def load_model(self, settings: Settings, checkpoint: str | None, vocab_size: int | None) -> LoadedModel[Albef]:
        """An `Albef`, with the MLM head where the task trains MLM.

        Args:
            settings: `model` gives the size; losses.mlm says whether MLM is trained.
            checkpoint: Path of ours or of a foreign one; None for random weights.
            vocab_size: Entries of the tokeniser that the settings name, or None.

        Raises:
            UserError: For a checkpoint that does not fit.
        """
        mlm = self.loss_weights(settings).get("mlm", 0.0) > 0
        return load_model(settings.model, checkpoint, mlm, vocab_size)

    def step(
        self, settings: Settings, model: Albef, keep_features: bool, teacher: FrozenTeacher[Albef] | None
    ) -> ContrastiveStep:
        """The training step. The EMA model is without the parts that soft targets do not need.

        Args:
            settings: `losses`: the terms' weights, what gives the soft targets, momentum and queue size.
            model: The model to train, in its final shape.
            keep_features: Whether the step returns the hidden states that distillation pairs.
            teacher: Gives the soft targets where losses.soft_targets is "teacher"; None for a method without one.

        Raises:
            UserError: If the soft targets are the teacher's and there is none.
        """
        losses, weights = settings.losses, self.loss_weights(settings)
        without = ("itm_head", "temp") if weights.get("mlm") else ("itm_head", "temp", "mlm_head")
        return ContrastiveStep(
            model,
            weights,
            self.match_ids,
            ema_of(settings, model, without),
            teacher_for_targets(settings, teacher),
            losses.momentum,
            losses.queue_size,
            keep_features,
        )

    def collate(self, settings: Settings, header: Header) -> Collate:
        masking = settings.losses.mlm_probability if self.loss_weights(settings).get("mlm") else None
        return Collate(load_tokenizer(header.tokenizer), settings.data.max_tokens, masking, settings.train.seed)
