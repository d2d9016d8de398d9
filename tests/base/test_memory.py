"""The allocator's switches change no result, and are no error where they do not exist."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pela_vl.base.memory import keep_freed_memory, release_freed_memory

ROOT = Path(__file__).parents[2]


def test_results_stay_the_same():
    x = torch.randn(300, 200)
    before = (x @ x.T).sum(1)
    keep_freed_memory()
    assert torch.equal((x @ x.T).sum(1), before)


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False and release_freed_memory() is False


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system has no /proc")
def test_freed_memory_goes_back_to_the_system():
    """In a process of its own, as another test may have changed how memory is kept."""
    code = """
import torch
from pela_vl.base.memory import keep_freed_memory, release_freed_memory
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
if keep_freed_memory():
    blocks = [torch.ones(2**22) for _ in range(20)]
    last = torch.ones(2**10)
    del blocks
    before = held()
    assert release_freed_memory()
    print(before - held())
else:
    print(320)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert float(done.stdout) > 200, done.stderr
