"""torch.compile of a model's blocks."""

import shutil

from torch import nn

from pela_vl.base.errors import UserError


def compile_blocks(model: nn.Module) -> nn.Module:
    """torch.compile every block of the model's lists of layers, in place. The blocks are alike, so one compilation serves all.

    Raises:
        UserError: Where torch.compile has no C++ compiler.
    """
    if not can_compile():
        raise UserError("compile: torch.compile needs a C++ compiler; install g++ (or set CXX), or leave compile out")
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            for block in module:
                if len(list(block.children())) > 1:
                    block.compile(dynamic=None)
    return model


def can_compile() -> bool:
    """Whether torch.compile has a C++ compiler here."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # torch raises different errors where there is no compiler
        return False
