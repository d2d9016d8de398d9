"""Image-text matching of many pairs, for retrieval.py: which pairs, in what batches, and what is kept in memory.

Shapes: I images, T texts, S tokens of all texts together, N image tokens, L text tokens, D width, P pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pela_vl.base.distributed import World, gather_rows
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.attention import KeyValue, select_images


@dataclass(frozen=True)
class BatchLimit:
    """The largest batch that goes through the fusion layers. A batch has one pair at least.

    Args:
        pairs: Most pairs.
        mebibytes: MiB that the batch's widest activation may take in fp32. Copies of images' keys and values, which a batch of
            several images needs, may take as much.
    """

    pairs: int
    mebibytes: float

    def tokens(self, model: Albef) -> int:
        """Text tokens (or image tokens, for the image encoder) whose MLP activation has that size."""
        return max(1, int(self.mebibytes * 2**20 / (4 * model.text_encoder.layers[0].output.dense.in_features)))

    def copied_pairs(self, model: Albef, image_tokens: int) -> int:
        """Pairs that may hold copies of keys and values."""
        layers = model.text_encoder.fusion_attentions
        width = layers[0].output.dense.out_features
        return min(self.pairs, int(self.mebibytes * 2**20 / (8 * image_tokens * width * len(layers))))


@dataclass(frozen=True)
class Texts:
    """Texts behind the first fusion layer's self-attention, as images meet them, without padding.

    Args:
        tokens: [S, D], in the type of the fusion layers' states.
        starts: Where each text begins in `tokens`, int64 [T].
        lengths: Tokens of each text, int64 [T]; 0 for a text that is not held.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    def padded(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [P, L, D] and mask [P, L] of texts [P]; padding repeats a text's last token, which the mask hides."""
        lengths = self.lengths[text]
        position = torch.arange(int(lengths.max()), device=text.device)
        where = self.starts[text, None] + torch.minimum(position, lengths[:, None] - 1)
        return self.tokens[where], position < lengths[:, None]


def encode_texts(
    model: Albef,
    ids: Tensor,
    mask: Tensor,
    wanted: Tensor,
    batch: int,
    world: World,
    autocast: Callable[[], Any],
    keep_tokens: bool,
) -> tuple[Texts | None, Tensor]:
    """Encode texts in batches of similar length. Each process does a part, and all get the whole.

    Args:
        model: An ALBEF in eval mode.
        ids: All texts [T, L].
        mask: Their real tokens [T, L], 1 or 0.
        wanted: Indices of the texts to encode, int64.
        batch: Texts that go through the model at a time.
        world: This process and the others.
        autocast: Gives the context that forward passes run in.
        keep_tokens: Whether the texts themselves are wanted, and not their joint features alone.

    Returns:
        The texts, None without `keep_tokens`, and their joint features [wanted, E] in the order of `wanted`.
    """
    lengths = mask.sum(1)
    order = wanted[torch.argsort(lengths[wanted], stable=True)]
    part, bert = order[world.process :: world.size], model.text_encoder
    width, dtype = bert.embeddings.word_embeddings.embedding_dim, bert.fusion_dtype
    tokens = [torch.zeros((0, width), dtype=dtype, device=world.device)]  # a process may have no text
    features = [torch.zeros((0, model.text_proj.out_features), device=world.device)]
    for start in range(0, len(part), batch):
        chosen = part[start : start + batch]
        longest = int(lengths[chosen].max())
        part_ids, part_mask = (t[chosen, :longest].to(world.device) for t in (ids, mask))
        with autocast():
            encoded = bert.encode(part_ids, part_mask).tokens
            features.append(model.text_feature(encoded).float())
            if keep_tokens:
                tokens.append(bert.start_fusion(encoded, part_mask)[part_mask.bool()].to(dtype))
    order = gather_rows(part.to(world.device))
    # every process needs every text, since its images may be matched with any
    gathered = gather_rows(torch.cat(features))
    back = torch.argsort(order)
    features_in_order = gathered[back[torch.argsort(torch.argsort(wanted))].to(gathered.device)]
    if not keep_tokens:
        return None, features_in_order
    held = torch.zeros(len(ids), dtype=torch.int64, device=world.device)
    held[order] = lengths.to(world.device)[order]
    starts = torch.zeros_like(held)
    starts[order] = held[order].cumsum(0) - held[order]
    return Texts(gather_rows(torch.cat(tokens)), starts, held), features_in_order


def encode_images(model: Albef, images: Tensor, limit: BatchLimit) -> Tensor:
    """Image tokens [B, N, D], a few images at a time: an activation that outgrows the cache slows a CPU down.

    Args:
        model: An ALBEF in eval mode.
        images: [B, 3, S, S].
        limit: Its memory says how many images go through the encoder at a time.
    """
    patches = model.visual_encoder.pos_embed.shape[1]
    step = max(1, limit.tokens(model) // patches)
    return torch.cat([model.visual_encoder(part).tokens for part in images.split(step)])


def candidates(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Bool [I, T] twice: the k best texts of every image, and the k best images of every text."""
    by_image = torch.zeros_like(similarity, dtype=torch.bool)
    by_image.scatter_(1, similarity.topk(min(k, similarity.shape[1]), dim=1).indices, True)
    by_text = torch.zeros_like(similarity, dtype=torch.bool)
    by_text.scatter_(0, similarity.topk(min(k, similarity.shape[0]), dim=0).indices, True)
    return by_image, by_text


def image_groups(counts: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Runs [first, last) of images with at most `most` pairs together; an image with more has a run of its own."""
    first = held = 0
    for i, count in enumerate(counts):
        if i > first and held + count > most:
            yield first, i
            first, held = i, 0
        held += count
    if counts:
        yield first, len(counts)


def text_batches(wanted: Tensor, lengths: Tensor, pairs: int, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(image, text) indices [P] of the wanted pairs in batches, shortest texts first so that there is little padding.

    Args:
        wanted: Bool [I, T].
        lengths: Tokens of each text [T].
        pairs: Most pairs of a batch.
        tokens: Most tokens of a batch, padding included; a batch has one pair at least.
    """
    image, text = wanted.nonzero(as_tuple=True)
    order = torch.argsort(lengths[text], stable=True)
    image, text = image[order], text[order]
    longest = lengths[text].tolist()
    start = 0
    for stop in range(1, len(longest) + 1):
        full = stop == len(longest) or stop - start >= pairs or (stop - start + 1) * longest[stop] > tokens
        if full:
            yield image[start:stop], text[start:stop]
            start = stop


@torch.no_grad()
def match_images(
    model: Albef, tokens: Tensor, wanted: Tensor, texts: Texts, limit: BatchLimit, autocast: Callable[[], Any]
) -> tuple[Tensor, Tensor]:
    """ITM scores of the wanted pairs.

    An image's keys and values are computed once. An image that meets many texts goes through the layers by itself, so that its keys
    and values are not copied either.

    Args:
        model: An ALBEF in eval mode.
        tokens: Encoded images [I, N, D].
        wanted: Bool [I, T]; pairs whose text is not held are left out.
        texts: The encoded texts.
        limit: The largest batch.
        autocast: Gives the context that forward passes run in.

    Returns:
        Which pairs they are, (image, text) int64 [P, 2], and their ITM logits of index 1, [P].
    """
    wanted = wanted & (texts.lengths > 0)
    none = torch.zeros((0, 2), dtype=torch.int64, device=tokens.device)
    where, scores = [none], [torch.zeros(0, device=tokens.device)]
    most = limit.copied_pairs(model, tokens.shape[1])
    for first, last in image_groups(wanted.sum(1).tolist(), most):
        if not wanted[first:last].any():
            continue
        with autocast():
            image = model.text_encoder.image_keys_values(tokens[first:last])
            for image_index, text in text_batches(wanted[first:last], texts.lengths, limit.pairs, limit.tokens(model)):
                where.append(torch.stack([image_index + first, text], dim=1))
                scores.append(_match(model, image, image_index, texts, text))
    return torch.cat(where), torch.cat(scores)


def _match(model: Albef, image: list[KeyValue], image_index: Tensor, texts: Texts, text: Tensor) -> Tensor:
    context = image if image[0][0].shape[0] == 1 else select_images(image, image_index)
    return model.match(*texts.padded(text), context, fusion_started=True)[:, 1].float()
