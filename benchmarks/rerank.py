"""Re-ranking 1,000 images and 5,000 texts at 384 px, 128 candidates a query: our loop against the published one."""

from contextlib import nullcontext

import torch

from benchmarks.models import albef_base, caption_lengths
from benchmarks.published import rerank_image, text_states
from benchmarks.table import Row, medians
from pela_vl.base.distributed import World
from pela_vl.evaluation.reranking import BatchLimit, candidates, encode_texts, match_images
from pela_vl.models.albef.albef import Albef

IMAGES, TEXTS, K, PIXELS, LONGEST = 1000, 5000, 128, 384, 30
LIMIT = BatchLimit(pairs=256, mebibytes=16.0)
TARGETS = {"dense": 8.0, "low rank": 6.0}


def measure(quick: bool) -> list[Row]:
    rows = []
    for kind, target in TARGETS.items():
        rows.append(_compare(albef_base(PIXELS, kind == "low rank"), kind, target, quick))
    return rows


def pairs_a_loop() -> tuple[int, int]:
    """(published, ours): scored pairs in all, for random features. There too an image's 128 best of 5,000 texts nearly all
    have that image among their 128 best of 1,000, so one direction costs next to nothing beside the other."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 256, generator=generator) for n in (IMAGES, TEXTS))
    by_image, by_text = candidates(image @ text.T, K)
    return int(by_image.sum() + by_text.sum()), int((by_image | by_text).sum())


@torch.no_grad()
def _compare(model: Albef, kind: str, target: float, quick: bool) -> Row:
    repeats, few, many = (1, 8, 192) if quick else (3, 16, 384)
    published, ours = pairs_a_loop()
    lengths = caption_lengths(many)
    ids = torch.randint(1000, 30000, (many, LONGEST), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    image = model.visual_encoder(torch.randn(1, 3, PIXELS, PIXELS)).tokens
    world, everything = World(0, 1, torch.device("cpu"), False), torch.arange(many)

    def encode():
        return encode_texts(model, ids, mask, everything, 64, world, nullcontext, True)[0]

    def match():
        return match_images(model, image, torch.ones(1, many, dtype=torch.bool), texts, LIMIT, nullcontext)

    texts = encode()
    padded = text_states(model, ids[:few], mask[:few])[-1]
    seconds = medians(
        {
            "published": lambda: rerank_image(model, padded, mask[:few], image[0]),
            "published text": lambda: text_states(model, ids[:few], mask[:few]),
            "keys": lambda: model.text_encoder.image_keys_values(image),
            "match": match,
            "encode": encode,
        },
        repeats,
    )
    where, scores = match()
    both = rerank_image(model, padded, mask[:few], image[0])
    own = scores[torch.argsort(where[:, 1])][:few]
    torch.testing.assert_close(own, both, rtol=1e-3, atol=1e-3)
    before = published * seconds["published"] / few + TEXTS * seconds["published text"] / few
    a_pair = (seconds["match"] - seconds["keys"]) / many
    after = ours * a_pair + IMAGES * seconds["keys"] + TEXTS * seconds["encode"] / many
    return Row.of(
        f"re-rank {IMAGES} x {TEXTS}, k {K}, {PIXELS} px, {kind}",
        before,
        after,
        target,
        f"extrapolated from {few} pairs of the published loop and one image with {many} texts of ours: "
        f"{published:,} pairs at {1e3 * seconds['published'] / few:.1f} ms against {ours:,} at {1e3 * a_pair:.2f} ms, "
        f"plus {1e3 * seconds['keys']:.0f} ms an image for its keys and values and the texts' own layers; without image "
        "encoding, which is the same in both",
    )
