"""How many processor cores this process may use, which on shared machines is fewer than the machine has."""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time in each period


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores by the scheduler's affinity mask (SLURM, taskset) and the container's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        used, period = quota.read_text().split()
        if used != "max":
            cores = min(cores, round(int(used) / int(period)))
    except (OSError, ValueError):
        pass
    return max(cores, 1)
