"""The loop: resuming, accumulating, stopping at a loss that is not finite, evaluating."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_albef import tiny_batch
from tiny_runs import ALL_TERMS, Log, make_loop

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.ours import read_weights
from pela_vl.training.engine import fit, try_resume


def losses_of(loop) -> list[float]:
    log = Log()
    fit(loop, log)
    return log.losses


@pytest.mark.parametrize(
    "method, accumulation", [pytest.param("pela", 1, marks=pytest.mark.slow), ("pela", 3), ("full", 2)]
)
def test_a_resumed_run_repeats_the_losses_bit_by_bit(tmp_path, method, accumulation):
    # five batches an epoch, so that checkpoints fall in the middle of epochs and updates across their ends
    common = {"method": method, "accumulation": accumulation, "total_steps": 9, "checkpoint_every": 4}
    whole, first, second = Log(), Log(), Log()
    reference = make_loop(tmp_path / "whole", **common)
    fit(reference, whole)
    stopped = make_loop(tmp_path / "parts", **common)
    stopped.save_model = stop_after(stopped, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, first)
    resumed = make_loop(tmp_path / "parts", **common)
    assert try_resume(resumed)
    assert resumed.position.step == 4
    fit(resumed, second)
    assert len(set(whole.losses)) == 9
    assert first.losses[:4] + second.losses == whole.losses
    assert [line["step"] for line in second.lines] == list(range(4, 9))
    for name, value in reference.trainee.step.state_dict().items():
        assert torch.equal(value, resumed.trainee.step.state_dict()[name]), name


def stop_after(loop, times):
    """Die in the `times`-th checkpoint, before the resume state of it is written."""
    save, calls = loop.save_model, []

    def dying(name):
        calls.append(name)
        if len(calls) == times:
            raise KeyboardInterrupt
        save(name)

    return dying


def test_nothing_to_resume(tmp_path):
    loop = make_loop(tmp_path)
    assert not try_resume(loop) and loop.position.step == 0


def test_position_counts_batches_over_epochs(tmp_path):
    seen = []

    def make(epoch, batch):
        seen.append((epoch, batch))
        return tiny_batch(2, seed=batch)

    loop = make_loop(tmp_path, make_batch=make, per_epoch=5, accumulation=2, total_steps=4)
    position = fit(loop, Log())
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]
    assert (position.step, position.epoch, position.batch) == (4, 1, 3)


def evenly_masked(size, seed):
    """Two masked tokens in every sample, so that the mean over a batch is the mean of the means over its parts."""
    batch = tiny_batch(size, seed)
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:3] = batch.ids[:, 1:3]
    return replace(batch, labels=labels)


def part(batch, rows):
    return batch._map(lambda tensor: tensor[rows])


def test_accumulated_parts_are_one_large_batch(tmp_path):
    common = {"weights": {"itc": 0.0, "itm": 0.0, "mlm": 1.0}, "dropout": 0.0, "total_steps": 5, "per_epoch": 100}
    large, small = Log(), Log()
    fit(make_loop(tmp_path / "a", make_batch=lambda e, b: evenly_masked(6, b), **common), large)
    parts = make_loop(
        tmp_path / "b",
        make_batch=lambda e, b: part(evenly_masked(6, b // 3), slice(2 * (b % 3), 2 * (b % 3) + 2)),
        accumulation=3,
        **common,
    )
    fit(parts, small)
    assert small.losses == pytest.approx(large.losses, rel=1e-4)
    assert small.norms == pytest.approx(large.norms, rel=1e-3)
    assert large.losses[-1] != pytest.approx(large.losses[0], rel=1e-3)


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("weights", [ALL_TERMS, {**ALL_TERMS, "itm": 0.0}])
def test_a_loss_that_is_not_finite_names_the_samples_and_leaves_the_checkpoint(tmp_path, weights):
    before = {}

    def make(epoch, batch):
        made = tiny_batch(3, seed=batch)
        if batch == 4:
            before.update(digests(tmp_path))
            made.images[1] = float("nan")
            made = replace(made, indices=torch.tensor([41, 7, 19]))
        return made

    loop = make_loop(tmp_path, weights, make_batch=make, total_steps=10, per_epoch=50, checkpoint_every=2)
    with pytest.raises(UserError, match=r"step 4 is not finite .*\[41, 7, 19\]") as error:
        fit(loop, Log())
    assert "\n" not in str(error.value)
    assert before and digests(tmp_path) == before


def test_bf16_computes_close_to_fp32_on_fp32_weights(tmp_path):
    def bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    common = {"method": "pela", "total_steps": 4, "dropout": 0.0, "weights": {**ALL_TERMS, "itm": 0.0}}
    exact = losses_of(make_loop(tmp_path / "a", **common))
    loop = make_loop(tmp_path / "b", autocast=bf16, **common)
    rounded = losses_of(loop)
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != exact
    assert {p.dtype for p in loop.trainee.step.parameters()} == {torch.float32}


def test_the_loss_is_the_sum_of_the_logged_terms(tmp_path):
    log = Log()
    fit(make_loop(tmp_path, method="pela", total_steps=2), log)
    for line in log.lines:
        assert set(line["terms"]) == {"itc", "itm", "mlm", "fd", "rwp"}
        assert line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-5)
        assert {"temp", "itm_accuracy"} <= set(line["metrics"])
        assert line["lr"] == pytest.approx(1e-2 * (1 - line["step"] / 40))
        assert line["grad_norm"] > 0 and line["samples_per_s"] > 0


def test_training_lowers_the_loss(tmp_path):
    loop = make_loop(tmp_path, make_batch=lambda e, b: tiny_batch(6), total_steps=30, alpha=0.0, queue=0, dropout=0.0)
    losses = losses_of(loop)
    assert losses[-1] < 0.7 * losses[0]


def test_the_best_weights_by_the_mean_are_kept(tmp_path):
    means, modes, saved = iter([10.0, 30.0, 20.0, 30.0]), [], []
    loop = make_loop(
        tmp_path,
        total_steps=7,
        evaluate_every=2,
        evaluate=lambda: modes.append(loop.trainee.step.model.training) or {"mean": next(means)},
    )
    loop.save_model = saved.append
    log = Log()
    position = fit(loop, log)
    assert [(step, values["mean"]) for _, step, values in log.events] == [(1, 10.0), (3, 30.0), (5, 20.0), (6, 30.0)]
    assert saved == ["best.safetensors", "best.safetensors", "last.safetensors"]
    assert position.best == 30.0
    assert modes == [False] * 4 and loop.trainee.step.model.training


def test_an_evaluation_does_not_change_the_losses_after_it(tmp_path):
    plain = losses_of(make_loop(tmp_path / "a"))
    evaluated = make_loop(tmp_path / "b", evaluate_every=2, evaluate=lambda: {"mean": float(torch.rand(3).mean())})
    assert losses_of(evaluated) == plain


def test_micro_batches_of_one_step_and_of_two_ranks_draw_differently():
    from pela_vl.training.engine import seed_step

    draws = set()
    for numbers in ((1, 2, 0, 0), (1, 2, 1, 0), (1, 2, 0, 1), (1, 3, 0, 0), (2, 2, 0, 0)):
        seed_step(*numbers)
        draws.add(float(torch.rand(())))
    assert len(draws) == 5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_gradient_that_is_not_finite_stops_before_anything_is_updated(tmp_path, accumulation):
    loop = make_loop(tmp_path, accumulation=accumulation, total_steps=4, checkpoint_every=1)
    weights = {}

    def poison(gradient):
        if loop.position.step == 2:
            weights.update({name: p.detach().clone() for name, p in loop.trainee.run.model.named_parameters()})
            return gradient * float("nan")
        return gradient

    loop.trainee.run.model.itm_head.weight.register_hook(poison)
    log = Log()
    with pytest.raises(UserError, match=r"gradient of step 2 is not finite.*Samples \[100, 101, 102, 103\]") as error:
        fit(loop, log)
    assert "\n" not in str(error.value) and len(log.lines) == 2
    changed = {n for n, p in loop.trainee.run.model.named_parameters() if not torch.equal(p, weights[n])}
    assert changed <= {"temp"}  # which pre-training clamps
    for file in (tmp_path / "last.safetensors", tmp_path / "resume/step.safetensors"):
        assert all(torch.isfinite(value).all() for value in read_weights(file).values())
    again = make_loop(tmp_path, accumulation=accumulation, total_steps=4)
    assert try_resume(again) and again.position.step == 2
