"""The script on two processes under DeepSpeed, killed at random moments and resumed, against a run that went through."""

import random
import signal
import time

import pytest
from test_kill_and_resume import losses
from tiny_runs import PATIENCE, finish, start_processes

STEPS, KILLS = 40, 10
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(pela_config, output, *changes):
    """Two processes of a pre-training at ZeRO 1, resumed where there is anything to resume."""
    command = ["tasks/pretrain.py", "--config", str(pela_config), "--resume", "--set", f"output={output}"]
    return start_processes([*command, "train.batch_size=3", "deepspeed.stage=1", *changes], 2)


def wait_for_step(processes, folder, step):
    until = time.monotonic() + PATIENCE
    while max(losses(folder), default=-1) < step:
        assert all(process.poll() is None for process in processes), [p.communicate()[0] for p in processes]
        assert time.monotonic() < until, f"step {step} was not reached"
        time.sleep(0.005)


def kill(processes, victims):
    """Kill some of the processes; what the others printed, which end by themselves."""
    for victim in victims:
        processes[victim].kill()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert all((code == -signal.SIGKILL) == (number in victims) and code for number, code in enumerate(codes)), outputs
    return [output for number, output in enumerate(outputs) if number not in victims]


def test_losses_of_two_processes_are_bit_identical_after_ten_kills(pela_config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(pela_config, whole))
    expected = losses(whole)
    assert sorted(expected) == list(range(STEPS)) and len(set(expected.values())) == STEPS
    seed = random.randrange(10**6)
    draws = random.Random(seed)
    victims, moments, lost = [], [], 0
    for number in range(KILLS):
        # every start goes at least a checkpoint's distance of steps on, so that ten kills lie across the whole run
        step = min((number + 1) * STEPS // (KILLS + 1) + draws.randrange(3), STEPS - 2)
        processes = start(pela_config, killed)
        try:
            wait_for_step(processes, killed, step)
            time.sleep(draws.random() * 0.1)
            victims.append(draws.choice([[0], [1], [0, 1]]))
            moments.append(max(losses(killed)))
            for output in kill(processes, victims[-1]):
                lost += 1
                assert "another process of the run is gone" in output and "Traceback" not in output, output[-3000:]
        finally:
            for process in processes:
                process.kill()
        assert losses(killed).items() <= expected.items()  # what was logged before the kill too
    finish(start(pela_config, killed))
    found = losses(killed)
    print(
        f"seed {seed}: {KILLS} kills after steps {moments} of processes {victims}; {lost} survivors ended by themselves;"
    )
    print(
        f"largest difference of a loss {max(abs(found[step] - expected[step]) for step in expected)} over {len(found)} steps"
    )
    assert found == expected
    for name in ("last.safetensors", "resume/step.safetensors", "resume/optimiser.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_stopped_process_ends_the_run_after_the_time_given(pela_config, tmp_path):
    run = tmp_path / "run"
    processes = start(pela_config, run, "train.steps=100000", "train.lost_process_seconds=4")
    try:
        wait_for_step(processes, run, 1)
        processes[1].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        output, _ = processes[0].communicate(timeout=60)
        seconds = time.monotonic() - stopped
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 75 and 3 < seconds < 50, (seconds, output[-3000:])
    assert "process 1 has given no sign of life for 4 s" in output
    assert "train.lost_process_seconds" in output and "--resume" in output and "Traceback" not in output
