"""How much memory is free, within what a container or a batch system lets a process have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

GROUPS = Path("/sys/fs/cgroup")
GROUPS_OF_THIS_PROCESS = Path("/proc/self/cgroup")
# Of a control group of version 2 and 1: its limit, what it uses, and what of this, as memory.stat calls it,
# only caches files.
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
NO_LIMIT = "max"


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(0, min([_free_on_host(), *_free_in_groups()]))


def _free_on_host() -> int:
    available = Path("/proc/meminfo")
    if available.exists():  # Linux, where memory that only caches files counts as free
        for line in available.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 4 * 2**30


def _free_in_groups() -> Iterator[int]:
    """Return what is left of each limit that Linux sets this process, of its groups and those around them."""
    try:
        lines = GROUPS_OF_THIS_PROCESS.read_text().splitlines()
    except OSError:  # another system
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):  # of version 2, or 1
            # In a container the own group may have no folder, and the topmost one be the container's.
            own = GROUPS / controllers / name.lstrip("/")
            for folder in (own, *own.parents):
                yield from _free_in(folder)


def _free_in(group: Path) -> Iterator[int]:
    """Return what is left of a group's limit, if it has one."""
    for limit, usage, cache in GROUP_FILES:
        try:
            most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if most != NO_LIMIT:
            yield int(most) - used + int(statistics.get(cache, 0))
