"""A checkpoint's header names a vocabulary; only those that come with the package are read on its word."""

import json

import pytest
from method_runs import settings_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.ours import read_header, save_model
from pela_vl.data.tokenizer import Tokenizer, shipped_vocabularies
from pela_vl.settings import ModelSettings
from pela_vl.training import runner
from pela_vl.workloads.retrieval import Retrieval


@pytest.fixture
def trained(every_list, tmp_path):
    """Settings of an evaluation of a file whose header names `tokenizer`, a folder."""
    settings = settings_of("retrieval", "full", every_list, tmp_path / "run")
    loaded = Retrieval().load(settings, None)
    Tokenizer.load("scenes").save(tmp_path / "vocabulary")
    settings.init.checkpoint, settings.model.size, settings.model.tokenizer = (
        str(tmp_path / "m.safetensors"),
        None,
        None,
    )

    def name(tokenizer):
        loaded.header.tokenizer = tokenizer
        save_model(tmp_path / "m.safetensors", loaded.model, loaded.header)
        return settings

    return name


def test_the_shipped_vocabularies_are_listed():
    assert shipped_vocabularies() == ["bert-base-uncased", "scenes"]


@pytest.mark.parametrize("named", ["vocabulary", "/etc", "../../x", "scenes/", "."])
def test_a_header_that_names_a_place_on_this_machine_is_one_line(trained, tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    settings = trained(named)
    for act in (
        lambda: runner.evaluate(Retrieval(), settings),
        lambda: runner.train(Retrieval(), settings, resume=False),
        lambda: load_model(ModelSettings(), settings.init.checkpoint, mlm=False),
    ):
        with pytest.raises(
            UserError, match="m.safetensors was trained with the vocabulary .*set model.tokenizer"
        ) as error:
            act()
        assert "\n" not in str(error.value) and repr(named) in str(error.value)


def test_the_setting_names_the_vocabulary_and_then_the_run_is_as_before(trained, tmp_path):
    expected = runner.evaluate(Retrieval(), trained("scenes"))
    settings = trained(str(tmp_path / "vocabulary"))
    settings.model.tokenizer = str(tmp_path / "vocabulary")
    assert runner.evaluate(Retrieval(), settings) == expected
    settings.output, settings.train.steps = str(tmp_path / "second"), 1
    runner.train(Retrieval(), settings, resume=False)  # its own test of the weights it wrote goes by the setting too
    assert read_header(tmp_path / "second/last.safetensors").tokenizer == str(tmp_path / "vocabulary")


def test_a_header_without_a_vocabulary_is_the_default_one(trained, tmp_path):
    settings = trained("scenes")
    state = load_file(settings.init.checkpoint)
    with safe_open(settings.init.checkpoint, "pt") as file:
        card = json.loads(file.metadata()["pela_vl"])
    card["header"]["tokenizer"] = None
    save_file(state, settings.init.checkpoint, {"pela_vl": json.dumps(card)})
    assert load_model(ModelSettings(), settings.init.checkpoint, mlm=False).header.tokenizer is None
