"""Retrieval scores of an ALBEF: ITC for every pair, then ITM for the best candidates of both directions.

Shapes: I images, T texts, N image tokens, L text tokens, D width, E joint width, P pairs.

The published loop scores image-to-text and text-to-image apart and recomputes an image's keys and values for every text.
Here the candidates of both directions are united, since one matching score serves both, and grouped by image, whose keys
and values are computed once. The scores are the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pela_vl.data.captions import RetrievalEval
from pela_vl.data.loader import make_image_loader, split_range
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.distributed import Ranks, gather_rows
from pela_vl.evaluation.recall import recall_from_scores
from pela_vl.models.albef import Albef
from pela_vl.models.bert import KeyValue, select_images
from pela_vl.settings import EvalSettings

UNRANKED = -100.0  # the published score of a pair outside the top k


@dataclass
class RetrievalScores:
    """image_to_text [I, T] and text_to_image [T, I], as ranked."""

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
    ranks: Ranks,
    max_tokens: int,
    autocast: Callable[[], Any],
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> RetrievalScores:
    """Score every image against every text; each rank does its share and all get the whole.

    progress(done) counts this rank's images, twice: encoded, re-ranked. The model's mode is left as found.
    """
    training = model.training
    model.eval()
    note = progress or (lambda done: None)
    share = split_range(len(data), ranks.rank, ranks.world)
    texts, text_features = _encode_texts(model, data.texts, tokenizer, settings, ranks, max_tokens, autocast)
    tokens, features, done = [], [], 0
    for images, _ in make_image_loader(data, list(share), settings.image_batch, workers):
        with autocast():
            encoded = model.visual_encoder(images.to(ranks.device)).tokens
            features.append(model.image_feature(encoded).float())
        if settings.k_test:
            tokens.append(encoded)
        done += len(images)
        note(done)
    empty = text_features.new_zeros((0, text_features.shape[1]))
    similarity = gather_rows(torch.cat([*features, empty])) @ text_features.T
    if not settings.k_test:
        model.train(training)
        scores = similarity.cpu().numpy()
        return RetrievalScores(scores, np.ascontiguousarray(scores.T))
    by_image, by_text = _candidates(similarity, settings.k_test)
    wanted = (by_image | by_text)[share.start : share.stop]
    pairs, matching = [], []
    groups = _image_groups(wanted.sum(1).tolist(), settings.pair_batch)
    own = torch.cat(tokens) if tokens else None
    for first, last in groups:
        with autocast():
            image = model.text_encoder.image_keys_values(own[first:last])
            for local, text in _text_batches(wanted[first:last], texts.lengths, settings.pair_batch):
                pairs.append(torch.stack([local + first + share.start, text]))
                matching.append(_match(model, image, local, texts, text).float())
        done += last - first
        note(done)
    none = torch.zeros((2, 0), dtype=torch.int64, device=ranks.device)
    where = gather_rows(torch.cat([none, *pairs], dim=1).T.contiguous())
    values = gather_rows(torch.cat([*matching, torch.zeros(0, device=ranks.device)]))
    scores = torch.full(similarity.shape, UNRANKED, device=ranks.device)
    scores[where[:, 0], where[:, 1]] = values
    model.train(training)
    unranked = torch.tensor(UNRANKED, device=ranks.device)
    return RetrievalScores(
        torch.where(by_image, scores, unranked).cpu().numpy(), torch.where(by_text, scores, unranked).T.cpu().numpy()
    )


@dataclass
class _Texts:
    """Encoded texts of all ranks: tokens [T, L, D], mask [T, L], lengths [T]."""

    tokens: Tensor
    mask: Tensor
    lengths: Tensor


def _encode_texts(model, texts, tokenizer, settings, ranks, max_tokens, autocast) -> tuple[_Texts, Tensor]:
    """Text-only layers and features [T, E] of all texts, in batches of similar length."""
    ids, mask = tokenizer.encode(texts, max_tokens)
    order = torch.argsort(mask.sum(1), stable=True)
    share = order[ranks.rank :: ranks.world]
    width = model.text_encoder.embeddings.word_embeddings.embedding_dim
    tokens = torch.zeros((len(share), ids.shape[1], width), device=ranks.device)
    features = [torch.zeros((0, model.text_proj.out_features), device=ranks.device)]  # a rank may have no text
    for start in range(0, len(share), settings.text_batch):
        chosen = share[start : start + settings.text_batch]
        longest = int(mask[chosen].sum(1).max())
        with autocast():
            encoded = model.text_encoder.encode(
                ids[chosen, :longest].to(ranks.device), mask[chosen, :longest].to(ranks.device)
            ).tokens
            features.append(model.text_feature(encoded).float())
        tokens[start : start + len(chosen), :longest] = encoded.float()
    # every rank needs every text, since its images may be matched with any
    back = torch.argsort(gather_rows(share.to(ranks.device)))
    mask = mask.to(ranks.device)
    return _Texts(gather_rows(tokens)[back], mask, mask.sum(1)), gather_rows(torch.cat(features))[back]


def _candidates(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Bool [I, T] twice: the k best texts of every image, and the k best images of every text."""
    by_image = torch.zeros_like(similarity, dtype=torch.bool)
    by_image.scatter_(1, similarity.topk(min(k, similarity.shape[1]), dim=1).indices, True)
    by_text = torch.zeros_like(similarity, dtype=torch.bool)
    by_text.scatter_(0, similarity.topk(min(k, similarity.shape[0]), dim=0).indices, True)
    return by_image, by_text


def _image_groups(counts: list[int], pair_batch: int) -> Iterator[tuple[int, int]]:
    """Runs [first, last) of images whose pairs together fit a batch; an image with more has a run of its own."""
    first = held = 0
    for i, count in enumerate(counts):
        if i > first and held + count > pair_batch:
            yield first, i
            first, held = i, 0
        held += count
    if counts:
        yield first, len(counts)


def _text_batches(wanted: Tensor, lengths: Tensor, pair_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(image, text) indices [P] of the wanted pairs, shortest texts first so that little is padding."""
    image, text = wanted.nonzero(as_tuple=True)
    order = torch.argsort(lengths[text], stable=True)
    image, text = image[order], text[order]
    for start in range(0, len(text), pair_batch):
        yield image[start : start + pair_batch], text[start : start + pair_batch]


def _match(model: Albef, image: list[KeyValue], local: Tensor, texts: _Texts, text: Tensor) -> Tensor:
    """ITM logit (index 1) [P] of pairs; a single image's keys and values are shared, not copied."""
    longest = int(texts.lengths[text].max())
    context = image if image[0][0].shape[0] == 1 else select_images(image, local)
    return model.match(texts.tokens[text, :longest], texts.mask[text, :longest], context)[:, 1]
