"""ALBEF's objectives with momentum distillation: ITC + ITM for retrieval, + MLM for pre-training.

Shapes: B samples, N image tokens, L text tokens, E joint width, A = B + queue candidates, M masked tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pela_vl.base.distributed import gather_rows
from pela_vl.data.collate import Batch
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.bert import select_images
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
from pela_vl.models.albef.momentum import FeatureQueue, MomentumTwin
from pela_vl.models.outputs import StepOutput
from pela_vl.recovery.teacher import FrozenTeacher

TEMPERATURE_RANGE = (0.001, 0.5)


@dataclass
class SoftTargets:
    """What the momentum twin (or the teacher in its place) says of a batch; all without gradients."""

    alpha: float
    image_feature: Tensor  # [B, E]
    text_feature: Tensor  # [B, E]
    image_candidates: Tensor  # [E, A]
    text_candidates: Tensor  # [E, A]
    image_to_text: Tensor  # [B, A] targets
    text_to_image: Tensor  # [B, A]
    mlm_logits: Tensor | None  # [M, V]


def similarity(features: Tensor, candidates: Tensor, temp: Tensor) -> Tensor:
    """features [B, E] @ candidates [E, A] / temp, in fp32 whatever the autocast: a temperature magnifies rounding."""
    with torch.autocast(features.device.type, enabled=False):
        return features.float() @ candidates.float() / temp.float()


class VisionLanguageStep(nn.Module):
    """The trainable half: an ALBEF and its weighted loss terms."""

    def __init__(self, model: Albef, weights: dict[str, float], match_ids: bool, keep_hidden: bool):
        """weights: of "itc", "itm", "mlm"; a term of weight 0 is not computed. match_ids: pairs of the same image id are
        no negatives (retrieval); otherwise only the own pair is (pre-training). keep_hidden: return hidden states."""
        super().__init__()
        self.model = model
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.match_ids = match_ids
        self.keep_hidden = keep_hidden

    def forward(self, batch: Batch, targets: SoftTargets) -> StepOutput:
        model, keep = self.model, self.keep_hidden
        image = model.visual_encoder(batch.images, keep_hidden=keep)
        text = model.text_encoder.encode(batch.ids, batch.mask, keep_hidden=keep)
        similarity_i2t = similarity(model.image_feature(image.tokens), targets.text_candidates, model.temp)
        similarity_t2i = similarity(model.text_feature(text.tokens), targets.image_candidates, model.temp)
        output = StepOutput({}, {"image": image.hidden, "text": text.hidden} if keep else {}, kept=image.kept)
        output.metrics["temp"] = model.temp.detach().clone()  # read after the update
        if "itc" in self.weights:
            itc = soft_cross_entropy(similarity_i2t, targets.image_to_text)
            itc = (itc + soft_cross_entropy(similarity_t2i, targets.text_to_image)) / 2
            output.terms["itc"] = self.weights["itc"] * itc
        keys_values = model.text_encoder.image_keys_values(image.tokens)
        if "itm" in self.weights:
            itm = self._matching(batch, text.tokens, keys_values, similarity_i2t, similarity_t2i, output)
            output.terms["itm"] = self.weights["itm"] * itm
        if "mlm" in self.weights:
            states = model.masked_states(batch.masked_ids, batch.mask, keys_values, keep_hidden=keep)
            predicted = batch.labels >= 0
            logits = model.mlm_logits(states.tokens[predicted])
            mlm = masked_language_loss(logits, batch.labels[predicted], targets.mlm_logits, targets.alpha)
            output.terms["mlm"] = self.weights["mlm"] * mlm
            if keep:
                output.hidden["mlm"] = states.hidden
        return output

    def _matching(self, batch, text_tokens, keys_values, similarity_i2t, similarity_t2i, output) -> Tensor:
        """Positive pairs, each text with a hard-negative image, each image with a hard-negative text: one fused pass."""
        size = len(batch.ids)
        own = torch.arange(size, device=text_tokens.device)
        if self.match_ids:
            forbidden = batch.image_ids[:, None] == batch.image_ids[None, :]
        else:
            forbidden = torch.eye(size, dtype=torch.bool, device=text_tokens.device)
        with torch.no_grad():
            negative_image = sample_negatives(similarity_t2i[:, :size], forbidden)
            negative_text = sample_negatives(similarity_i2t[:, :size], forbidden)
        with_image, with_text = negative_image != NO_NEGATIVE, negative_text != NO_NEGATIVE
        texts = torch.cat([own, own[with_image], negative_text[with_text]])
        images = torch.cat([own, negative_image[with_image], own[with_text]])
        logits = self.model.match(text_tokens[texts], batch.mask[texts], select_images(keys_values, images))
        with torch.no_grad():
            correct = (logits[:size].argmax(1) == 1).sum() + (logits[size:].argmax(1) == 0).sum()
            output.metrics["itm_accuracy"] = correct / len(logits)
        return matching_loss(logits[:size], logits[size:])


class VisionLanguageObjective:
    """The step above with the queues and whatever gives the soft targets: a momentum twin, or a frozen teacher."""

    def __init__(
        self,
        model: Albef,
        weights: dict[str, float],
        momentum: float = 0.995,
        queue_size: int = 65536,
        match_ids: bool = False,
        keep_hidden: bool = False,
        twin: bool = True,
    ):
        """momentum: of the twin; queue_size: features kept of earlier batches; twin: without one, `use_teacher` has to be
        called before the first step; the rest as in the step."""
        self.module = VisionLanguageStep(model, weights, match_ids, keep_hidden)
        joint_dim = model.vision_proj.out_features
        without = ("itm_head", "temp") if "mlm" in self.module.weights else ("itm_head", "temp", "mlm_head")
        self.companions = nn.ModuleDict({"twin": MomentumTwin(model, without)} if twin else {})
        self.companions["queue"] = FeatureQueue(joint_dim, queue_size)
        self.momentum = momentum
        self.teacher: FrozenTeacher | None = None

    def use_teacher(self, teacher: FrozenTeacher) -> None:
        """Let a frozen teacher give the soft targets and the queue's features. Its pass is the one that FD reads."""
        self.teacher = teacher

    @torch.no_grad()
    def prepare(self, batch: Batch, alpha: float, new_step: bool) -> SoftTargets:
        """Clamp the temperature and update the twin, if any, at the start of an optimiser step; then the soft targets."""
        online, queue = self.module.model, self.companions["queue"]
        if new_step:
            online.temp.clamp_(*TEMPERATURE_RANGE)
            if "twin" in self.companions:
                self.companions["twin"].update(online, self.momentum)
        source, image, text, mlm_states = self._soft_states(batch, with_mlm="mlm" in self.module.weights and alpha > 0)
        image_feature = source.image_feature(image).float()
        text_feature = source.text_feature(text).float()
        image_candidates = torch.cat([image_feature.T, queue.image], dim=1)
        text_candidates = torch.cat([text_feature.T, queue.text], dim=1)
        if self.module.match_ids:
            one_hot = positive_targets(batch.image_ids, torch.cat([batch.image_ids, queue.ids]))
        else:
            one_hot = diagonal_targets(len(batch.ids), image_candidates.shape[1], image_feature.device)
        mlm_logits = None if mlm_states is None else source.mlm_logits(mlm_states[batch.labels >= 0])
        return SoftTargets(
            alpha,
            image_feature,
            text_feature,
            image_candidates,
            text_candidates,
            distilled_targets(similarity(image_feature, text_candidates, online.temp), one_hot, alpha),
            distilled_targets(similarity(text_feature, image_candidates, online.temp), one_hot, alpha),
            mlm_logits,
        )

    def _soft_states(self, batch: Batch, with_mlm: bool) -> tuple[Albef, Tensor, Tensor, Tensor | None]:
        """The model that gives soft targets, and its image, text and masked-text tokens (None without `with_mlm`)."""
        if self.teacher is not None:
            states = self.teacher.states(batch.images, batch.ids, batch.mask, batch.masked_ids)
            mlm = states.mlm.tokens if with_mlm else None
            return self.teacher.model, states.image.tokens, states.text.tokens, mlm
        twin = self.companions["twin"].model
        image = twin.visual_encoder(batch.images).tokens
        text = twin.text_encoder.encode(batch.ids, batch.mask).tokens
        if not with_mlm:
            return twin, image, text, None
        keys_values = twin.text_encoder.image_keys_values(image)
        return twin, image, text, twin.masked_states(batch.masked_ids, batch.mask, keys_values).tokens

    @torch.no_grad()
    def finish(self, batch: Batch, prepared: SoftTargets) -> None:
        """Push the momentum features of all ranks."""
        self.companions["queue"].push(
            gather_rows(prepared.image_feature), gather_rows(prepared.text_feature), gather_rows(batch.image_ids)
        )
