"""Ranks: start, gathers, and what happens when one is lost."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
from tiny_runs import finish, start_processes

from pela_vl.base import distributed
from pela_vl.base.distributed import World, choose_device, gather_objects, gather_rows, mean_over_processes, start, stop
from pela_vl.base.errors import UserError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_launcher():
    assert start("cpu") == World(0, 1, torch.device("cpu"), launched=False)
    assert not torch.distributed.is_initialized()
    rows = torch.arange(6).view(3, 2)
    assert gather_rows(rows) is rows
    assert gather_objects("x") == ["x"]
    assert torch.equal(mean_over_processes(torch.ones(2)), torch.ones(2))
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


def test_an_error_of_our_own_is_not_taken_for_a_lost_process():
    with pytest.raises(RuntimeError, match="Connection closed by peer"), distributed.lost_processes_named():
        raise RuntimeError("Connection closed by peer")  # with one process there is no peer


GATHERS = """
import torch
from pela_vl.base.distributed import *
from pela_vl.base.distributed import sum_over_processes, world_size, is_main
world = start("cpu")
r = world.process
assert world.launched and world.size == world_size() == 3 and is_main() == (r == 0)
for counts in ([2, 0, 3], [1, 1, 1], [0, 0, 0]):
    own = torch.full((counts[r], 2), r, dtype=torch.int64)
    expected = [i for i in range(3) for _ in range(counts[i])]
    assert gather_rows(own).tolist() == [[i, i] for i in expected], (counts, r)
assert gather_rows(torch.tensor([float(r)])).tolist() == [0.0, 1.0, 2.0]
assert gather_objects({"rank": r}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
values = torch.tensor([float(r), 3.0])
assert mean_over_processes(values).tolist() == [1.0, 3.0] and values.tolist() == [float(r), 3.0]
assert sum_over_processes(torch.tensor([float(r)])).item() == 3.0
barrier()
stop()
assert not torch.distributed.is_initialized()
print("well")
"""


def test_gathers_over_three_processes(forked_processes):
    assert all(output.strip().endswith("well") for output in forked_processes(GATHERS, 3))


@pytest.mark.parametrize(
    "text",
    [
        "Connection closed by peer [127.0.0.1]:4242",
        "Timed out waiting 1800000ms for recv operation to complete",
        "NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.21.5",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "NCCL communicator was aborted on rank 2. Original reason for failure was: ",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST)",
    ],
)
def test_gloos_and_nccls_signs_of_a_lost_process_are_said_in_one_line(monkeypatch, text):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with pytest.raises(UserError, match="^process 1: another process of the run is gone.*--resume"):
        with distributed.lost_processes_named():
            raise torch.distributed.DistBackendError(text)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_the_group_is_given_its_timeout_and_device(monkeypatch, device, backend):
    given = {}
    chosen = torch.device(device, 1) if device == "cuda" else torch.device(device)
    monkeypatch.setattr(distributed, "choose_device", lambda name, local_rank: chosen)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **rest: given.update(rest, backend=name))
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert start(device, timeout_seconds=77) == World(3, 4, chosen, launched=True)
    device_id = chosen if device == "cuda" else None
    assert given == {"backend": backend, "timeout": timedelta(seconds=77), "device_id": device_id}


class CountedStore:
    """A store in this process that counts the requests to it."""

    def __init__(self):
        self.values: dict[str, bytes] = {}
        self.requests = 0

    def set(self, key, value):
        self.requests += 1
        self.values[key] = value.encode()

    def get(self, key):
        self.requests += 1
        return self.values[key]

    def check(self, keys):
        self.requests += 1
        return all(key in self.values for key in keys)


def watches_over(world: int, seconds: float = 60.0):
    store, ended = CountedStore(), {}
    watches = [
        distributed._Watch(k, world, store, seconds, end=lambda why, k=k: ended.setdefault(k, why))
        for k in range(world)
    ]
    return store, ended, watches


@pytest.mark.parametrize("world", [2, 64])
def test_a_beat_costs_four_requests_however_many_processes_there_are(world):
    store, ended, watches = watches_over(world)
    for _ in range(100):
        for watch in watches:
            watch.beat()
    assert store.requests <= 4 * 100 * world and not ended


def test_a_silent_process_is_named_to_all_and_only_after_the_time_given():
    _, ended, watches = watches_over(5)
    for watch in watches:
        watch.beat()
    alive = [watch for watch in watches if watch.process != 3]
    beats = 0
    while not ended:
        beats += 1
        for watch in alive:
            watch.beat()
    assert 60 <= beats * watches[0].interval <= 60 + 3 * watches[0].interval
    for watch in alive:
        watch.beat()
    assert ended.keys() == {0, 1, 2, 4} and set(ended.values()) == {"process 3 has given no sign of life for 60 s"}


def test_a_pause_of_all_processes_is_no_silence(monkeypatch):
    """A machine that is moved stands still as a whole: the clock goes on and the beats do not."""
    _, ended, watches = watches_over(3)
    for watch in watches * 3:
        watch.beat()
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
    for watch in watches * 3:
        watch.beat()
    assert not ended


WAITING = """
import ctypes, sys, time
import torch
from pela_vl.base.distributed import gather_rows, lost_processes_named, start, stop, watch_processes
from pela_vl.base.errors import run_main
def main():
    world = start("cpu")
    watch_processes(world, seconds=float(sys.argv[1]))
    with lost_processes_named():
        for step in range(int(sys.argv[2])):
            gather_rows(torch.ones(1))
            print("step", flush=True)
            if sys.argv[3:] == [str(world.process)]:
                ctypes.PyDLL(None).sleep(3)  # holds the interpreter's lock
            time.sleep(0.05)
    stop()
run_main(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_others(lost, how):
    processes = start_processes(["-c", WAITING, "6", "100000"], 2)
    try:
        for process in processes:
            assert process.stdout.readline().strip() == "step", process.communicate(timeout=5)
        os.kill(processes[lost].pid, how)
        stopped = time.monotonic()
        output, _ = processes[1 - lost].communicate(timeout=60)
        assert time.monotonic() - stopped < 50
    finally:
        for process in processes:
            process.kill()
    assert processes[1 - lost].returncode not in (0, None)
    message = output[output.index("error:") :]
    assert "--resume" in message and ("gone" in message or "no sign of life" in message)
    if how == signal.SIGSTOP:
        assert "a long pause" in message and "train.lost_process_seconds" in message
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("paused", [0, 1])
def test_a_pause_shorter_than_the_time_given_harms_nobody(paused):
    processes = start_processes(["-c", WAITING, "6", "2", str(paused)], 2)
    assert all(output == "step\nstep\n" for output in finish(processes))


WATCHED = """
import threading, time
from pela_vl.base.distributed import start, stop, watch_processes
watches = lambda: [t for t in threading.enumerate() if "watch" in t.name]
world = start("cpu")
assert not watches()
watch_processes(world)
watch_processes(world)
assert len(watches()) == 2
time.sleep(0.5)
stop()
until = time.monotonic() + 3
while watches() and time.monotonic() < until:
    time.sleep(0.02)
assert not watches(), threading.enumerate()
"""


def test_the_watch_starts_with_training_and_ends_with_the_group(forked_processes):
    forked_processes(WATCHED, 2)


def test_a_script_under_no_launcher_does_not_import_deepspeed(forked_processes):
    code = "import sys, pela_vl.training.runner; print([name for name in sys.modules if name.split('.')[0] == 'deepspeed'])"
    assert forked_processes(code, 1) == ["[]\n"]
