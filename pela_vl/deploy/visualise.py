"""One image and one text: the heat map of every word by Grad-CAM on cross-attention, and how well the two match."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import read_image
from pela_vl.data.text import clean_caption
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.attribution import choose_layer, prepare_images, token_heat_maps
from pela_vl.metrics.gradcam import resize_heat
from pela_vl.models.albef.albef import Albef
from pela_vl.report.overlays import blend, grid, labelled

_LARGEST_SIDE = 512  # pixels of a panel


@dataclass
class Seen:
    """What a model sees in one image with one text.

    Args:
        image: The image, made smaller where it is large.
        text: As it was tokenised, after cleaning.
        match: ITM probability, 0 to 1.
        similarity: ITC cosine, -1 to 1.
        whole: Mean heat map [H, W] over all tokens, [CLS] included, as grounding uses it.
        words: Each word with its heat map [H, W].
    """

    image: Image.Image
    text: str
    match: float
    similarity: float
    whole: np.ndarray
    words: list[tuple[str, np.ndarray]]


def look(model: Albef, tokenizer: Tokenizer, image: Path, text: str, layer: int | None = None) -> Seen:
    """Run a model, in eval mode, on an image file and a text.

    Args:
        model: An ALBEF.
        tokenizer: The one that the model was trained with.
        image: The image file.
        text: Any text; it is cleaned as captions are.
        layer: Text layer whose cross-attention is looked at, counted from the first text-only one; None for the third fusion
            layer.

    Raises:
        UserError: For an image that cannot be read, a text without words, a tokeniser with too many entries, and a layer that
            does not exist.
    """
    clean = clean_caption(text)
    if not clean:
        raise UserError(f"--text {text!r}: no word is left after cleaning")
    numbers = tokenizer.token_ids(clean)
    words = model.text_encoder.embeddings.word_embeddings.num_embeddings
    if max(numbers) >= words:
        raise UserError(f"the tokeniser has more entries than the model ({words}); give the model's with --tokenizer")
    photo, device = read_image(image), model.temp.device
    pixels = eval_transform(model.visual_encoder.patch_embed.img_size[0])(photo, None)[0][None].to(device)
    longest = model.text_encoder.embeddings.position_embeddings.num_embeddings
    ids, mask = (part.to(device) for part in tokenizer.encode([clean], longest))
    layer = choose_layer(model, "itm", layer)
    prepared = prepare_images(model, pixels, "itm", layer, nullcontext)
    one = torch.zeros(1, dtype=torch.int64, device=device)
    maps, logits = token_heat_maps(model, prepared, one, ids, mask, layer, nullcontext)
    with torch.no_grad():
        image_feature = model.image_feature(model.visual_encoder(pixels).tokens)
        text_feature = model.text_feature(model.text_encoder.encode(ids, mask).tokens)
    shown = photo.copy()
    shown.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BICUBIC)
    pieces = [tokenizer.entries[i] for i in ids[0, 1:].tolist()]
    groups = word_groups(pieces)
    by_word = torch.stack([maps[0].mean(0), *(maps[0, [1 + k for k in group]].mean(0) for group in groups)])
    heat = resize_heat(by_word, shown.height, shown.width).cpu().numpy()
    names = ["".join(pieces[k].removeprefix("##") for k in group) for group in groups]
    match, similarity = logits.softmax(1)[0, 1].item(), (image_feature * text_feature).sum().item()
    return Seen(shown, clean, match, similarity, heat[0], list(zip(names, heat[1:], strict=True)))


def word_groups(pieces: list[str]) -> list[list[int]]:
    """Indices of word pieces by word: a piece that starts with ## goes on with the word before it."""
    groups: list[list[int]] = []
    for k, piece in enumerate(pieces):
        if piece.startswith("##") and groups:
            groups[-1].append(k)
        else:
            groups.append([k])
    return groups


def figure(seen: Seen) -> Image.Image:
    """The image with its matching score, the whole text's heat map, and one panel a word."""
    panels = [
        labelled(seen.image, f"match {seen.match:.3f}"),
        labelled(blend(seen.image, seen.whole), seen.text),
        *(labelled(blend(seen.image, heat), word) for word, heat in seen.words),
    ]
    return grid(panels)
