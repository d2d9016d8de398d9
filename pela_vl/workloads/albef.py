"""What the tasks on an ALBEF share: loading with a tokeniser, one forward pass for student and teacher, batches.

Shapes: B samples, L text tokens, S pixels a side.
"""

from collections.abc import Callable, Collection
from functools import cached_property, lru_cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.checkpoints.unimodal import start_from_bert, start_from_deit
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import Transform, train_transform
from pela_vl.models.albef.attention import KeyValue, select_images
from pela_vl.models.albef.encoders import AlbefModel
from pela_vl.models.ema import EmaModel
from pela_vl.models.outputs import TokenStates
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import Settings
from pela_vl.workloads.base import RunModel, Task, check_augmentation
from pela_vl.workloads.calibration import TrainingCalibration

AnyAlbef = TypeVar("AnyAlbef", bound=AlbefModel)

CONTRASTIVE_TERMS = ("itc", "itm", "mlm")


class AlbefPass:
    """One forward pass of an ALBEF on a batch. Each part runs when it is first read, and once.

    A training step reads the parts in the order of its losses, a teacher only those that somebody needs. Texts and masked
    texts go through the text-only layers together.

    Args:
        model: Any model of the family.
        batch: images [B, 3, S, S]; ids, mask [B, L]; masked_ids [B, L] where the batch has masked texts.
        keep_hidden: Keep the hidden states.
        with_masked: Whether `masked` will be read, of a batch that has masked texts.
    """

    def __init__(self, model: Any, batch: Any, keep_hidden: bool = True, with_masked: bool = True):
        self.model, self.batch, self.keep_hidden = model, batch, keep_hidden
        self.with_masked = with_masked and getattr(batch, "masked_ids", None) is not None

    @cached_property
    def image(self) -> TokenStates:
        """The ViT's states."""
        return self.model.visual_encoder(self.batch.images, self.keep_hidden)

    @cached_property
    def texts(self) -> tuple[TokenStates, ...]:
        """The text-only layers' states, of the texts and, where there are any, of the masked texts."""
        batch, encode = self.batch, self.model.text_encoder.encode
        if not self.with_masked:
            return (encode(batch.ids, batch.mask, self.keep_hidden),)
        both = encode(torch.cat([batch.ids, batch.masked_ids]), torch.cat([batch.mask, batch.mask]), self.keep_hidden)
        halves = [state.chunk(2) for state in both.hidden]
        tokens = halves[-1] if halves else both.tokens.chunk(2)
        return tuple(TokenStates(tokens[i], tuple(half[i] for half in halves)) for i in range(2))

    @property
    def text(self) -> TokenStates:
        """The text-only layers' states."""
        return self.texts[0]

    @property
    def masked_text(self) -> TokenStates:
        """The text-only layers' states of the masked texts."""
        return self.texts[1]

    @cached_property
    def keys_values(self) -> list[KeyValue]:
        """The image's keys and values for every fusion layer."""
        return self.model.text_encoder.image_keys_values(self.image.tokens)

    @cached_property
    def masked(self) -> TokenStates:
        """The states of all text layers on masked text with the image."""
        return self.model.masked_states(self.masked_text, self.batch.mask, self.keys_values, self.keep_hidden)

    def match(self, texts: Tensor, images: Tensor) -> Tensor:
        """Matching logits [P, 2] of the batch's texts `texts` [P] with its images `images` [P].

        The masked texts that will be read go through the fusion layers in the same pass.
        """
        tokens, mask = self.text.tokens[texts], self.batch.mask[texts]
        if not self.with_masked:
            return self.model.match(tokens, mask, select_images(self.keys_values, images))
        logits, self.masked = self.model.match_beside_masked(
            (tokens, mask, images), self.masked_text, self.batch.mask, self.keys_values, self.keep_hidden
        )
        return logits

    def features(self, streams: Collection[str] | None = None) -> Features:
        """Hidden states of "image", "text" and, of a batch with masked texts, "mlm"; padding of texts is masked."""
        wanted = ("image", "text", "mlm")[: 3 if self.with_masked else 2] if streams is None else streams
        found, parts = {}, {"image": "image", "text": "text", "mlm": "masked"}
        for stream in wanted:
            found[stream] = getattr(self, parts[stream]).hidden
        masks = {stream: self.batch.mask for stream in found if stream != "image"}
        places = {"image": self.image.kept} if "image" in found and self.image.kept is not None else {}
        return Features(found, masks, places)


class AlbefTask(Task[AnyAlbef]):
    """A task on an ALBEF.

    Class attributes:
        terms: The contrastive terms that the task has, each with weight 1 unless the settings say otherwise.
    """

    terms: ClassVar[tuple[str, ...]] = ()
    evaluated_in_own_dtype: ClassVar[bool] = True

    def check(self, settings: Settings) -> None:
        check_augmentation(settings)
        self.loss_weights(settings)
        if settings.losses.logits or settings.losses.fd_features != "blocks" or settings.train.ema:
            raise UserError(
                "losses.logits, losses.fd_features and train.ema are of image classification; leave them out"
            )
        if settings.losses.soft_targets == "teacher" and not self.terms:
            raise UserError("losses.soft_targets: teacher is for pre-training and retrieval; this task wants ema")

    def loss_weights(self, settings: Settings) -> dict[str, float]:
        """The weights of the task's contrastive terms. Raises UserError for a weight of a term that it does not have."""
        weights = {}
        for name in CONTRASTIVE_TERMS:
            given = getattr(settings.losses, name)
            if name in self.terms:
                weights[name] = 1.0 if given is None else given
            elif given:
                raise UserError(f"losses.{name}: {self.title} has no such term; leave it out")
        return weights

    def load(self, settings: Settings, checkpoint: str | None) -> LoadedModel[AnyAlbef]:
        name = settings.model.tokenizer or (None if checkpoint else "bert-base-uncased")
        loaded = self.load_model(settings, checkpoint, load_tokenizer(name).vocab_size if name else None)
        entries, words = load_tokenizer(loaded.header.tokenizer).vocab_size, loaded.header.config.vocab_size
        if entries > words:
            raise UserError(
                f"the tokeniser {loaded.header.tokenizer} has {entries} entries, the model only {words}; set "
                "model.tokenizer to the one the model was trained with"
            )
        self._start_encoders(settings, checkpoint, loaded)
        return loaded

    def load_model(self, settings: Settings, checkpoint: str | None, vocab_size: int | None) -> LoadedModel[AnyAlbef]:
        """The model alone, without its tokeniser.

        Args:
            settings: `model` gives the size, and what is changed of it.
            checkpoint: Path of ours or of a foreign one; None makes a model with random weights.
            vocab_size: Entries of the tokeniser that the settings name; None where they name none, then the checkpoint's stands.

        Raises:
            UserError: For a checkpoint that the task cannot start from.
        """
        raise NotImplementedError

    def _start_encoders(self, settings: Settings, checkpoint: str | None, loaded: LoadedModel[AnyAlbef]) -> None:
        """Fill the encoders of a new model from BERT and from a ViT, where the settings name them."""
        init = settings.init
        if checkpoint is not None:
            if init.bert or init.vit:
                raise UserError("init.bert and init.vit start a new model; leave them out or leave init.checkpoint out")
            return
        if init.vit:
            loaded.notes += start_from_deit(loaded.model, init.vit)
        if init.bert:
            loaded.notes += start_from_bert(loaded.model, init.bert)

    def run(self, model: AnyAlbef, batch: Any, keep_hidden: bool = True) -> AlbefPass:
        """The parts of the forward pass that somebody reads, see `AlbefPass`.

        Args:
            model: The student's or the teacher's model.
            batch: images [B, 3, S, S], ids and mask [B, L], and masked_ids [B, L] where texts are masked.
            keep_hidden: Keep the hidden states, which distillation needs.
        """
        return AlbefPass(model, batch, keep_hidden)

    def make_teacher(self, model: AnyAlbef) -> FrozenTeacher[AnyAlbef]:
        """The frozen teacher. It sees every image token, even where the student merges tokens."""
        if isinstance(model, AlbefModel):
            model.visual_encoder.set_token_merging(0)
        return super().make_teacher(model)

    def train_transform(self, settings: Settings, header: Header) -> Transform:
        """It gives 8-bit pixels, which training normalises on the device."""
        data = settings.data
        return train_transform(header.config.image_size, data.min_scale, data.hflip, data.augment, normalization=None)

    def calibration(
        self, settings: Settings, loaded: LoadedModel[AnyAlbef], data: Dataset, show: bool
    ) -> Callable[[nn.Module], None]:
        """Runs the model on `compress.samples` training samples, see `TrainingCalibration`.

        Args:
            settings: `compress.samples` and what `collate` reads.
            loaded: The dense model; its header gives image size and tokeniser.
            data: The training set; its transform is left as found.
            show: Show a progress bar.
        """
        collate = self.collate(settings, loaded.header)
        return TrainingCalibration(loaded, data, collate, settings.compress.samples, show)


def ema_of(settings: Settings, model: AnyAlbef, without: tuple[str, ...] = ()) -> EmaModel[AnyAlbef] | None:
    """The EMA model that gives the soft targets.

    Args:
        settings: `losses.soft_targets` says whether an EMA model or the teacher gives them.
        model: The model to follow, in its final shape.
        without: Names of parts that the soft targets do not need, which the copy leaves out.

    Returns:
        The EMA model; None where the teacher gives the soft targets.
    """
    return EmaModel(model, without) if settings.losses.soft_targets == "ema" else None


def teacher_for_targets(settings: Settings, teacher: FrozenTeacher[AnyAlbef] | None) -> FrozenTeacher[AnyAlbef] | None:
    """The teacher where the settings say that it gives the soft targets. Raises UserError if there is none."""
    if settings.losses.soft_targets != "teacher":
        return None
    if teacher is None:
        name = settings.method.name
        raise UserError(f"losses.soft_targets: teacher, but method {name} has none; use method: pela, or ema")
    return teacher


@lru_cache(maxsize=4)
def load_tokenizer(name: str | None) -> Tokenizer:
    """The tokeniser of a checkpoint's header, or of the settings."""
    return Tokenizer.load(name or "bert-base-uncased")


def tokenizer_of(run: RunModel) -> Tokenizer:
    """The tokeniser that a model was trained with."""
    return load_tokenizer(run.header.tokenizer)
