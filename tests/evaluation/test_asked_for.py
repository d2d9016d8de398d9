"""What an evaluation asks of its loader, its model and its user: workers, batches, contexts, progress."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from grounding_data import build, load
from grounding_data import tokenizer as grounding_tokenizer
from test_answering import parts  # noqa: F401
from test_classifying import Data as ClassData
from test_classifying import Model as Classifier
from test_detecting import Data as DetectionData
from test_detecting import Model as Detector
from test_localisation import make_model
from test_retrieval_scores import MAX_TOKENS, make_data, tokenizer
from tiny_albef import tiny_albef
from tiny_runs import ONE
from torch import nn

from pela_vl.evaluation import answering, classifying, detection, encoders, inference, localisation, retrieval
from pela_vl.evaluation.reranking import BatchLimit, candidates, encode_images, image_groups
from pela_vl.lowrank import LowRankLinear, PivotedLinear
from pela_vl.settings import EvalSettings, GroundingSettings


def test_images_are_read_by_the_workers_that_were_asked_for(parts, monkeypatch):  # noqa: F811
    asked = []

    def loader(data, indices, *more):
        asked.append((list(indices), more[-2:]))
        raise InterruptedError

    for module in (classifying, detection):
        monkeypatch.setattr(module, "make_image_loader", loader)
    monkeypatch.setattr(answering, "make_loader", loader)
    answerer, questions = parts
    for run in (
        lambda: classifying.classify(Classifier(), ClassData(), ONE, nullcontext, 5, 3),
        lambda: detection.detect_all(Detector(), DetectionData(), ONE, nullcontext, 2),
        lambda: answering.answer_questions(answerer, questions, ONE, 4),
    ):
        with pytest.raises(InterruptedError):
            run()
    assert asked == [
        (list(range(23)), (5, 3)),
        ([0, 1, 2, 3], (1, 2)),
        ([[number] for number in range(6)], (answering._only, 4)),
    ]


def test_without_workers_asked_for_there_are_none(parts, tmp_path, monkeypatch):  # noqa: F811
    asked = []

    def loader(data, indices, *more):
        asked.append(more[-1])
        raise InterruptedError

    for module in (detection, localisation, retrieval):
        monkeypatch.setattr(module, "make_image_loader", loader)
    monkeypatch.setattr(answering, "make_loader", loader)
    answerer, questions = parts
    model, data = tiny_albef(), make_data(tmp_path)
    for run in (
        lambda: detection.detect_all(Detector(), DetectionData(), ONE, nullcontext),
        lambda: answering.answer_questions(answerer, questions, ONE),
        lambda: localisation.localise(model, range(4), None, GroundingSettings(), ONE, nullcontext),
        lambda: retrieval.score_retrieval(model, data, tokenizer(), EvalSettings(), ONE, MAX_TOKENS, nullcontext),
    ):
        with pytest.raises(InterruptedError):
            run()
    assert asked == [0] * 4


def test_the_main_process_says_how_far_it_is(capsys):
    classifying.classify(Classifier(), ClassData(), ONE, nullcontext, 5, 0)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("evaluate:  22% 5/23") and said[-1].startswith("evaluate: 100% 23/23")
    assert "image/s" in said[-1] and len(said) == 2
    detection.detect_all(Detector(), DetectionData(), ONE, nullcontext)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("detect:  25% 1/4") and said[-1].startswith("detect: 100% 4/4") and "image/s" in said[-1]


class Contexts:
    """A context that counts how often it was entered and whether it is open."""

    def __init__(self) -> None:
        self.entered, self.open = 0, False

    @contextmanager
    def __call__(self):
        self.entered, self.open = self.entered + 1, True
        try:
            yield
        finally:
            self.open = False


def watched(model: nn.Module, context: Contexts) -> list[bool]:
    """Whether the context was open, for every call of a Linear of the model."""
    seen: list[bool] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: seen.append(context.open))
    return seen


def test_every_pass_of_a_model_is_in_the_context_that_was_given(scenes, tmp_path, parts):  # noqa: F811
    context = Contexts()
    model = tiny_albef().eval()
    seen = watched(model, context)
    data = make_data(tmp_path)
    retrieval.score_retrieval(model, data, tokenizer(), EvalSettings(k_test=2, cache_mb=4e-3), ONE, MAX_TOKENS, context)
    assert len(seen) > 50 and all(seen)
    model = make_model()
    lists = build(scenes, tmp_path / "lists")
    grounding = load(scenes, lists, model)
    for score in ("itm", "itc"):
        context = Contexts()
        seen = watched(model, context)
        settings = GroundingSettings(score=score)
        localisation.expression_heat(model, grounding, grounding_tokenizer(), settings, [0], ONE.device, context)
        # the features of ITC are compared outside of it, in fp32
        assert context.entered >= 3 and len(seen) > 10 and all(seen[:10])


def test_heat_of_expressions_leaves_the_model_in_its_mode_and_uses_no_dropout(scenes, tmp_path):
    model = make_model(dropout=0.5)
    data = load(scenes, build(scenes, tmp_path), model)
    for training in (True, False):
        model.train(training)
        first, second = (
            localisation.expression_heat(
                model, data, grounding_tokenizer(), GroundingSettings(), [3, 0], ONE.device, nullcontext
            )
            for _ in range(2)
        )
        assert model.training == training and model.visual_encoder.training == training
        for one, other, k in zip(first, second, (3, 0), strict=True):
            photo = data.images[data.expressions[k].image]
            assert one.shape == (photo.height, photo.width) and torch.equal(one, other)


def test_expressions_come_in_the_batches_that_were_asked_for(scenes, tmp_path, monkeypatch):
    model = make_model()
    data = load(scenes, build(scenes, tmp_path), model)
    sizes, original = [], localisation.heat_maps
    monkeypatch.setattr(
        localisation, "heat_maps", lambda m, p, index, *rest: sizes.append(len(index)) or original(m, p, index, *rest)
    )
    localisation.localise(
        model, data, grounding_tokenizer(), GroundingSettings(image_batch=2, pair_batch=3), ONE, nullcontext
    )
    counts = [sum(len(data.by_image[k]) for k in range(n, min(n + 2, len(data)))) for n in range(0, len(data), 2)]
    assert sizes == [size for count in counts for size in [3] * (count // 3) + ([count % 3] if count % 3 else [])]


def test_images_of_retrieval_are_counted_once_encoded_and_once_matched(tmp_path):
    data, model = make_data(tmp_path), tiny_albef().eval()

    def steps(**settings) -> list[int]:
        seen: list[int] = []
        given = EvalSettings(k_test=2, image_batch=3, **settings)
        retrieval.score_retrieval(
            model, data, tokenizer(), given, ONE, MAX_TOKENS, nullcontext, on_progress=seen.append
        )
        return seen

    assert steps() == [3, 6, 7, 10, 13, 14]
    many = steps(cache_mb=8e-3)  # several blocks of texts
    blocks = (len(many) - 3) // 3
    assert blocks > 1 and many == [3, 6, 7, *(7 + (7 * b + k) // blocks for b in range(blocks) for k in (3, 6, 7))]


def test_a_failure_leaves_the_mode_too(tmp_path):
    data, model = make_data(tmp_path), tiny_albef().train()

    def failing(done: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        retrieval.score_retrieval(
            model, data, tokenizer(), EvalSettings(k_test=2), ONE, MAX_TOKENS, nullcontext, on_progress=failing
        )
    assert model.training


def test_candidates_are_the_best_of_both_directions():
    similarity = torch.tensor([[5.0, 1.0, 4.0, 0.0], [3.0, 2.0, 6.0, 7.0], [0.5, 9.0, 0.6, 0.7]])
    by_image, by_text = candidates(similarity, 2)
    assert by_image.int().tolist() == [[1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]]
    assert by_text.int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1]]
    every = candidates(similarity, 99)
    assert all(part.all() and part.dtype == torch.bool for part in every)
    assert list(image_groups([3, 0, 0, 3, 1], 3)) == [(0, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize("fitting, sizes", [(0.5, [1] * 5), (1, [1] * 5), (2, [2, 2, 1]), (2.9, [2, 2, 1]), (9, [5])])
def test_as_many_images_go_through_the_encoder_as_the_memory_holds(fitting, sizes, monkeypatch):
    model, seen = tiny_albef().eval(), []
    patches = model.visual_encoder.pos_embed.shape[1]
    width = model.text_encoder.layers[0].output.dense.in_features
    original = model.visual_encoder.forward
    monkeypatch.setattr(model.visual_encoder, "forward", lambda x: seen.append(len(x)) or original(x))
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        found = encode_images(model, images, BatchLimit(1, (fitting + 0.01) * patches * 4 * width / 2**20))
        assert seen == sizes and found.shape[0] == 5
        torch.testing.assert_close(found, original(images).tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "low rank", "pivoted", "mixed ranks"])
@pytest.mark.parametrize("bias", [True, False])
def test_stacked_layers_give_what_each_gives(kind, bias):
    torch.manual_seed(0)
    make = {
        "dense": lambda k: nn.Linear(6, 8, bias),
        "low rank": lambda k: LowRankLinear(6, 8, 3, bias),
        "pivoted": lambda k: PivotedLinear(6, 8, 3, bias),
        "mixed ranks": lambda k: LowRankLinear(6, 8, 2 + k, bias),
    }[kind]
    layers = [make(k) for k in range(3)]
    if kind == "pivoted":
        for layer in layers:
            layer.order = torch.randperm(8)
            if bias:
                nn.init.normal_(layer.bias)
    for shape in ((4, 6), (2, 5, 6), (2, 3, 4, 6)):
        x = torch.randn(shape)
        expected = [layer(x) for layer in layers]
        stacked = encoders.Stacked(layers)
        for found, own in zip(stacked(x), expected, strict=True):
            torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)
            assert found.shape == (*shape[:-1], 8)
    assert not any(p.requires_grad for p in stacked.product.parameters())
    first = layers[0] if kind == "dense" else layers[0].down  # its weight is held once
    assert first.weight.data_ptr() == stacked.product.weight.data_ptr()


def test_a_product_is_timed_once_a_shape_and_the_shortest_counts(monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 25.0, 30.0, 34.0, 40.0, 47.0])
    monkeypatch.setattr(inference.time, "perf_counter", lambda: next(clock))
    runs = []
    assert inference._seconds(lambda: runs.append(1), torch.device("cpu")) == 1.0 and len(runs) == 5
    asked = []
    monkeypatch.setattr(
        inference, "_seconds", lambda run, device: asked.append(tuple(run().shape)) or float(len(asked) % 2)
    )
    decide = inference._timed(7)
    layers = [LowRankLinear(4, 6, 2), LowRankLinear(4, 6, 2), LowRankLinear(4, 6, 3), PivotedLinear(4, 6, 2)]
    assert [decide(layer) for layer in layers] == [False] * 4  # dense takes 1, factors 0
    assert asked == [(7, 6)] * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_dense_product_of_factors(dtype, bias):
    torch.manual_seed(0)
    for layer in (LowRankLinear(5, 9, 3, bias, dtype=dtype), PivotedLinear(5, 9, 3, bias, dtype=dtype)):
        if isinstance(layer, PivotedLinear):
            layer.order = torch.randperm(9)
        linear = inference._product(layer)
        exact = layer.float().dense_weight()
        torch.testing.assert_close(
            linear.weight, exact.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
        )
        assert linear.weight.dtype == dtype and not linear.weight.requires_grad and not linear.training
        assert (linear.bias is None) == (not bias) and (linear.in_features, linear.out_features) == (5, 9)


def test_questions_without_a_group_and_their_best_five(parts):  # noqa: F811
    answerer, data = parts
    ranked = answering.answer_questions(answerer, data, ONE)
    assert all(len(best) == 5 for best in ranked)
    for best in ranked:
        chances = [chance for _, chance in best]
        assert chances == sorted(chances, reverse=True) and len({index for index, _ in best}) == 5
        assert all(isinstance(index, int) and isinstance(chance, float) for index, chance in best)


def test_tokens_of_an_answer_at_the_limit():
    words = grounding_tokenizer()
    assert answering.make_tree(["red", "red red"], words, 4) is not None  # [CLS] red red [SEP]
    with pytest.raises(Exception, match=r"'red red red' has more than 4 tokens \(2 such answers\); raise"):
        answering.make_tree(["red", "red red red", "red red red red"], words, 4)


def test_the_scores_memory_by_device():
    model = tiny_albef()
    for given, expected in ((None, 16.0), (3.0, 3.0)):
        scorer = retrieval._Scorer(model, [], EvalSettings(pair_mb=given or 0), ONE, nullcontext, 0, print)
        assert scorer.limit.mebibytes == expected
    there = SimpleNamespace(process=0, size=1, device=SimpleNamespace(type="cuda"))
    assert retrieval._Scorer(model, [], EvalSettings(pair_mb=0), there, nullcontext, 0, print).limit.mebibytes == 512.0
    found = retrieval.RetrievalScores(np.eye(3), np.eye(3)).recall(np.arange(3))
    assert found["mean"] == 100
