"""A run goes on under another cut of its optimiser step into processes, batches and accumulation, or says what restores it."""

import json
from dataclasses import replace

import pytest
from method_runs import settings_of

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.resume import Position
from pela_vl.data.loader import EpochSampler
from pela_vl.data.sets.shard_order import epoch_order
from pela_vl.training import engine, runner
from pela_vl.training.run_log import read_log
from pela_vl.workloads.pretraining import Pretraining

SHARDS = [13, 9, 22, 5, 17, 30]
CUTS = [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 1, 4), (1, 4, 2)]
"""batch_size, world, accumulation: eight samples an optimiser step."""


def shard_order(seed, epoch, samples):
    return epoch_order(SHARDS, seed, epoch, samples)


def samplers(cut, order):
    batch_size, world, accumulation = cut
    return [
        EpochSampler(sum(SHARDS), batch_size, process, world, 3, True, order, accumulation) for process in range(world)
    ]


def take(cut, order, start, epochs):
    """Indices of each optimiser step from a position (epoch, batch) to the end of the last epoch."""
    per_process = samplers(cut, order)
    steps, accumulation = [], cut[2]
    for epoch in range(start[0], epochs):
        for sampler in per_process:
            sampler.set_position(epoch, start[1] if epoch == start[0] else 0)
        batches = [sum((part for part in parts), []) for parts in zip(*per_process, strict=True)]
        for first in range(0, len(batches), accumulation):
            steps.append((epoch, sorted(i for b in batches[first : first + accumulation] for _, i in b)))
    return steps


@pytest.mark.parametrize("order", [None, shard_order], ids=["lists", "shards"])
@pytest.mark.parametrize("before", CUTS)
@pytest.mark.parametrize("after", CUTS)
def test_every_cut_of_a_step_sees_the_same_steps_and_goes_on_in_mid_epoch(before, after, order):
    whole = take(before, order, (0, 0), 2)
    assert whole == take(after, order, (0, 0), 2)
    done = 7  # optimiser steps, in the middle of an epoch of twelve
    stopped = Position(done, 0, done * before[2], None, before[0] * before[1], before[2])
    sampler = samplers(after, order)[0]
    again = stopped.cut_anew(sampler.global_batch, after[2], len(sampler))
    assert (again.step, again.epoch, again.batch) == (done, 0, done * after[2])
    assert whole[done:] == take(after, order, (again.epoch, again.batch), 2)
    seen = [index for epoch, step in whole if epoch == 0 for index in step]
    assert len(seen) == len(set(seen)) == sum(SHARDS) // 8 * 8


@pytest.mark.parametrize(
    ("cut", "match"),
    [
        ((4, 1), "stopped with 8 samples an optimiser step, and would go on with 4.*set train.accumulation=2 "),
        ((8, 12), "and would go on with 96.*set train.accumulation=1 "),
        ((3, 1), "and would go on with 3.*set train.batch_size and train.accumulation "),
    ],
)
def test_another_number_of_samples_a_step_names_what_restores_it(cut, match):
    with pytest.raises(UserError, match=match) as error:
        Position(5, 1, 3, None, 8, 1).cut_anew(*cut, 12)
    assert "\n" not in str(error.value)


def test_a_place_inside_a_batch_and_a_smaller_set_are_refused():
    with pytest.raises(UserError, match="12 samples of epoch 1, which is no whole number of batches of 8"):
        Position(5, 1, 3, None, 4, 2).cut_anew(8, 1, 12)
    with pytest.raises(UserError, match="24 samples of epoch 1, but the training set has only 16"):
        Position(5, 1, 3, None, 8, 1).cut_anew(8, 1, 2)


def run(settings, resume):
    runner.train(Pretraining(), settings, resume)
    return [line for line in read_log(f"{settings.output}/log.jsonl") if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "cosine_epoch", "constant"])
def test_a_run_by_epochs_goes_on_with_other_batches_at_the_same_rates(every_list, tmp_path, monkeypatch, schedule):
    settings = settings_of("pretraining", "full", every_list, tmp_path / "whole")
    settings.train.steps, settings.train.epochs, settings.train.batch_size = None, 3, 8
    settings.optim.schedule, settings.optim.warmup_steps, settings.train.checkpoint_every = schedule, 2, 4
    whole = run(settings, False)
    settings.output, save, calls = str(tmp_path / "parts"), engine.save_model, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "save_model", dying)
        run(settings, False)
    settings.train.batch_size, settings.train.accumulation = 2, 4
    parts = run(settings, True)
    assert [line["step"] for line in parts] == [line["step"] for line in whole]
    assert [line["lr"] for line in parts] == [line["lr"] for line in whole]
    assert [line["epoch"] for line in parts] == [line["epoch"] for line in whole]
    assert len({line["lr"] for line in whole}) > 2 or schedule == "cosine_epoch"


def test_twelve_times_the_batch_is_refused_and_loses_nothing(every_list, tmp_path):
    settings = settings_of("pretraining", "full", every_list, tmp_path / "run")
    settings.train.batch_size = 1
    run(settings, False)
    files = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.safetensors")}
    settings.train.steps, settings.train.batch_size = 6, 12
    with pytest.raises(UserError, match="set train.batch_size and train.accumulation"):
        run(settings, True)
    assert files and all(file.read_bytes() == content for file, content in files.items())
    settings.train.batch_size = 1
    assert len(run(settings, True)) == 6


def test_a_damaged_position_is_one_line(every_list, tmp_path):
    settings = settings_of("retrieval", "full", every_list, tmp_path / "run")
    run(settings, False)
    state = tmp_path / "run/resume/state.json"
    for text in ("{", json.dumps({"colour": 1})):
        state.write_text(text)
        with pytest.raises(UserError, match="state.json is damaged"):
            run(replace(settings), True)
