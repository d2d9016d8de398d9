import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_albef import CONFIG

from pela_vl.base.errors import UserError
from pela_vl.data.loader import BadImageCounter, EpochSampler, make_loader
from pela_vl.data.sets.entailment import EntailmentCollate, EntailmentEval, EntailmentPairs
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pela_vl.data.transforms import eval_transform, train_transform
from pela_vl.models.albef.entailment import build_entailment
from pela_vl.models.ema import EmaModel
from pela_vl.workloads.entailment import EntailmentStep


@pytest.fixture
def root(tmp_path):
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    return tmp_path


def entries():
    return [
        {"image": "0", "sentence": "Two men; on the LEFT!", "label": "entailment"},
        {"image": "1.jpg", "sentence": "a-dog", "label": "contradiction"},
        {"image": "0", "sentence": "nobody", "label": "neutral"},
        {"image": "2", "sentence": "A cat (sleeping).", "label": "entailment"},
        {"image": "3", "sentence": "x", "label": "neutral"},
    ]


def write(root, content):
    (root / "list.json").write_text(json.dumps(content))
    return root / "list.json"


def pairs(root, transform=None, content=None, **options):
    return EntailmentPairs([write(root, content or entries())], root, transform or eval_transform(16), **options)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([*SPECIAL_TOKENS, "two", "men", "on", "the", "left", "right", "a", "dog", "nobody", "x"])


def test_items_are_their_entries_cleaned(root):
    data = pairs(root)
    samples = [data[(0, i)] for i in range(5)]
    assert [s.sentence for s in samples] == ["two men on the left", "a dog", "nobody", "a cat sleeping", "x"]
    assert [s.target for s in samples] == [2, 0, 1, 2, 1]
    assert [(s.key, s.index, s.bad) for s in samples] == [((0, i), i, ()) for i in range(5)]
    assert torch.equal(samples[0].image, samples[2].image)
    assert pairs(root, max_words=2)[(0, 0)].sentence == "two men"


def test_items_are_a_function_of_seed_epoch_and_index(root):
    first, again, epoch, seed = (
        pairs(root, train_transform(16), seed=s)[(e, 1)] for s, e in ((1, 2), (1, 2), (1, 3), (2, 2))
    )
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, epoch.image) and not torch.equal(first.image, seed.image)


def test_a_flip_swaps_left_and_right(root):
    assert pairs(root, train_transform(16, 1, 1.0, False))[(0, 0)].sentence == "two men on the right"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": "Entailment"}, "entry 1: field 'label': 'Entailment' is none of contradiction, neutral, entailment"),
        ({"label": 2}, "entry 1: field 'label': wants a string, got an integer"),
        ({"sentence": "..."}, "entry 1: field 'sentence' of image 1.jpg: no word"),
        ({"image": "../1"}, "entry 1: field 'image': .* not below the image root"),
    ],
)
def test_bad_entries_name_file_entry_and_field(root, change, message):
    content = entries()
    content[1] |= change
    for make in (lambda: pairs(root, content=content), lambda: EntailmentEval(write(root, content), root, None)):
        with pytest.raises(UserError, match=message) as caught:
            make()
        assert str(caught.value).startswith(str(root / "list.json"))


def test_unreadable_pictures_bring_the_next_entry_with_its_label(root, tokenizer):
    (root / "1.jpg").write_bytes(b"<html>")
    sample = pairs(root)[(0, 1)]
    assert (sample.index, sample.sentence, sample.target) == (2, "nobody", 1)
    data = pairs(root)
    (batch,) = make_loader(data, EpochSampler(5, 5), EntailmentCollate(tokenizer, 9))
    assert sorted(batch.indices.tolist()) == [0, 2, 2, 3, 4] and batch.replaced == 1
    with pytest.raises(UserError, match=r"1 of 5 samples .*1\.jpg"):
        BadImageCounter(0).update(batch)


def test_batch_fits_the_objective(root, tokenizer):
    """The batch is what one training step reads, and has what the engine asks of every batch."""
    data = pairs(root)
    batch = EntailmentCollate(tokenizer, 4)([data[(0, i)] for i in range(3)])
    assert len(batch) == 3 and batch.targets.tolist() == [2, 0, 1]
    assert batch.ids.tolist() == [[2, 5, 6, 7], [2, 11, 12, 0], [2, 13, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.to("meta").targets.device.type == "meta"
    torch.manual_seed(0)
    config = replace(CONFIG, image_size=16, vocab_size=tokenizer.vocab_size).for_task("entailment")
    model = build_entailment(config)
    step = EntailmentStep(model, EmaModel(model))
    output = step(batch, step.prepare(batch, 0.4, True))
    assert output.terms["ce"].isfinite()


def test_an_evaluation_has_every_picture_once(root):
    data = EntailmentEval(write(root, entries()), root, eval_transform(16))
    assert list(data.images) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert data.texts == ["two men on the left", "a dog", "nobody", "a cat sleeping", "x"]
    assert data.text2image.tolist() == [0, 1, 0, 2, 3] and data.image2texts == [[0, 2], [1], [3], [4]]
    assert data.targets.tolist() == [2, 0, 1, 2, 1] and data.targets.dtype == np.int64
    assert torch.equal(data[1], pairs(root)[(0, 1)].image)
    (root / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"3\.jpg: no such file \(.*list\.json: entry 4\)"):
        EntailmentEval(write(root, entries()), root, eval_transform(16))
