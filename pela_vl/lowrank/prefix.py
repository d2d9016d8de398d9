"""Running a model again with one layer changed, starting at that layer's block.

A first run stores the outputs of all blocks (members of the model's ModuleLists and Sequentials). In a later run for
one layer, the blocks that ended before the layer's first call return their stored outputs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

Hook = Callable[..., Any]


class PrefixRuns:
    """Runs of a model over fixed items, with one layer changed at a time.

    Args:
        model: in eval mode; it is not changed.
        names: layers that later runs may change.
        run: run(model, item) runs one item and returns its outputs.
        items: what `run` is called with. All outputs of the blocks are kept in memory, for every item.

    Attributes:
        outputs: run(model, item) of the unchanged model for every item.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], run: Callable[[nn.Module, Any], Any], items: Sequence[Any]
    ) -> None:
        self._model, self._run, self._items = model, run, items
        self._blocks = blocks_of(model, names)
        self._kept: list[
            dict[tuple[str, int], tuple[int, Any]]
        ] = []  # (block, number of its call) -> (clock at its end, output)
        self._begins: list[dict[str, int]] = []  # layer -> clock at its first call
        self.outputs = [self._record(names, item) for item in items]

    def run(self, index: int, name: str, hook: Hook) -> Any:
        """Run one item with a forward hook on one layer.

        Args:
            index: of the item among `items`.
            name: of the layer that is changed.
            hook: forward hook, called as hook(module, args, kwargs, output); what it returns replaces the output.

        Returns:
            What the `run` function given to the constructor returns.
        """
        begin = self._begins[index].get(name, -1)
        kept = {call: output for call, (end, output) in self._kept[index].items() if end < begin}
        handle = self._model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
        replaced = []
        try:
            for block_name, block in self._blocks.items():
                if any(call[0] == block_name for call in kept) and "forward" not in vars(block):
                    block.forward = partial(_replay, block.forward, block_name, kept, [0])
                    replaced.append(block)
            return self._run(self._model, self._items[index])
        finally:
            handle.remove()
            for block in replaced:
                del block.forward

    def _record(self, names: Sequence[str], item: Any) -> Any:
        clock, handles = [0], []
        calls: dict[str, int] = {}
        kept: dict[tuple[str, int], tuple[int, Any]] = {}
        begins: dict[str, int] = {}

        def begin(name: str, *_: Any) -> None:
            clock[0] += 1
            begins.setdefault(name, clock[0])

        def end(name: str, module: nn.Module, args: Any, output: Any) -> None:
            clock[0] += 1
            calls[name] = calls.get(name, -1) + 1
            kept[name, calls[name]] = clock[0], output

        try:
            for name in names:
                handles.append(self._model.get_submodule(name).register_forward_pre_hook(partial(begin, name)))
            for name, block in self._blocks.items():
                handles.append(block.register_forward_hook(partial(end, name)))
            found = self._run(self._model, item)
        finally:
            for handle in handles:
                handle.remove()
        self._kept.append(kept)
        self._begins.append(begins)
        return found


def blocks_of(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Members of lists of layers that hold Linears of `names` and are in no other such list."""
    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            if any(f"{name}.".startswith(f"{block}.") for block in blocks):
                continue
            for child, block in module.named_children():
                full = f"{name}.{child}" if name else child
                if list(block.children()) and any(layer.startswith(full + ".") for layer in names):
                    blocks[full] = block
    return blocks


def _replay(forward: Callable, name: str, kept: dict, calls: list[int], *args: Any, **kwargs: Any) -> Any:
    call = (name, calls[0])
    calls[0] += 1
    return kept[call] if call in kept else forward(*args, **kwargs)
