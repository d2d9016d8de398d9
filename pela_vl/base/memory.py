"""How the memory allocator treats large blocks."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**30


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, so that large CPU tensors reuse pages instead of faulting in new, zeroed ones.

    glibc otherwise takes every block over 32 MiB from the system anew, which costs a full-size training step about a
    quarter of its time. Results do not change. Returns True where the allocator has these switches (glibc); elsewhere
    nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


def release_freed_memory() -> bool:
    """Give freed memory back to the system: what one stage of a program needed and the next one does not.

    Returns True where the allocator can (glibc); elsewhere nothing is done.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(0)
    return True
