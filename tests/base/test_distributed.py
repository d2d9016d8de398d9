"""Ranks: start, gathers, and what happens when one is lost."""

import os
import signal
import time

import pytest
import torch
from tiny_runs import start_ranks

from pela_vl.base import distributed
from pela_vl.base.distributed import Ranks, choose_device, gather_objects, gather_rows, mean_over_ranks, start, stop
from pela_vl.base.errors import UserError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_launcher():
    assert start("cpu") == Ranks(0, 1, torch.device("cpu"), launched=False)
    assert not torch.distributed.is_initialized()
    rows = torch.arange(6).view(3, 2)
    assert gather_rows(rows) is rows
    assert gather_objects("x") == ["x"]
    assert torch.equal(mean_over_ranks(torch.ones(2)), torch.ones(2))
    stop()


def test_a_half_set_environment_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        start("cpu")


def test_device_is_chosen_in_one_place(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="CUDA"):
        choose_device("cuda")


def test_an_error_of_our_own_is_not_taken_for_a_lost_rank():
    with pytest.raises(RuntimeError, match="Connection closed by peer"), distributed.lost_ranks_named():
        raise RuntimeError("Connection closed by peer")  # with one process there is no peer


GATHERS = """
import torch
from pela_vl.base.distributed import *
from pela_vl.base.distributed import sum_over_ranks, world, is_main
ranks = start("cpu")
r = ranks.rank
assert ranks.launched and ranks.world == world() == 3 and is_main() == (r == 0)
for counts in ([2, 0, 3], [1, 1, 1], [0, 0, 0]):
    own = torch.full((counts[r], 2), r, dtype=torch.int64)
    expected = [i for i in range(3) for _ in range(counts[i])]
    assert gather_rows(own).tolist() == [[i, i] for i in expected], (counts, r)
assert gather_rows(torch.tensor([float(r)])).tolist() == [0.0, 1.0, 2.0]
assert gather_objects({"rank": r}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
values = torch.tensor([float(r), 3.0])
assert mean_over_ranks(values).tolist() == [1.0, 3.0] and values.tolist() == [float(r), 3.0]
assert sum_over_ranks(torch.tensor([float(r)])).item() == 3.0
barrier()
stop()
assert not torch.distributed.is_initialized()
print("well")
"""


def test_gathers_over_three_ranks(forked_ranks):
    assert all(output.strip().endswith("well") for output in forked_ranks(GATHERS, 3))


WAITING = """
import sys, time
import torch
from pela_vl.base.distributed import gather_rows, lost_ranks_named, start
from pela_vl.base.errors import run_main
def main():
    ranks = start("cpu")
    with lost_ranks_named():
        while True:
            gather_rows(torch.ones(1))
            if ranks.rank == 0 or True:
                print("step", flush=True)
            time.sleep(0.05)
run_main(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_the_others_within_a_minute(lost, how):
    processes = start_ranks(["-c", WAITING], 2)
    try:
        for process in processes:
            assert process.stdout.readline().strip() == "step", process.communicate(timeout=5)
        os.kill(processes[lost].pid, how)
        began = time.monotonic()
        output, _ = processes[1 - lost].communicate(timeout=80)
        assert time.monotonic() - began < 60
    finally:
        for process in processes:
            process.kill()
    assert processes[1 - lost].returncode not in (0, None)
    message = output[output.index("error:") :]
    assert "--resume" in message and ("gone" in message or "not answered" in message)
    assert "Traceback" not in output


WATCHED = """
import threading, time
from pela_vl.base.distributed import start, stop
watches = lambda: [t for t in threading.enumerate() if "watch" in t.name]
start("cpu")
assert watches()
time.sleep(0.5)
stop()
until = time.monotonic() + 3
while watches() and time.monotonic() < until:
    time.sleep(0.02)
assert not watches(), threading.enumerate()
"""


def test_the_watch_ends_with_the_group(forked_ranks):
    forked_ranks(WATCHED, 2)


def test_a_script_under_no_launcher_does_not_import_deepspeed(forked_ranks):
    code = "import sys, pela_vl.training.runner; print([name for name in sys.modules if name.split('.')[0] == 'deepspeed'])"
    assert forked_ranks(code, 1) == ["[]\n"]
