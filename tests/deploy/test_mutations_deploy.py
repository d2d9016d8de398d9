"""Partial answers belong to one checkpoint; a word's heat is that of its own pieces."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_albef import tiny_albef

from pela_vl.data.tokenizer import Tokenizer
from pela_vl.deploy import submission, visualise
from pela_vl.settings import Settings


def test_partial_answers_depend_on_the_checkpoints_content(tmp_path):
    settings = Settings()
    settings.init.checkpoint, settings.vqa.answer_list = str(tmp_path / "model"), str(tmp_path / "answers")
    for name in ("model", "answers", "questions"):
        (tmp_path / name).write_bytes(b"one")
    before = submission._about(settings, tmp_path / "questions", None)
    for name, key in (("model", "checkpoint"), ("answers", "answer list"), ("questions", "question file")):
        (tmp_path / name).write_bytes(b"two")
        after = submission._about(settings, tmp_path / "questions", None)
        assert [changed for changed in before if before[changed] != after[changed]] == [key]
        before = after


@pytest.mark.parametrize("subset, said", [("test-dev2015", True), ("test2015", False)])
def test_a_check_against_test_dev_says_that_the_server_wants_all_of_test(tmp_path, capsys, subset, said):
    from tasks.vqa_submission import check

    about = {"data_type": "mscoco", "data_subtype": subset}
    questions = [{"question_id": 1, "image_id": 2, "question": "What?"}]
    (tmp_path / "q.json").write_text(json.dumps(about | {"questions": questions}))
    (tmp_path / "r.json").write_text(json.dumps([{"question_id": 1, "answer": "cat"}]))
    check(tmp_path / "r.json", tmp_path / "q.json", None)
    assert ("it wants the answers to all of test2015" in capsys.readouterr().out) == said


def test_every_word_has_the_heat_of_its_own_pieces(tmp_path, monkeypatch):
    """Token t's map is t everywhere: [CLS] 0, then one number a piece."""
    tokenizer = Tokenizer.load("bert-base-uncased")
    model = tiny_albef(vocab_size=tokenizer.vocab_size, max_positions=32).eval()

    def numbered(model, prepared, owner, ids, mask, layer, autocast):
        tokens = torch.arange(ids.shape[1], dtype=torch.float32)
        return tokens[None, :, None, None].expand(1, -1, 4, 4), torch.zeros(1, 2)

    monkeypatch.setattr(visualise, "token_heat_maps", numbered)
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    seen = visualise.look(model, tokenizer, tmp_path / "x.png", "a skateboarder somersaulting beside trees")
    pieces = tokenizer.encode([seen.text], 32)[0][0, 1:].tolist()
    groups = visualise.word_groups([tokenizer.entries[i] for i in pieces])
    assert len(pieces) > len(groups) == len(seen.words) == 5
    for (_, heat), group in zip(seen.words, groups, strict=True):
        assert np.unique(heat.round(4)) == pytest.approx(np.mean([1 + k for k in group]))
    assert seen.whole.mean() == pytest.approx(np.mean(range(1 + len(pieces))), rel=1e-3)
