"""Runs an ALBEF of any task on a few images and texts, so that a compression measures what its layers are fed.

Shapes: S pixels a side, L text tokens, T answer tokens.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.data.collate import Key
from pela_vl.data.images import ImageReader
from pela_vl.data.sets.annotations import Entry, PathLike, check_image, check_text, load_annotations
from pela_vl.data.text import clean_caption
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import Transform, eval_transform
from pela_vl.models.albef.attention import select_images

TEXTS = {"entailment": "sentence", "vqa": "question"}
"""The field of a list's entries that holds the text, by kind of model ("caption" for all that are not named)."""
MAX_WORDS, MAX_TOKENS = 30, 30
BATCH, IMAGE_TOKENS = 16, 3072
"""The most samples of a batch, and the most tokens of its images: the metrics' pass holds the activations of a whole batch."""
MOST_SHARDS = 8
"""A shard is read from front to back for whatever is wanted of it, so samples are taken from a few."""


class _Calibration:
    """Called with a model, it runs each sample through all that the model's task runs, without padding."""

    def __init__(
        self,
        kind: str,
        image_tokens: int,
        ids: Sequence[Tensor],
        answers: Sequence[Tensor],
        image: Callable[[int], Tensor],
        show: bool,
    ) -> None:
        """What each sample is.

        Args:
            kind: Of the model's checkpoint.
            image_tokens: Of one image.
            ids: Each sample's text [L].
            answers: Each sample's answer [T], for question answering; else empty.
            image: image(i) gives the image [3, S, S] of sample i.
            show: Show progress.
        """
        self.ids, self.answers, self.image, self.show = ids, answers, image, show
        self.batch = max(2, min(BATCH, IMAGE_TOKENS // image_tokens))  # a text needs another one's image too
        self._reading = (
            threading.Lock()
        )  # batches run in parallel threads, and one of them reads the data set at a time
        self.run = {"entailment": self._classify, "vqa": self._answer}.get(kind, self._match)

    def __call__(self, model: nn.Module) -> None:
        """Raises UserError for an image that cannot be read."""
        device = next(model.parameters()).device
        with Progress(len(self.ids), "calibrate", unit="sample", enabled=self.show) as progress:
            for chosen in self._batches():
                images = torch.stack([self.image(i) for i in chosen]).to(device)
                ids = torch.stack([self.ids[i] for i in chosen]).to(device)
                self.run(model, images, ids, torch.ones_like(ids), chosen)
                progress.update(len(chosen))

    def __iter__(self) -> Iterator[Callable[[nn.Module], list[Tensor]]]:
        """The batches one by one, as functions f(model) that run one and return the features that its task reads.

        Each runs every layer once, so that the step from layer to layer sees all of its inputs.
        """
        for chosen in self._batches():
            yield partial(self._features, chosen)

    def _features(self, chosen: list[int], model: Any) -> list[Tensor]:
        """Tensors [B, ...] of the samples `chosen`. Raises UserError for an image that cannot be read."""
        device = next(model.parameters()).device
        with self._reading:
            images = torch.stack([self.image(i) for i in chosen]).to(device)
        ids = torch.stack([self.ids[i] for i in chosen]).to(device)
        mask = torch.ones_like(ids)
        if self.run == self._classify:
            return [model(images, ids, mask)]
        return (self._answer_features if self.run == self._answer else self._match_features)(
            model, images, ids, mask, chosen
        )

    def _match_features(self, model: Any, images: Tensor, ids: Tensor, mask: Tensor, chosen: list[int]) -> list[Tensor]:
        """ITC features, ITM logits of each text with its image and with another one, and MLM logits."""
        batch, bert = len(ids), model.text_encoder
        image, text = model.visual_encoder(images).tokens, bert.encode(ids, mask).tokens
        order = torch.arange(batch, device=ids.device)
        pairs = _KeysValues(bert, image, torch.cat([order, order.roll(1)]))
        fused = bert.fuse(text.repeat(2, 1, 1), mask.repeat(2, 1), pairs).tokens
        matching = model.itm_head(fused[:, 0]).unflatten(0, (2, batch)).transpose(0, 1)
        found = [model.image_feature(image), model.text_feature(text), matching]
        return found if model.mlm_head is None else [*found, model.mlm_logits(fused[:batch])]

    def _answer_features(
        self, model: Any, images: Tensor, ids: Tensor, mask: Tensor, chosen: list[int]
    ) -> list[Tensor]:
        """Logits of the answers' tokens, 0 where a shorter answer is padded."""
        answers = [self.answers[sample].to(ids.device) for sample in chosen]
        answer = pad_sequence(answers, batch_first=True)
        real = pad_sequence([torch.ones_like(one) for one in answers], batch_first=True)
        decoder = model.text_decoder
        question = decoder.question_keys_values(model.encode_question(images, ids, mask))
        states = decoder.decode(answer, real, question, mask)[:, :-1]
        return [decoder.logits(states) * real[:, 1:, None]]

    def _batches(self) -> Iterator[list[int]]:
        """Samples whose texts are equally long: padding would count as input."""
        lengths = torch.tensor([len(ids) for ids in self.ids])
        for length in lengths.unique():
            for chosen in (lengths == length).nonzero()[:, 0].split(self.batch):
                yield chosen.tolist()

    def _match(self, model: Any, images: Tensor, ids: Tensor, mask: Tensor, chosen: list[int]) -> None:
        """Both encoders and the fusion of every text with its own image and, as in matching, with another's."""
        image, text = model.visual_encoder(images).tokens, model.text_encoder.encode(ids, mask).tokens
        model.image_feature(image), model.text_feature(text)
        keys_values = model.text_encoder.image_keys_values(image)
        model.match(text, mask, keys_values)
        if len(images) > 1:
            model.match(text, mask, select_images(keys_values, torch.arange(len(ids), device=ids.device).roll(1)))
        if model.mlm_head is not None:
            model.mlm_logits(model.text_encoder.fuse(text, mask, keys_values).tokens)

    def _classify(self, model: Any, images: Tensor, ids: Tensor, mask: Tensor, chosen: list[int]) -> None:
        model(images, ids, mask)

    def _answer(self, model: Any, images: Tensor, ids: Tensor, mask: Tensor, chosen: list[int]) -> None:
        """The question, and its first answer in the decoder: one at a time, for answers differ in length."""
        decoder, states = model.text_decoder, model.encode_question(images, ids, mask)
        for row, sample in enumerate(chosen):
            answer = self.answers[sample][None].to(ids.device)
            question = decoder.question_keys_values(states[row : row + 1])
            decoder.next_token_logits(answer, torch.ones_like(answer), question, mask[row : row + 1])


class _KeysValues:
    """Keys and values by fusion layer of the images `index` [M], computed when the layer asks for them.

    The step from layer to layer holds all batches at once: those of six layers together would be most of its memory.
    """

    def __init__(self, bert: Any, image: Tensor, index: Tensor) -> None:
        self._layers, self._image, self._index = bert.encoder.layer[bert.fusion_layer :], image, index

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[number].crossattention.projections.keys_values(self._image)
        return keys[self._index], values[self._index]


class AlbefCalibration(_Calibration):
    """Samples of an annotation list."""

    def __init__(self, loaded: LoadedModel, file: PathLike, image_root: PathLike, samples: int) -> None:
        """Draw samples from an annotation list and read their texts.

        Args:
            loaded: The dense model; its kind says which fields the list has.
            file: List of the model's task, as its training reads it: "image" with "caption" (retrieval and pre-training), with
                "sentence" (SNLI-VE), or with "question" and "answer" (VQA).
            image_root: Folder that the images' names are relative to.
            samples: How many entries are drawn, the same ones at every call.

        Raises:
            UserError: Naming file, entry and field of what is wrong.
        """
        kind, config = loaded.header.kind, loaded.header.config
        if loaded.header.tokenizer is None:
            raise UserError(f"{file!s}: a model of kind {kind} without a tokeniser cannot read texts")
        tokenizer = Tokenizer.load(loaded.header.tokenizer)
        field = TEXTS.get(kind, "caption")
        fields = {"image": (str,), field: (str, list)} | ({"answer": (str, list)} if kind == "vqa" else {})
        entries = load_annotations([file], fields)
        names, texts, answers = [], [], []
        for entry in (entries[index] for index in draw(len(entries), samples)):
            check_image(entry, image_root)
            names.append(entry.values["image"])
            texts.append(clean_caption(_first(entry, field), MAX_WORDS))
            if kind == "vqa":
                answers.append(clean_caption(_first(entry, "answer"), MAX_WORDS))
        longest, read = min(MAX_TOKENS, config.max_positions), ImageReader(image_root)
        transform = eval_transform(config.image_size, loaded.header.normalization)
        super().__init__(
            kind,
            config.image_tokens,
            [tokenizer.encode([text], longest)[0][0] for text in texts],
            [tokenizer.encode([answer], longest, eos=True)[0][0] for answer in answers],
            lambda i: transform(read(names[i]), None)[0],
            show=True,
        )


class TrainingCalibration(_Calibration):
    """Samples of a run's training set, lists or shards, with the texts as its batches have them.

    Images are whole: neither cropped nor flipped nor augmented. One that cannot be read is replaced as in training. Of an entry
    with several captions one is drawn, the same one at every call.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        data: Dataset,
        collate: Callable[[list[Any]], Any],
        samples: int,
        show: bool = True,
    ) -> None:
        """Draw the samples and read their texts.

        Args:
            loaded: The dense model.
            data: The run's training set; its transform is left as found.
            collate: Of the run's task.
            samples: How many to draw.
            show: Show progress.
        """
        places = [(0, index) for index in draw_training(data, samples)]
        transform = eval_transform(loaded.header.config.image_size, loaded.header.normalization)
        ids, answers = [], []
        for place in places:
            batch = collate([_read(data, place, transform)])
            ids.append(batch.ids[0])
            if loaded.header.kind == "vqa":
                answers.append(batch.answer_ids[0, : int(batch.answer_mask[0].sum())])
        # Images are read again when they are needed: some hundred images at 384 px would take half a GB.
        super().__init__(
            loaded.header.kind,
            loaded.header.config.image_tokens,
            ids,
            answers,
            lambda i: _read(data, places[i], transform).image,
            show,
        )


def draw(count: int, samples: int) -> list[int]:
    """Indices of the entries that calibrate, in order.

    The choice is random, since lists are often sorted, and the same at every call.
    """
    return sorted(np.random.default_rng(0).permutation(count)[:samples].tolist())


def draw_training(data: Any, samples: int) -> list[int]:
    """Indices of the samples of a training set that calibrate, in order.

    Lists are drawn from at random (see `draw`). Shards are read from front to back, so samples come from the front of at most
    `MOST_SHARDS` shards at equal distances, as many from each. Where a shard has too few, the larger ones give more.

    Args:
        data: The training set; one of shards has `sizes`, and `numbers` where its samples are not numbered by their places.
        samples: How many to draw; fewer where the set has fewer.
    """
    sizes = getattr(data, "sizes", None)
    if sizes is None:
        return draw(len(data), samples)
    count = min(len(sizes), MOST_SHARDS)
    chosen = sorted((k * len(sizes) // count for k in range(count)), key=lambda shard: sizes[shard])
    drawn: list[int] = []
    left = samples
    for position, shard in enumerate(chosen):  # the smallest first: later shards give what these lack
        take = min(-(-left // (count - position)), sizes[shard])
        start = sum(sizes[:shard])
        drawn += range(start, start + take)
        left -= take
    numbers = getattr(data, "numbers", None)
    return sorted(drawn if numbers is None else numbers[drawn].tolist())


def _read(data: Any, place: Key, transform: Transform) -> Any:
    before, data.transform = data.transform, transform
    try:
        return data[place]
    finally:
        data.transform = before


def _first(entry: Entry, field: str) -> str:
    """The text of a field, or the first of its texts."""
    value = entry.values[field]
    if not value:
        raise UserError(f"{entry.place}: field '{field}' is empty; give a text or drop the entry")
    text = value if isinstance(value, str) else value[0]
    check_text(entry, field, text)
    return text
