"""Results come in order, few jobs are under way, and what goes wrong in a worker is said plainly."""

import os
import sys
import time
from pathlib import Path

import pytest

from pela_vl.base.errors import UserError
from pela_vl.data.corpus.engines import _ahead, open_engine


def slow_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number * number


def failing(number: int) -> int:
    if number == 3:
        raise UserError(f"job {number} failed")
    return number


def dying(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def test_order_and_look_ahead():
    taken = []

    def jobs():
        for number in range(40):
            taken.append(number)
            yield f"job {number}", number

    with open_engine("local", 2) as run:
        for expected, (tag, result) in enumerate(run(slow_first, jobs())):
            assert (tag, result) == (f"job {expected}", expected**2)
            assert len(taken) <= expected + 2 * 3 + 1
    assert expected == 39


def test_look_ahead_gives_all_in_order():
    for count in range(12):
        assert list(_ahead(range(10), count)) == list(range(10))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_jobs_own_error_comes_through(workers):
    with pytest.raises(UserError, match="^job 3 failed$"), open_engine("local", workers) as run:
        list(run(failing, ((None, number) for number in range(9))))


def test_a_killed_worker_is_said():
    with pytest.raises(UserError, match="worker process was killed .* run the same command again"):
        with open_engine("local", 2) as run:
            list(run(dying, ((None, number) for number in range(9))))


def test_without_ray_or_workers(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"engine ray needs Ray: pip install 'pela_vl\[ray\]'"):
        with open_engine("ray", 2):
            pass
    with pytest.raises(UserError, match="workers 0"):
        with open_engine("local", 0):
            pass


@pytest.fixture
def seen_by_ray(monkeypatch):
    """This module's functions, for the workers of a cluster that is started here."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.slow
def test_order_and_errors_on_ray(seen_by_ray):
    with pytest.raises(UserError, match="^job 3 failed$"), open_engine("ray", 2) as run:
        assert [result for _, result in run(slow_first, ((None, n) for n in range(20)))] == [n * n for n in range(20)]
        list(run(failing, ((None, number) for number in range(9))))


@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray tries a job that kills its worker four times, each in a new process
def test_a_lost_worker_on_ray_is_said(seen_by_ray):
    with (
        pytest.raises(UserError, match="Ray lost a worker .* run the same command again"),
        open_engine("ray", 1) as run,
    ):
        list(run(dying, ((None, number) for number in range(3, 4))))
