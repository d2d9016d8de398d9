"""Running an ALBEF of any kind on a few pictures and texts, so that a compression sees what its layers are fed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pela_vl.data.annotations import Entry, PathLike, check_image, check_text, load_annotations
from pela_vl.data.images import ImageReader
from pela_vl.data.text import clean_caption
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.errors import UserError
from pela_vl.loading import LoadedModel
from pela_vl.models.bert import select_images
from pela_vl.progress import Progress

TEXTS = {"entailment": "sentence", "vqa": "question"}
"""The field of a list's entries that holds the text, by kind of model ("caption" for all that are not named)."""
MAX_WORDS, MAX_TOKENS, BATCH = 30, 30, 16


class AlbefCalibration:
    """Call it with the model: each sample goes through all that its task runs, without padding."""

    def __init__(self, loaded: LoadedModel, file: PathLike, image_root: PathLike, samples: int) -> None:
        """file: a list of the model's task, as its training reads it; `samples` of its entries are drawn, always the same.

        For retrieval and pre-training "image" and "caption", for SNLI-VE "image" and "sentence", for VQA "image", "question"
        and "answer". Raises UserError naming file, entry and field for what is wrong with them.
        """
        kind, numbers = loaded.card.kind, loaded.card.numbers
        self.tokenizer = Tokenizer.load(loaded.card.tokenizer)
        field = TEXTS.get(kind, "caption")
        fields = {"image": (str,), field: (str, list)} | ({"answer": (str, list)} if kind == "vqa" else {})
        entries = load_annotations([file], fields)
        drawn = np.random.default_rng(0).permutation(len(entries))[:samples]
        self.images: list[str] = []
        texts, answers = [], []
        for entry in (entries[index] for index in sorted(drawn)):
            check_image(entry, image_root)
            self.images.append(entry.values["image"])
            texts.append(clean_caption(_first(entry, field), MAX_WORDS))
            if kind == "vqa":
                answers.append(clean_caption(_first(entry, "answer"), MAX_WORDS))
        longest = min(MAX_TOKENS, numbers["max_positions"])
        self.ids, self.mask = self.tokenizer.encode(texts, longest)
        self.answers = [self.tokenizer.encode([answer], longest, eos=True)[0] for answer in answers]
        self.read, self.transform = ImageReader(image_root), eval_transform(numbers["image_size"])
        self.run = {"entailment": self._classify, "vqa": self._answer}.get(kind, self._match)

    def __call__(self, model: nn.Module) -> None:
        """Raises UserError for a picture that cannot be read."""
        device = next(model.parameters()).device
        with Progress(len(self.images), "calibrate", unit="sample") as progress:
            for chosen in self._batches():
                images = torch.stack([self.transform(self.read(self.images[i]), None)[0] for i in chosen])
                ids = self.ids[chosen, : int(self.mask[chosen[0]].sum())]
                self.run(model, images.to(device), ids.to(device), torch.ones_like(ids, device=device), chosen)
                progress.update(len(chosen))

    def _batches(self) -> Iterator[list[int]]:
        """Samples whose texts are equally long: padding would count as input."""
        lengths = self.mask.sum(1)
        for length in lengths.unique():
            for chosen in (lengths == length).nonzero()[:, 0].split(BATCH):
                yield chosen.tolist()

    def _match(self, model: Any, images: Tensor, ids: Tensor, mask: Tensor, chosen: list[int]) -> None:
        """Both encoders and the fusion of every text with its own picture and, as in matching, with another's."""
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
            answer = self.answers[sample].to(ids.device)
            question = decoder.question_keys_values(states[row : row + 1])
            decoder.next_token_logits(answer, torch.ones_like(answer), question, mask[row : row + 1])


def _first(entry: Entry, field: str) -> str:
    """The text of a field, or the first of its texts."""
    value = entry.values[field]
    if not value:
        raise UserError(f"{entry.place}: field '{field}' is empty; give a text or drop the entry")
    text = value if isinstance(value, str) else value[0]
    check_text(entry, field, text)
    return text
