"""Where corpus jobs run: in this process, in a pool of processes, or on Ray. Results come in the order of the jobs."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from pela_vl.base.build_folder import follow_parent
from pela_vl.base.errors import UserError

Tag = TypeVar("Tag")
Result = TypeVar("Result")

# (function, jobs as (tag, argument)) -> (tag, result) of each, in order. Only a few jobs are submitted at a time, so
# memory does not grow with their number.
OrderedMap = Callable[[Callable[[Any], Result], Iterable[tuple[Tag, Any]]], Iterator[tuple[Tag, Result]]]
ENGINES = ("local", "ray")
_AHEAD = 3  # jobs submitted per worker: enough that none waits for the slowest


@contextmanager
def open_engine(name: str, workers: int, address: str | None = None) -> Iterator[OrderedMap]:
    """Open an engine for the block: a function that maps (function, jobs) to results in order.

    Args:
        name: "local" (a pool of spawned processes, or this process with one worker) or "ray".
        workers: number of processes, at least 1.
        address: of a running Ray cluster; None starts one and stops it afterwards.

    Raises:
        UserError: If Ray is not installed or does not answer, or when a worker process dies.
    """
    if workers < 1:
        raise UserError(f"workers {workers}: must be at least 1")
    if name == "ray":
        with _ray(workers, address) as run:
            yield run
    elif workers == 1:
        yield lambda function, jobs: ((tag, function(job)) for tag, job in jobs)
    else:
        with _pool(workers) as run:
            yield run


@contextmanager
def _pool(workers: int) -> Iterator[OrderedMap]:
    # Spawned, not forked: the caller may hold threads.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), follow_parent, (os.getpid(),))

    def run(function: Callable[[Any], Any], jobs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        start = ((tag, pool.submit(function, job)) for tag, job in jobs)
        return ((tag, future.result()) for tag, future in _ahead(start, workers * _AHEAD))

    try:
        yield run
    except BrokenProcessPool:
        raise UserError("a worker process was killed (out of memory?); run the same command again to go on") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ray(workers: int, address: str | None) -> Iterator[OrderedMap]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leaves CUDA_VISIBLE_DEVICES alone
    try:
        import ray
    except ImportError:
        raise UserError("engine ray needs Ray: pip install 'pela_vl[ray]'") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"ray_address {address}: no Ray cluster answers ({' '.join(str(error).split())})") from None

    @ray.remote
    def apply(function: Callable[[Any], Any], job: Any) -> Any:
        return function(job)

    def run(function: Callable[[Any], Any], jobs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        shared = ray.put(function)
        start = ((tag, apply.remote(shared, job)) for tag, job in jobs)
        return ((tag, ray.get(ref)) for tag, ref in _ahead(start, workers * _AHEAD))

    try:
        yield run
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if not isinstance(cause, ray.exceptions.RayError):
            raise cause from None  # what the job itself raised
        message = " ".join(str(cause).split())[:200]
        raise UserError(
            f"Ray lost a worker ({message}); mend the cluster and run the same command again to go on"
        ) from None
    finally:
        ray.shutdown()


def _ahead(items: Iterable[Any], count: int) -> Iterator[Any]:
    """The same items in the same order, each taken from `items` while `count` earlier ones are still to be given."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
