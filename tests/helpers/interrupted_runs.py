"""A run that is interrupted at its second checkpoint, again and again, beside one that ran through."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pela_vl.settings import Settings
from pela_vl.training import engine, runner
from pela_vl.workloads.base import Task


def logged_terms(folder: Path) -> dict[int, dict[str, float]]:
    """The loss terms of every step of a run."""
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {entry["step"]: entry["terms"] for entry in entries if "terms" in entry}


def interrupted_three_times(
    task: type[Task], settings: Callable[[str], Settings], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[int, dict[str, float]]:
    """Terms of every step; weights and terms must be those of a run that ran through.

    `settings`: of a run, by the name of its folder below `folder`.
    """
    runner.train(task(), settings("whole"), resume=False)
    save = engine.save_model
    for attempt in range(3):
        calls = []

        def dying(*arguments, calls=calls):
            calls.append(1)
            if len(calls) == 2:  # the second checkpoint of this start: the first one stands
                raise KeyboardInterrupt
            save(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(engine, "save_model", dying)
            runner.train(task(), settings("killed"), resume=attempt > 0)
    runner.train(task(), settings("killed"), resume=True)
    assert (folder / "killed/last.safetensors").read_bytes() == (folder / "whole/last.safetensors").read_bytes()
    assert logged_terms(folder / "whole") == logged_terms(folder / "killed")
    return logged_terms(folder / "whole")
