"""What a run takes from the file that it starts from, and what it says of the rest."""

import pytest
import torch
from method_runs import settings_of
from published_files import QUEUE, VOCAB, fill, published_shapes
from tiny_albef import tiny_batch
from tiny_runs import ONE

from pela_vl.checkpoints.ours import EMA, read_header, save_model
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pela_vl.settings import MethodSettings, Settings
from pela_vl.training import runner
from pela_vl.training.assemble import assemble
from pela_vl.workloads.pretraining import Pretraining
from pela_vl.workloads.retrieval import Retrieval


@pytest.fixture
def published(tmp_path):
    """published(file): settings that start from a file with the published key set, and the file's tensors."""
    Tokenizer([*SPECIAL_TOKENS, *(f"w{i}" for i in range(VOCAB - 5))]).save(tmp_path / "tokenizer")

    def make(file):
        state = fill(published_shapes(file))
        state["temp"], state["queue_ptr"] = torch.tensor(0.07), torch.tensor([5])
        if "idx_queue" in state:
            state["idx_queue"] = torch.arange(QUEUE)[None]
        torch.save({"model": state}, tmp_path / f"{file}.pth")
        settings = Settings(method=MethodSettings("full"))
        settings.init.checkpoint, settings.model.tokenizer = str(tmp_path / f"{file}.pth"), str(tmp_path / "tokenizer")
        settings.losses.queue_size = QUEUE
        return settings, state

    return make


@pytest.mark.parametrize("file", ["pretrain", "pretrain_lowrank", "retrieval"])
def test_retrieval_starts_with_the_queues_of_a_published_file(published, file):
    settings, state = published(file)
    trainee = assemble(Retrieval(), settings, ONE)
    queue = trainee.step.queue
    assert torch.equal(queue.image, state["image_queue"]) and torch.equal(queue.text, state["text_queue"])
    assert queue.pointer.item() == 5
    expected = state["idx_queue"].flatten() if file == "retrieval" else torch.full((QUEUE,), -100)
    assert torch.equal(queue.ids, expected)  # a pre-training file has no image ids: none of its entries is a positive
    assert not [note for note in trainee.notes if "queue" in note]
    queue.push(torch.ones(2, 8), torch.ones(2, 8), torch.tensor([1, 2]))
    assert torch.equal(queue.image[:, 4], state["image_queue"][:, 4]) and bool((queue.image[:, 5:7] == 1).all())


def test_queues_of_another_size_are_left_behind_and_it_is_said(published):
    settings, state = published("pretrain")
    settings.losses.queue_size = QUEUE - 6
    trainee = assemble(Retrieval(), settings, ONE)
    queue = trainee.step.queue
    assert queue.image.shape[1] == QUEUE - 6 and queue.pointer.item() == 0
    torch.testing.assert_close(queue.image.norm(dim=0), torch.ones(QUEUE - 6))  # random unit vectors
    assert not torch.equal(queue.image, state["image_queue"][:, : QUEUE - 6])
    assert [note for note in trainee.notes if "queue" in note] == [
        f"feature queues: left behind ({QUEUE} entries; losses.queue_size is {QUEUE - 6})"
    ]


def test_factors_made_in_a_run_leave_the_files_ema_weights_behind_and_it_is_said(published):
    settings, _ = published("pretrain")
    assert not [note for note in assemble(Retrieval(), settings, ONE).notes if "EMA" in note]
    settings.compress.kappa = 3.0
    trainee = assemble(Retrieval(), settings, ONE)
    assert [note for note in trainee.notes if "EMA" in note] == [
        "EMA weights: left behind (compress.kappa changes the layers); the EMA model starts as a copy"
    ]
    for name, value in trainee.step.ema.model.state_dict().items():
        assert torch.equal(value, trainee.run.model.state_dict()[name]), name


def started(settings, task, capsys):
    runner.train(task, settings, resume=False)
    output = capsys.readouterr()
    return [line for line in (output.out + output.err).splitlines() if line.startswith("init.checkpoint: ")]


def test_a_run_prints_a_line_for_what_it_leaves_behind(every_list, tmp_path, capsys):
    settings = settings_of("retrieval", "full", every_list, tmp_path / "first")
    settings.train.steps, settings.data.test = 1, None
    model = Retrieval().load(settings, None).model
    assert started(settings, Retrieval(), capsys) == []
    file = tmp_path / "with_ema.safetensors"
    header = read_header(tmp_path / "first/last.safetensors")
    save_model(file, model, header, extra={EMA + name: value.clone() for name, value in model.state_dict().items()})
    settings.output, settings.init.checkpoint = str(tmp_path / "second"), str(file)
    settings.model.size, settings.compress.kappa, settings.losses.fd, settings.losses.rwp = None, 3.0, 0.0, 0.0
    assert started(settings, Retrieval(), capsys) == [
        "init.checkpoint: EMA weights: left behind (compress.kappa changes the layers); the EMA model starts as a copy"
    ]
    settings.output, settings.compress.kappa = str(tmp_path / "third"), None
    assert started(settings, Retrieval(), capsys) == []


@pytest.mark.parametrize(("task", "clamped"), [(Pretraining, True), (Retrieval, False)])
@pytest.mark.parametrize("outside", [0.0005, 0.7])
def test_a_temperature_out_of_range_is_clamped_in_pretraining_alone(published, task, clamped, outside):
    settings, _ = published("pretrain")
    settings.losses.mlm = 1.0 if clamped else None
    trainee = assemble(task(), settings, ONE)
    step = trainee.step
    with torch.no_grad():
        step.model.temp.fill_(outside)
    batch = tiny_batch(3, length=7, mlm=clamped)
    batch.images.resize_(3, 3, 16, 16).normal_()
    with trainee.run.autocast():
        step.prepare(batch, 0.4, True)
    assert step.model.temp.item() == pytest.approx(min(max(outside, 0.001), 0.5) if clamped else outside)
