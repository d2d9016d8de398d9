"""What the memory settings bound is measured on the tensors themselves: at the limit it fits, one more does not."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny_albef import tiny_albef

from pela_vl.base.distributed import World
from pela_vl.base.errors import UserError
from pela_vl.evaluation import localisation, retrieval
from pela_vl.evaluation.attribution import choose_layer
from pela_vl.evaluation.reranking import BatchLimit, Texts, image_groups, match_images
from pela_vl.models.albef.attention import select_images
from pela_vl.settings import EvalSettings, GroundingSettings

MIB = 2**20


@pytest.mark.parametrize("mebibytes", [0.004, 0.05, 1.0])
def test_the_widest_activation_of_a_batch_fits_and_of_one_more_token_does_not(mebibytes):
    model = tiny_albef()
    tokens = BatchLimit(99, mebibytes).tokens(model)
    dense = model.text_encoder.layers[0].intermediate
    sizes = [dense(torch.zeros(1, n, 24)).numel() * 4 for n in (tokens, tokens + 1)]
    assert sizes[0] <= mebibytes * MIB < sizes[1]
    assert BatchLimit(99, 1e-9).tokens(model) == 1


@pytest.mark.parametrize("mebibytes", [0.02, 0.3])
def test_copies_of_keys_and_values_fit_and_one_pair_more_does_not(mebibytes):
    model = tiny_albef()
    image = model.visual_encoder(torch.zeros(1, 3, 32, 32)).tokens
    kept = model.text_encoder.image_keys_values(image)
    pairs = BatchLimit(10**9, mebibytes).copied_pairs(model, image.shape[1])

    def copied(count: int) -> int:
        layers = select_images(kept, torch.zeros(count, dtype=torch.int64))
        return sum(4 * tensor.numel() for layer in layers for tensor in layer[:2])

    assert copied(pairs) <= mebibytes * MIB < copied(pairs + 1)
    assert BatchLimit(3, mebibytes).copied_pairs(model, image.shape[1]) == 3


def blocks_of(lengths: list[int], tokens: int) -> list[list[int]]:
    """The blocks of texts for a cache whose half holds `tokens` encoded tokens."""
    model = tiny_albef()
    width = model.text_encoder.embeddings.word_embeddings.embedding_dim
    settings = EvalSettings(cache_mb=2 * 4 * width * (tokens + 0.5) / MIB)
    world = World(0, 1, torch.device("cpu"), launched=False)
    scorer = retrieval._Scorer(model, [], settings, world, nullcontext, 0, lambda done: None)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return [block.tolist() for block in scorer._text_blocks(mask)]


def test_texts_are_cut_into_blocks_where_the_half_of_the_cache_is_full():
    # ends of the texts: 2, 6, 7, 10, 12 tokens
    assert blocks_of([2, 4, 1, 3, 2], 6) == [[0, 1], [2, 3, 4]]
    assert blocks_of([2, 4, 1, 3, 2], 7) == [[0, 1, 2], [3, 4]]
    assert blocks_of([2, 4, 1, 3, 2], 12) == [[0, 1, 2, 3, 4]]
    assert blocks_of([1, 1, 1], 0) == [[0], [1], [2]]


def test_padding_is_masked_and_repeats_no_other_text():
    texts = Texts(torch.arange(6.0)[:, None], torch.tensor([0, 2, 3]), torch.tensor([2, 1, 3]))
    tokens, mask = texts.padded(torch.tensor([2, 0, 1]))
    assert tokens[..., 0].tolist() == [[3, 4, 5], [0, 1, 1], [2, 2, 2]]
    assert mask.tolist() == [[True] * 3, [True, True, False], [True, False, False]]


def test_runs_of_images_hold_as_many_pairs_as_they_may():
    assert list(image_groups([2, 3, 1, 0, 7, 1], 5)) == [(0, 2), (2, 4), (4, 5), (5, 6)]
    assert list(image_groups([], 5)) == [] and list(image_groups([9], 5)) == [(0, 1)]


def test_the_default_layer_is_the_third_fusion_layer_or_the_last_of_fewer():
    def model(first: int, layers: int, blocks: int):
        text = SimpleNamespace(fusion_layer=first, encoder=SimpleNamespace(layer=[None] * layers))
        return SimpleNamespace(text_encoder=text, visual_encoder=SimpleNamespace(blocks=[None] * blocks))

    assert [choose_layer(model(6, layers, 12), "itm", None) for layers in (7, 8, 9, 12)] == [6, 7, 8, 8]
    assert choose_layer(model(6, 12, 12), "itc", None) == 11
    for score, layer, message in (
        ("itm", 5, "layer 5: for the ITM score the fusion layers are 6 to 11"),
        ("itm", 12, "layer 12: for the ITM score the fusion layers are 6 to 11"),
        ("itc", 12, "layer 12: for the ITC score the blocks of the image encoder are 0 to 11"),
        ("itc", -1, "layer -1: for the ITC score the blocks of the image encoder are 0 to 11"),
    ):
        with pytest.raises(UserError) as caught:
            choose_layer(model(6, 12, 12), score, layer)
        assert str(caught.value) == message
    assert choose_layer(model(6, 12, 12), "itm", 6) == 6 and choose_layer(model(6, 12, 12), "itc", 0) == 0


@pytest.mark.parametrize("part", ["retrieval", "localisation"])
def test_images_are_loaded_in_the_workers_and_batches_that_were_asked_for(monkeypatch, part):
    asked = []

    def loader(data, indices, batch, workers=0):
        asked.append((indices, batch, workers))
        raise InterruptedError

    model, world = tiny_albef(), World(0, 1, torch.device("cpu"), launched=False)
    if part == "retrieval":
        monkeypatch.setattr(retrieval, "make_image_loader", loader)
        settings = EvalSettings(image_batch=5)
        scorer = retrieval._Scorer(model, range(4), settings, world, nullcontext, 3, lambda done: None)
        with pytest.raises(InterruptedError):
            next(scorer._load(range(4)))
    else:
        monkeypatch.setattr(localisation, "make_image_loader", loader)
        with pytest.raises(InterruptedError):
            localisation.localise(model, range(4), None, GroundingSettings(image_batch=5), world, nullcontext, 3)
    assert asked == [([0, 1, 2, 3], 5, 3)]


@pytest.mark.parametrize(
    "settings, batches", [({}, [600]), ({"pair_batch": 250}, [250, 250, 100]), ({"pair_mb": 0.1}, [546, 54])]
)
def test_memory_alone_bounds_a_batch_of_pairs_unless_a_number_is_set(monkeypatch, settings, batches):
    """600 texts of one token with one image; a token's widest activation takes 48 fp32 values."""
    model, world = tiny_albef().eval(), World(0, 1, torch.device("cpu"), launched=False)
    limit = retrieval._Scorer(model, [], EvalSettings(**settings), world, nullcontext, 0, lambda done: None).limit
    seen, match = [], model.match
    monkeypatch.setattr(
        model, "match", lambda tokens, *rest, **more: seen.append(len(tokens)) or match(tokens, *rest, **more)
    )
    texts = Texts(torch.randn(600, 24), torch.arange(600), torch.ones(600, dtype=torch.int64))
    with torch.no_grad():
        image = model.visual_encoder(torch.zeros(1, 3, 32, 32)).tokens
    where, scores = match_images(model, image, torch.ones(1, 600, dtype=torch.bool), texts, limit, nullcontext)
    assert seen == batches and len(where) == len(scores) == 600
