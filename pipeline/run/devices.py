"""This machine's GPUs, and which stages have them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline.config.stages import StageConfig

_DRIVER = Path("/proc/driver/nvidia/gpus")
_LONGEST_ANSWER_SECONDS = 30.0


def visible_devices() -> list[str]:
    """GPUs that stages may use: those of CUDA_VISIBLE_DEVICES, else all that the NVIDIA driver lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(_DRIVER.glob("*"))) or _listed())]


def _listed() -> int:
    """What `nvidia-smi` lists: under WSL and in some containers the driver has no folder in /proc."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    with suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=_LONGEST_ANSWER_SECONDS, check=False)
        return sum(line.startswith("GPU ") for line in asked.stdout.splitlines())
    return 0


def needed_devices(config: StageConfig) -> int:
    """One GPU per process of a stage that needs any."""
    return config.processes if config.needs_devices else 0


class Devices:
    """Which GPUs are free, where up to `stages_per_gpu` stages share one. No two processes of a stage do."""

    def __init__(self, names: Iterable[str], stages_per_gpu: int) -> None:
        self.names = list(names)
        self.stages_per_gpu = stages_per_gpu
        self._taken: Counter[str] = Counter()

    @property
    def places(self) -> int:
        """How many stages of one process fit at once."""
        return len(self.names) * self.stages_per_gpu

    def free(self) -> list[str]:
        """GPUs with room for one more stage, the emptiest first."""
        return sorted((name for name in self.names if self._taken[name] < self.stages_per_gpu), key=lambda name: self._taken[name])

    def take(self, names: Iterable[str]) -> None:
        self._taken.update(names)

    def give_back(self, names: Iterable[str]) -> None:
        self._taken.subtract(names)
