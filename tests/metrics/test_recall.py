import numpy as np
import pytest
import torch

from pela_vl.metrics.recall import image_ranks, recall_from_scores, text_ranks


def brute_force(i2t, t2i, text2image):
    """Recall by sorting candidates one query at a time, the wrong ones first among equals."""
    result = {}
    images, texts = len(i2t), len(t2i)
    for k in (1, 5, 10):
        hits = 0
        for image in range(images):
            order = sorted(range(texts), key=lambda t, i=image: (-i2t[i][t], text2image[t] == i))
            hits += any(text2image[text] == image for text in order[:k])
        result[f"tr{k}"] = 100 * hits / images
        hits = 0
        for text in range(texts):
            order = sorted(range(images), key=lambda i, t=text: (-t2i[t][i], i == text2image[t]))
            hits += text2image[text] in order[:k]
        result[f"ir{k}"] = 100 * hits / texts
    result["mean"] = sum(result.values()) / 6
    return result


@pytest.mark.parametrize("seed", range(30))
def test_equals_brute_force(seed):
    generator = np.random.default_rng(seed)
    images = int(generator.integers(1, 30))
    text2image = generator.permutation(np.concatenate([np.arange(images), generator.integers(0, images, 40)]))
    texts = len(text2image)
    i2t, t2i = generator.normal(size=(images, texts)), generator.normal(size=(texts, images))
    t2i[np.arange(texts), text2image] += 1.5  # so that neither all nor nothing is found
    if seed % 2:  # many ties
        i2t, t2i = i2t.round(), t2i.round()
    assert recall_from_scores(i2t, t2i, text2image) == pytest.approx(brute_force(i2t, t2i, text2image))


def test_several_blocks_of_rows_and_tensors():
    generator = np.random.default_rng(0)
    text2image = np.repeat(np.arange(300), 2)
    similarity = generator.normal(size=(300, 600)).astype(np.float32)
    similarity[text2image, np.arange(600)] += 3
    result = recall_from_scores(torch.tensor(similarity), torch.tensor(similarity.T), torch.tensor(text2image))
    assert result == pytest.approx(brute_force(similarity.tolist(), similarity.T.tolist(), text2image.tolist()))
    assert 10 < result["tr1"] < 90 and 10 < result["ir1"] < 90


def test_perfect_and_worst_scores():
    text2image = np.repeat(np.arange(20), 5)
    right = (np.arange(20)[:, None] == text2image[None]).astype(float)
    assert set(recall_from_scores(right, right.T, text2image).values()) == {100.0}
    assert set(recall_from_scores(-right, -right.T, text2image).values()) == {0.0}


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    text2image = np.arange(20)
    result = recall_from_scores(np.full((20, 20), -100.0), np.zeros((20, 20)), text2image)
    assert set(result.values()) == {0.0}


def test_pairs_outside_the_scored_ones_are_not_found():
    scores = np.full((12, 12), -100.0)
    scores[:, :2] = 1.0  # two candidates were scored for each query, the right one for the first two only
    result = recall_from_scores(scores, scores, np.arange(12))
    assert result["tr10"] == pytest.approx(100 * 2 / 12)


def test_with_few_candidates_the_wide_cuts_are_trivial():
    scores = -np.eye(4)
    result = recall_from_scores(scores, scores, np.arange(4))
    assert [result[name] for name in ("tr1", "tr5", "tr10", "ir1", "ir5", "ir10")] == [0, 100, 100, 0, 100, 100]


def test_ranks_say_where_each_query_found_its_match():
    i2t = np.array([[3, 2, 1, 0], [9, 8, 7, 7]])
    assert text_ranks(i2t, [0, 1, 1, 0]).tolist() == [0, 1]
    assert image_ranks(i2t.T, [0, 1, 1, 0]).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("i2t", "text2image", "message"),
    [
        (np.zeros((2, 3)), [0, 1], "do not go with"),
        (np.zeros((2, 3)), [0, 0, 0], "image 1 has no text"),
        (np.zeros((2, 3)), [0, 1, 2], "outside 0..1"),
        (np.zeros((0, 0)), [], "do not go with"),
        (np.array([[0, 1], [0, np.nan]]), [0, 1], r"score \[1, 1\] is NaN"),
    ],
)
def test_senseless_input_is_refused(i2t, text2image, message):
    text2image = np.array(text2image, dtype=int)
    for function, scores in ((text_ranks, i2t), (image_ranks, i2t.T)):
        with pytest.raises(ValueError, match=message):
            function(scores, text2image)
