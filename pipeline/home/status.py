"""`priorlab status`: what is on disk about each stage, from a few small files per folder, so that thousands are read quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.errors import PriorlabError
from pipeline.experiment.graph import build_graph
from pipeline.experiment.saved import known_sweep
from pipeline.run.backend import Job
from pipeline.store.folders import Home, StageFolder, status_of
from pipeline.store.progress import describe, rate, seconds_left

STATES = ("running", "queued", "failed", "cancelled", "unfinished", "damaged", "new", "done")


@dataclass(frozen=True)
class StageReport:
    """One stage. Its fields are the keys of `status --json`; numbers are None where unknown."""

    stage: str
    """KIND/SLUG-FINGERPRINT"""
    state: str
    """One of STATES; `queued` waits in Slurm, `unfinished` was started and is not running, `damaged` has an unreadable record."""
    step: int | None
    total: int | None
    unit: str | None
    """What `step` and `total` count."""
    rate: float | None
    """Units per second, within the running attempt."""
    seconds_left: float | None
    """At that rate, from the last report."""
    reported: float | None
    """When the stage last reported, in seconds since 1970: a running stage long silent may hang."""
    attempts: int
    progress: str
    """The same for people: counts, or what went wrong."""
    log: str | None
    """Output of the newest attempt."""
    folder: str


def folders_of(home: Home, sweep: str | None) -> list[StageFolder]:
    """Every stage on disk, or every stage of a sweep, started or not."""
    if sweep is None:
        return home.stages()
    return [node.folder(home) for node in build_graph(known_sweep(sweep, home).cells()).stages.values()]


def stage_state(folder: StageFolder, job: Job | None) -> str:
    """done | queued | running | cancelled | failed | unfinished | new; `job` is the cluster job that works on it, if any."""
    if folder.record() is not None:
        return "done"
    if not folder.path.exists():
        return "new"
    if job is not None:
        return "queued" if job.waiting else "running"
    if folder.is_held():
        return "running"
    if folder.cancelled.exists():
        return "cancelled"
    return "failed" if status_of(folder).get("state") == "failed" else "unfinished"


def report_on(folder: StageFolder, job: Job | None) -> StageReport:
    """What a stage's folder says, and its job in a queue if it has one; damaged files are the report's `problem`."""
    progress: dict[str, Any] = status_of(folder)
    try:
        state, problem = stage_state(folder, job), progress.get("message", "")
    except PriorlabError as error:  # one bad file must not hide the other stages
        state, problem = "damaged", str(error)
    attempts, log = folder.attempts(), folder.last_log()
    running = progress if state == "running" else {}
    return StageReport(
        stage=folder.name,
        state=state,
        step=progress.get("step"),
        total=progress.get("total") or None,
        unit=progress.get("unit"),
        rate=rate(running),
        seconds_left=seconds_left(running),
        reported=progress.get("time"),
        attempts=len(attempts),
        progress=_shown(state, problem or describe(progress), job),
        log=None if log is None else str(log),
        folder=str(folder.path),
    )


def _shown(state: str, progress: str, job: Job | None) -> str:
    parts = [] if state in ("done", "new") else [progress]
    if job is not None:
        parts.append(f"job {job.id}" + (f" waits: {job.reason}" if job.waiting else ""))
    return "  ".join(filter(None, parts))
