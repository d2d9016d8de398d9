"""Operating-system differences (POSIX, Windows, macOS): locks, processes, positioned reads, memory figures.

Modules that only some systems have are imported here and nowhere else; where they are absent there is a portable path.
"""

import ctypes
import os
import sys
import threading
import time

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # a name stands for a module or, where the system has none, for None
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]  # likewise
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]  # likewise

_reading = threading.Lock()


def try_lock(handle: int) -> bool:
    """Lock an open file for this process, without waiting. The system releases the lock when the process dies.

    Returns False when another process holds it. Returns True without a lock where the file system or the system has no
    locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            # a byte far beyond the content, because others cannot read a locked one
            os.lseek(handle, 2**30, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except BlockingIOError:
        return False
    except OSError:
        return fcntl is not None  # msvcrt has no separate error for a held lock
    return True


def is_running(pid: int) -> bool:
    """Whether a process of this machine exists; True when the system does not say."""
    if sys.platform == "win32":  # os.kill(pid, 0) would send a console event there
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        process = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not process:
            return ctypes.get_last_error() != 87  # ERROR_INVALID_PARAMETER: no such process
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(process, ctypes.byref(code))
        kernel.CloseHandle(process)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def open_to_read(path: str | os.PathLike[str]) -> int:
    """Open a file for `read_at`; the caller closes it. Raises OSError."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def read_at(handle: int, size: int, position: int) -> bytes:
    """Read from a position of an open file, without moving its offset where the system can do that.

    Args:
        handle: file descriptor (`open_to_read`).
        size: bytes; fewer come at the file's end.
        position: byte to start at.

    Raises:
        OSError: If the disk cannot be read.
    """
    if hasattr(os, "pread"):
        return os.pread(handle, size, position)
    with _reading:
        os.lseek(handle, position, os.SEEK_SET)
        return os.read(handle, size)


def cpu_seconds(children: bool = False) -> float:
    """Processor time of this process, with that of its ended children or without."""
    times = os.times()
    return sum(times[:4] if children else times[:2])


_peaks = [0.0]


def _highest(peak: float) -> float:
    """The largest peak that was read so far: the kernel's counters are approximate, and a later reading may be some KiB lower."""
    _peaks[0] = max(_peaks[0], peak)
    return _peaks[0]


def peak_memory(children: bool = False) -> float:
    """Peak memory in bytes of this process, or of the largest of its ended children; NaN where the system does not say."""
    if resource is None:
        return float("nan")
    if not children:
        # Linux's ru_maxrss begins with what the parent held when it started this process; this figure does not
        try:
            with open("/proc/self/status", encoding="ascii", errors="replace") as file:
                found = next((line for line in file if line.startswith("VmHWM:")), "").split()
            if len(found) == 3:
                return _highest(float(found[1]) * 1024)
        except OSError:
            pass
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return float(resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss * unit)


def usable_cores(quota: str | os.PathLike[str] = "/sys/fs/cgroup/cpu.max") -> int:
    """CPU cores that this process may use, by its affinity mask (SLURM, taskset) and a container's quota.

    `quota` is cgroup v2's cpu.max: microseconds of CPU time, and the period that they are for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(quota, encoding="ascii") as file:
            used, period = file.read().split()
        if used != "max":
            cores = min(cores, round(int(used) / int(period)))
    except (OSError, ValueError):
        pass
    return max(cores, 1)


def wait_for_lock(handle: int, seconds: float) -> bool:
    """Retry `try_lock` for some seconds: a killed process holds its lock until its memory is released."""
    until = time.monotonic() + seconds
    while not try_lock(handle):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
