"""The GPU of a stage's process: whether it has one, and how much of it."""

from __future__ import annotations

import gc
import os
from functools import cache
from pathlib import Path

from pipeline.errors import PriorlabError

_DRIVER = Path("/dev/nvidiactl")
"""There where the NVIDIA driver is, also in jobs that were given no GPU."""


@cache
def has_gpu() -> bool:
    """Whether this process computes on a GPU.

    Raises `PriorlabError` where a GPU is there and torch, built for GPUs, cannot use it: a broken driver must not turn hours on a GPU
    into weeks on a CPU. PyPI's torch is built for GPUs, and as good as any on a machine without one.
    """
    import torch

    if torch.cuda.is_available():
        return True
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda is not None and _DRIVER.exists() and not hidden:
        raise PriorlabError(
            f"torch is built for CUDA {torch.version.cuda} but cannot use the GPU; `priorlab doctor` says why. On Slurm, set "
            "gpus_per_process for this kind of stage. To run on the CPU anyway, set CUDA_VISIBLE_DEVICES=-1"
        )
    return False


def memory_share() -> float:
    """Share of its GPU that a stage may use, by `cluster.stages_per_gpu`."""
    return float(os.environ.get("PRIORLAB_DEVICE_SHARE", "1"))


def free_memory() -> None:
    """Give the GPU back what torch holds for later, once nothing refers to it: the next engine looks at what is free."""
    import torch

    if has_gpu():
        gc.collect()
        torch.cuda.empty_cache()


def keep_to_share() -> None:
    """Have torch refuse this process more than its part of a shared GPU: a stage that needs more fails, and not its neighbours."""
    import torch

    if has_gpu() and memory_share() < 1:
        torch.cuda.set_per_process_memory_fraction(memory_share())
