"""Free memory, disk space and cores, checked before much of them is used."""

import os
import shutil
import sys
from pathlib import Path

GROUP_MEMORY = Path("/sys/fs/cgroup")  # limits of containers and batch systems, lower than the machine's
MACHINE_MEMORY = Path("/proc/meminfo")


def free_memory() -> int:
    """Return the bytes that this process may still allocate: the machine's free memory, or less in a container."""
    amounts = [_of_the_machine()]
    try:
        limit, used = ((GROUP_MEMORY / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            amounts.append(max(0, int(limit) - int(used) + _cached_files()))
    except (OSError, ValueError):
        pass  # no such limit here
    return min(amounts)


def _cached_files() -> int:
    """Return the bytes of the cgroup's page cache, which the kernel reclaims when memory is needed."""
    counts = dict(line.split() for line in (GROUP_MEMORY / "memory.stat").read_text().splitlines())
    return sum(int(counts.get(name, 0)) for name in ("inactive_file", "active_file"))


def _of_the_machine() -> int:
    try:
        lines = dict(line.split(":", 1) for line in MACHINE_MEMORY.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: the standard library gives the total memory only
        if not hasattr(os, "sysconf"):  # Windows: not even the total
            return sys.maxsize
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def all_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk of ``folder``, which need not exist yet."""
    folder = folder.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
