"""How much memory a stage needs and this machine has: what decides, on a CPU, whether one more stage fits beside those that run."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pipeline.config.stages import StageConfig

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


def expected_gib(config: StageConfig, declared: float | None, measured: float | None) -> float:
    """What the config says, else the most that a process of a stage of this kind has taken in this sweep, else the kind's guess
    (`pipeline.config.stages`)."""
    if declared is not None:
        return declared
    return config.processes * (measured or config.imports_gib + config.kv_cache_gib)


def total_gib() -> float:
    """Of the machine, or of the container around this process."""
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _limit()) / _GIB


def free_gib() -> float:
    """What can be had without swapping."""
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = float(line.split()[1]) * 1024
    return min(free, _limit() - _used()) / _GIB


def _limit() -> float:
    with suppress(OSError, ValueError):  # "max", or no cgroup of version 2
        return float((_CGROUP / "memory.max").read_text(encoding="ascii"))
    return float("inf")


def _used() -> float:
    """Bytes that the container uses, without cached files that the kernel drops when memory is needed."""
    with suppress(OSError):
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return float((_CGROUP / "memory.current").read_text(encoding="ascii")) - float(cached.get("inactive_file", 0))
    return 0.0
