"""Retrieval scores of an ALBEF: ITC for every pair, then ITM for the best candidates of both directions.

Shapes: I images, T texts, N image tokens, L text tokens, D width, E joint width.

The published loop scores image-to-text and text-to-image apart, and recomputes an image's keys and values for every text. Here
the candidates of both directions are united, because one matching score serves both. They are grouped by image, whose keys and
values are computed once. What a text goes through before it meets an image is computed once for the text. The last layer is
computed only for the token that the matching head reads. The scores are the same.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pela_vl.base.distributed import World, gather_rows
from pela_vl.data.loader import make_image_loader, split_range
from pela_vl.data.sets.captions import RetrievalEval
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.evaluation.reranking import BatchLimit, Texts, candidates, encode_images, encode_texts, match_images
from pela_vl.metrics.recall import recall_from_scores
from pela_vl.models.albef.albef import Albef
from pela_vl.settings import EvalSettings

UNRANKED = -100.0  # the published score of a pair outside the top k
_PAIR_MB = {"cpu": 16.0}  # a layer's activations then stay in the cache
_PAIR_MB_GPU = 512.0


@dataclass
class RetrievalScores:
    """Scores of both directions, as they are ranked.

    Args:
        image_to_text: [I, T].
        text_to_image: [T, I].
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray

    def recall(self, text2image: np.ndarray) -> dict[str, float]:
        """R@1/5/10 both ways and their mean, in percent."""
        return recall_from_scores(self.image_to_text, self.text_to_image, text2image)


@torch.no_grad()
def score_retrieval(
    model: Albef,
    data: RetrievalEval,
    tokenizer: Tokenizer,
    settings: EvalSettings,
    world: World,
    max_tokens: int,
    autocast: Callable[[], Any],
    workers: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> RetrievalScores:
    """Score every image against every text. Each process does a part, and all get the whole. The model is left in the mode it had.

    Args:
        model: An ALBEF.
        data: Images and texts.
        tokenizer: The one that the model was trained with.
        settings: Batch sizes, memory, and how many candidates are re-ranked.
        world: This process and the others.
        max_tokens: Where texts are cut, [CLS] and [SEP] included.
        autocast: Gives the context that forward passes run in.
        workers: Processes that read images; 0 reads them here.
        on_progress: Called with the number of this process's images that are done. Each counts twice: encoded and re-ranked.
            None: not called.
    """
    training = model.training
    model.eval()
    try:
        scorer = _Scorer(model, data, settings, world, autocast, workers, on_progress or (lambda done: None))
        return scorer.run(*tokenizer.encode(data.texts, max_tokens))
    finally:
        model.train(training)


class _Scorer:
    """One evaluation on one process."""

    def __init__(
        self,
        model: Albef,
        data: RetrievalEval,
        settings: EvalSettings,
        world: World,
        autocast: Callable[[], Any],
        workers: int,
        on_progress: Callable[[int], None],
    ):
        self.model, self.data, self.settings, self.world = model, data, settings, world
        self.autocast, self.workers, self.on_progress = autocast, workers, on_progress
        self.part = split_range(len(data), world.process, world.size)
        mebibytes = settings.pair_mb or _PAIR_MB.get(world.device.type, _PAIR_MB_GPU)
        self.limit = BatchLimit(settings.pair_batch or sys.maxsize, mebibytes)
        self.kept: list[Tensor] = []  # encoded images, as long as they fit

    def run(self, ids: Tensor, mask: Tensor) -> RetrievalScores:
        settings = self.settings
        blocks = self._text_blocks(mask)
        texts, text_features = self._texts(ids, mask, torch.arange(len(ids)), len(blocks) == 1)
        if texts is not None:
            room = settings.cache_mb - texts.tokens.nbytes / 2**20
        else:  # each block of texts will need the other half
            room = settings.cache_mb / 2 if settings.k_test else 0.0
        similarity = gather_rows(self._encode_images(room)) @ text_features.T
        if not settings.k_test:
            alone = similarity.cpu().numpy()
            return RetrievalScores(alone, np.ascontiguousarray(alone.T))
        by_image, by_text = candidates(similarity, settings.k_test)
        scores = torch.full(similarity.shape, UNRANKED, device=self.world.device)
        for number, block in enumerate(blocks):
            if len(blocks) > 1:
                texts, _ = self._texts(ids, mask, block, True)
            assert (
                texts is not None
            )  # with k_test above 0 the texts were kept above (one block) or encoded here (several)
            where, values = self._match(by_image | by_text, texts, number, len(blocks))
            where, values = gather_rows(where), gather_rows(values)
            scores[where[:, 0], where[:, 1]] = values
        unranked = torch.tensor(UNRANKED, device=self.world.device)
        return RetrievalScores(
            torch.where(by_image, scores, unranked).cpu().numpy(),
            torch.where(by_text, scores, unranked).T.cpu().numpy(),
        )

    def _text_blocks(self, mask: Tensor) -> list[Tensor]:
        """Texts by index in runs whose encoded tokens take half of what may be kept, at most; the rest is for images."""
        bert = self.model.text_encoder
        token = bert.embeddings.word_embeddings.embedding_dim * bert.fusion_dtype.itemsize  # bytes
        most = max(1, int(self.settings.cache_mb * 2**20 / (2 * token)))
        block = (mask.sum(1).cumsum(0) - 1) // most
        return [(block == number).nonzero()[:, 0] for number in block.unique().tolist()]

    def _texts(self, ids: Tensor, mask: Tensor, wanted: Tensor, keep: bool) -> tuple[Texts | None, Tensor]:
        keep = keep and self.settings.k_test > 0
        return encode_texts(
            self.model, ids, mask, wanted, self.settings.text_batch, self.world, self.autocast, keep_tokens=keep
        )

    def _encode_images(self, room: float) -> Tensor:
        """Joint features [images of this process, E]. Image tokens are kept while they fit into `room` MiB."""
        features, done = [torch.zeros((0, self.model.vision_proj.out_features), device=self.world.device)], 0
        keeping = True
        for tokens in self._load(self.part):
            with self.autocast():
                features.append(self.model.image_feature(tokens).float())
            room -= tokens.nbytes / 2**20
            keeping = keeping and room >= 0  # once one does not fit, all later ones are encoded again when needed
            if keeping:
                self.kept.append(tokens)
            done += len(tokens)
            self.on_progress(done)
        return torch.cat(features)

    def _load(self, indices: range) -> Iterator[Tensor]:
        for images, _ in make_image_loader(self.data, list(indices), self.settings.image_batch, self.workers):
            with self.autocast():
                yield encode_images(self.model, images.to(self.world.device), self.limit)

    def _match(self, wanted: Tensor, texts: Texts, number: int, blocks: int) -> tuple[Tensor, Tensor]:
        """Pairs [P, 2] and scores [P] of this process's images with one block of texts."""
        kept = sum(map(len, self.kept))
        first, pairs, scores = self.part.start, [], []
        for source in (self.kept, self._load(self.part[kept:])):
            for tokens in source:
                rows = wanted[first : first + len(tokens)]
                where, values = match_images(self.model, tokens, rows, texts, self.limit, self.autocast)
                pairs.append(where + torch.tensor([first, 0], device=where.device))
                scores.append(values)
                first += len(tokens)
                done = number * len(self.part) + first - self.part.start
                self.on_progress(len(self.part) + done // blocks)
        none = torch.zeros((0, 2), dtype=torch.int64, device=self.world.device)
        return torch.cat([none, *pairs]), torch.cat([torch.zeros(0, device=self.world.device), *scores])
