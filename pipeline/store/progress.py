"""A stage's progress in words and numbers, from what it last wrote to status.json.

The rate is measured within the running attempt (`since` is its first report), because a resumed stage starts far from 0. Any reader
thus gets rate and time left at first glance.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError


class _Since(BaseModel, strict=True):
    step: float
    time: float


class _Progress(BaseModel, strict=True):
    state: str = ""
    time: float = 0.0
    started: float = 0.0
    step: float = 0.0
    total: float = 0.0
    unit: str = ""
    since: _Since | None = None
    shown: dict[str, float] = {}
    message: str = ""
    code: int = 1


def is_progress(found: dict[str, Any]) -> bool:
    """Whether status.json holds what `stages.contract` writes there, and not something of another hand or version."""
    try:
        progress = _Progress.model_validate(found)
    except ValidationError:
        return False
    counts = {"step"} if progress.total else set()
    return (counts if progress.since is None else {"step", "time"}) <= found.keys()


def seconds_so_far(progress: dict[str, Any]) -> float | None:
    """From the start of the stage's process to its last report, by its own clock; None if it has not said so."""
    seconds = progress.get("time", 0.0) - progress.get("started", progress.get("time", 0.0))
    return seconds if seconds > 0 else None


def rate(progress: dict[str, Any]) -> float | None:
    """Units per second, or None while unknown."""
    since = progress.get("since")
    if progress.get("state") != "running" or not progress.get("total") or not since:
        return None
    steps, seconds = progress["step"] - since["step"], progress["time"] - since["time"]
    return steps / seconds if steps > 0 and seconds > 0 else None


def seconds_left(progress: dict[str, Any]) -> float | None:
    """Until the total is reached at the rate so far, counted from the last report."""
    speed = rate(progress)
    return None if speed is None else (progress["total"] - progress["step"]) / speed


def counted(progress: dict[str, Any]) -> str:
    """`240/500 steps`, or what is being done where nothing is counted."""
    if not progress.get("unit"):
        return ""
    return f"{progress['step']}/{progress['total']} {progress['unit']}" if progress.get("total") else str(progress["unit"])


def metrics(progress: dict[str, Any]) -> str:
    """`loss 1.02  entropy 0.98`"""
    return "  ".join(f"{name} {number(value)}" for name, value in progress.get("shown", {}).items())


def describe(progress: dict[str, Any]) -> str:
    """`240/500 steps  loss 1.02  entropy 0.98`"""
    return "  ".join(filter(None, (counted(progress), metrics(progress))))


def describe_pace(progress: dict[str, Any]) -> tuple[str, str]:
    """(`12 steps/s`, `1m05s left`), or empty strings while unknown."""
    speed, left = rate(progress), seconds_left(progress)
    if speed is None or left is None:
        return "", ""
    return f"{number(speed)} {progress['unit']}/s", f"{duration(left)} left"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 2 * 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
