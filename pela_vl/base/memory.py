"""How this process's memory allocator treats large blocks."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**30


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process: large CPU tensors then reuse pages instead of faulting in new, zeroed ones.

    glibc otherwise takes every block over 32 MiB from the system anew, which costs a training step at full size about a
    quarter of its time. Affects no result. True where the allocator has these switches (glibc), else nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))
