"""Retrieval scores against the published loop written out literally."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_albef import tiny_albef

from pela_vl.base.distributed import World
from pela_vl.data.sets.captions import RetrievalEval
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.reranking import text_batches
from pela_vl.evaluation.retrieval import score_retrieval
from pela_vl.settings import EvalSettings

IMAGES, MAX_TOKENS = 7, 9
ONE = World(0, 1, torch.device("cpu"), launched=False)


def make_data(folder) -> RetrievalEval:
    """Images with one to three captions of different lengths, some longer than MAX_TOKENS."""
    content, rng = [], np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        captions = [" ".join(f"w{rng.integers(45)}" for _ in range(rng.integers(1, 12))) for _ in range(1 + i % 3)]
        content.append({"image": f"{i}.png", "caption": captions})
    (folder / "list.json").write_text(json.dumps(content))
    return load_data(folder)


def load_data(folder) -> RetrievalEval:
    return RetrievalEval(folder / "list.json", folder, eval_transform(32))


def tokenizer() -> Tokenizer:
    return Tokenizer([*SPECIAL_TOKENS, *(f"w{i}" for i in range(45))])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("pictures"))


@torch.no_grad()
def published_scores(model, data, k):
    """As published: padded to one length, image by image and text by text, the image encoded anew for every text."""
    ids, mask = tokenizer().encode(data.texts, MAX_TOKENS)
    texts = model.text_encoder.encode(ids, mask).tokens
    images = model.visual_encoder(torch.stack([data[i] for i in range(len(data))])).tokens
    similarity = model.image_feature(images) @ model.text_feature(texts).t()

    def itm(text_rows, image_rows):
        image = model.text_encoder.image_keys_values(images[image_rows])
        return model.itm_head(model.text_encoder.fuse(texts[text_rows], mask[text_rows], image).tokens[:, 0])[:, 1]

    matrices = []
    for sims, by_image in ((similarity, True), (similarity.t(), False)):
        scores = torch.full(sims.shape, -100.0)
        for i, row in enumerate(sims):
            _, top = row.topk(k=min(k, len(row)), dim=0)
            own = torch.full_like(top, i)
            scores[i, top] = itm(top, own) if by_image else itm(own, top)
        matrices.append(scores.numpy())
    return matrices


def score(model, data, world=ONE, **settings):
    return score_retrieval(model, data, tokenizer(), EvalSettings(**settings), world, MAX_TOKENS, nullcontext)


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("k, pair_batch", [(1, 1), (3, 2), (3, 5), (3, 1000), (128, 4), (128, 1000)])
def test_scores_are_the_published_ones(data, k, pair_batch, low_rank):
    model = tiny_albef(low_rank=low_rank).eval()
    scores = score(model, data, k_test=k, image_batch=3, text_batch=4, pair_batch=pair_batch)
    for own, other in zip((scores.image_to_text, scores.text_to_image), published_scores(model, data, k), strict=True):
        assert own.shape == other.shape
        assert ((own == -100) == (other == -100)).all()
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)
    assert len(np.unique(scores.image_to_text)) > IMAGES


@pytest.mark.parametrize(
    "bound", [{"cache_mb": 1e-6}, {"cache_mb": 4e-3}, {"cache_mb": 1e-2}, {"pair_mb": 1e-6}, {"pair_mb": 3e-3}]
)
def test_bounds_on_memory_change_no_score(data, bound):
    model = tiny_albef(low_rank=True).eval()
    scores = score(model, data, k_test=3, image_batch=2, text_batch=4, **bound)
    for own, other in zip((scores.image_to_text, scores.text_to_image), published_scores(model, data, 3), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_encoded_again(data, monkeypatch):
    model, encoded = tiny_albef().eval(), []
    original = model.visual_encoder.forward
    monkeypatch.setattr(model.visual_encoder, "forward", lambda x: (encoded.append(len(x)), original(x))[1])
    one = 5 * 24 * 4 / 2**20  # an image of 5 tokens of 24 fp32 numbers, in MiB
    score(model, data, k_test=3, image_batch=1, cache_mb=1000 * one)
    assert sum(encoded) == IMAGES
    encoded.clear()
    score(model, data, k_test=3, image_batch=1, cache_mb=12 * one)
    assert IMAGES < sum(encoded)


def test_batches_keep_to_their_limits():
    wanted = torch.rand(4, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    lengths = torch.randint(1, 9, (30,), generator=torch.Generator().manual_seed(1))
    for pairs, tokens in ((6, 20), (100, 20), (3, 1000), (100, 9), (100, 1)):
        seen, batches = torch.zeros_like(wanted), list(text_batches(wanted, lengths, pairs, tokens))
        for image, text in batches:
            assert len(text) <= pairs and (len(text) == 1 or len(text) * lengths[text].max() <= tokens)
            assert not seen[image, text].any()
            seen[image, text] = True
        assert torch.equal(seen, wanted)
        longest = [int(lengths[text].max()) for _, text in batches]
        assert longest == sorted(longest)
        for (_, text), (_, following) in zip(batches, batches[1:], strict=False):  # one pair more would not fit
            more = len(text) + 1
            assert more > pairs or more * lengths[following[0]] > tokens


def test_without_reranking_the_scores_are_similarities(data):
    model = tiny_albef().eval()
    scores = score(model, data, k_test=0, image_batch=2, text_batch=3)
    ids, mask = tokenizer().encode(data.texts, MAX_TOKENS)
    with torch.no_grad():
        text = model.text_feature(model.text_encoder.encode(ids, mask).tokens)
        image = model.image_feature(model.visual_encoder(torch.stack([data[i] for i in range(IMAGES)])).tokens)
    np.testing.assert_allclose(scores.image_to_text, (image @ text.t()).numpy(), atol=1e-6)
    np.testing.assert_array_equal(scores.text_to_image, scores.image_to_text.T)


def test_keys_and_values_are_computed_once_an_image(data, monkeypatch):
    model, seen = tiny_albef().eval(), []
    original = model.text_encoder.image_keys_values

    def counting(tokens):
        seen.append(len(tokens))
        return original(tokens)

    monkeypatch.setattr(model.text_encoder, "image_keys_values", counting)
    score(model, data, k_test=4, pair_batch=6)
    assert sum(seen) == IMAGES


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_found_and_dropout_stays_out(data, training):
    model = tiny_albef(dropout=0.5).train(training)
    first, second = (score(model, data, k_test=3).image_to_text for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert all(module.training == training for module in model.modules())


def test_progress_counts_every_image_twice(data):
    seen = []
    model = tiny_albef()
    score_retrieval(
        model, data, tokenizer(), EvalSettings(k_test=2, image_batch=3, pair_batch=5), ONE, MAX_TOKENS, nullcontext,
        on_progress=seen.append,
    )  # fmt: skip
    assert seen == sorted(seen) and seen[0] == 3 and seen[-1] == 2 * IMAGES


WORKER = """
import sys
from pathlib import Path
import numpy as np
from pela_vl.base.distributed import start, stop
from test_retrieval_scores import load_data, score
from tiny_albef import tiny_albef
folder = Path(sys.argv[1])
world = start("cpu")
for k in (0, 3):
    scores = score(tiny_albef().eval(), load_data(folder), world, k_test=k, image_batch=2, text_batch=3, pair_batch=4)
    np.savez(folder / f"scores.{k}.{world.process}.npz", i2t=scores.image_to_text, t2i=scores.text_to_image)
stop()
"""


def test_every_number_of_processes_gives_the_same_scores(tmp_path, forked_processes):
    data = make_data(tmp_path)
    forked_processes(WORKER, 3, tmp_path)
    for k in (0, 3):
        expected = score(tiny_albef().eval(), data, k_test=k)
        for rank in range(3):
            got = np.load(tmp_path / f"scores.{k}.{rank}.npz")
            np.testing.assert_allclose(got["i2t"], expected.image_to_text, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(got["t2i"], expected.text_to_image, rtol=1e-5, atol=1e-5)
