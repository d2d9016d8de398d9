"""Runs a model twice on every batch at the same time: dense, and with the layers replaced so far.

Every run has a thread of its own. A hook parks the thread at the first call of each layer. When all runs are parked there, the
layer is replaced and they go on. So the whole takes one dense and one compressed pass, and keeps only what a running forward
pass keeps. It needs no knowledge of what a model computes between its layers.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.lowrank.calibration import first_input

DENSE, SMALL = 0, 1


@dataclass
class Stop:
    """A run that is parked at a layer.

    Args:
        name: The layer's.
        item: Number of the batch that runs.
        x: The layer's input.
        y: What the dense weights make of it.
        stream: The residual stream, where the layer writes to one (`Watcher`).
    """

    name: str
    item: int
    x: Tensor
    y: Tensor
    stream: Tensor | None


@dataclass
class _Run:
    item: int
    version: int
    go: threading.Event = field(default_factory=threading.Event)
    stop: Stop | None = None
    ended: bool = False
    failure: BaseException | None = None
    streams: dict[str, Tensor] = field(default_factory=dict)


class _Abort(Exception):
    """Ends a run from within."""


Watcher = Callable[[Callable[[str, Tensor], None]], Sequence[Any]]
"""watcher(on_stream) registers hooks. They call on_stream(layer, stream) with the residual stream that a layer adds to."""


class Lockstep:
    """Runs that stop at every layer, see `stops`.

    Set `replaced[name]` to what takes a layer's place in the compressed runs before the next stop is asked for. A layer that is
    called again in the same forward pass is not stopped at again; the compressed runs use its replacement there.

    Args:
        model: The dense model.
        names: Layers to stop at.
        items: Batches; each is run twice.
        run: run(model, item) runs the model on a batch.
        watcher: Registers the hooks that see the residual streams.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        items: Sequence[Any],
        run: Callable[[nn.Module, Any], Any],
        watcher: Watcher,
    ) -> None:
        self._model, self._names, self._items, self._run, self._watcher = model, names, items, run, watcher
        self.replaced: dict[str, Callable[[Tensor], Tensor]] = {}
        self._here = threading.local()
        self._changed = threading.Condition()
        self._aborted = False
        self._on_cpu = next(model.parameters()).device.type == "cpu"
        self._threads = torch.get_num_threads()
        self._slots = threading.Semaphore(self._threads if self._on_cpu else 1)

    def stops(self) -> Iterator[tuple[str, list[tuple[Stop, Stop]]]]:
        """Yields a layer's name and, for every batch, its (dense stop, compressed stop). Raises what a run raises.

        The list is emptied when the next stop is asked for: the runs free its tensors as they go on.
        """
        runs = [_Run(item, version) for item in range(len(self._items)) for version in (DENSE, SMALL)]
        handles = list(self._watcher(self._keep_stream))
        for name in self._names:
            module = self._model.get_submodule(name)
            handles.append(module.register_forward_hook(partial(self._at_layer, name), with_kwargs=True))
        threads = [threading.Thread(target=self._work, args=(run,), daemon=True) for run in runs]
        try:
            for thread in threads:
                thread.start()
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: all(run.ended or run.stop is not None for run in runs))
                failed = next((run.failure for run in runs if run.failure is not None), None)
                if failed is not None:
                    raise failed
                parked = [(run, run.stop) for run in runs if run.stop is not None]
                if not parked:
                    return
                name = parked[0][1].name
                here = [(run, stop) for run, stop in parked if stop.name == name]
                dense, small = (
                    {run.item: stop for run, stop in here if run.version == version} for version in (DENSE, SMALL)
                )
                pairs = [(dense[i], small[i]) for i in dense if i in small]
                yield name, pairs
                gone = [run for run, _ in here]
                for held in (pairs, dense, small, parked, here):
                    held.clear()  # nothing here keeps the stops' tensors while the runs go on
                for run in gone:
                    run.stop = None
                    run.go.set()
        finally:
            self._aborted = True
            for run in runs:
                run.go.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            for handle in handles:
                handle.remove()
            torch.set_num_threads(self._threads)  # threads that start later inherit the setting

    def _work(self, run: _Run) -> None:
        self._here.run = run
        try:
            with self._slots, torch.no_grad():
                if self._on_cpu:
                    torch.set_num_threads(1)  # the runs together use all cores
                self._check()
                self._run(self._model, self._items[run.item])
        except _Abort:
            pass
        except BaseException as error:  # handed to the thread that waits
            run.failure = error
        finally:
            run.streams.clear()
            with self._changed:
                run.ended = True
                self._changed.notify_all()

    def _check(self) -> None:
        if self._aborted:
            raise _Abort

    def _keep_stream(self, name: str, stream: Tensor) -> None:
        run = getattr(self._here, "run", None)
        if run is not None and name not in self.replaced:
            run.streams[name] = stream

    def _at_layer(
        self, name: str, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        run = getattr(self._here, "run", None)
        if run is None:
            return None
        x = first_input(args, kwargs)
        if name not in self.replaced:
            run.go.clear()
            with self._changed:
                run.stop = Stop(name, run.item, x, output, run.streams.pop(name, None))
                self._changed.notify_all()
            self._slots.release()
            run.go.wait()
            self._slots.acquire()
            self._check()
        return self.replaced[name](x) if run.version == SMALL else None
