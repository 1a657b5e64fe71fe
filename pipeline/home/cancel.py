"""`priorlab cancel`: stop a sweep or a stage, so that nothing restarts it by itself.

A sweep: its driver is asked to stop, as by Ctrl-C, and stops its stages in order. Stages of the sweep that other commands started are
then stopped one by one; those that another sweep's driver runs keep running, and are named. Jobs on a cluster are cancelled.

A stage: it is marked (`cancelled.json`) and stopped. A driver that runs it, or waits for it, reports it as cancelled, does not restart
it, and continues with what does not depend on it. The next command that runs the stage removes the mark and resumes from the last
checkpoint.

Only processes that hold the lock in question are signalled.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import PriorlabError
from pipeline.home.processes import holder_text, holders, runs_spec, signal_holder
from pipeline.home.status import folders_of
from pipeline.run.backend import Job
from pipeline.run.backends import cancel_jobs, jobs_of
from pipeline.store.files import lock_is_held, read_json, write_json_atomically
from pipeline.store.folders import NAME, Home, StageFolder

_POLL_SECONDS = 0.1
_START_SECONDS = 3.0
"""An orchestrator holds a stage's lock for an instant before the stage does."""
_GRACE_SECONDS = 90.0
"""A stage takes up to sixty to save a step checkpoint; a driver gives its stages a little more."""


@dataclass
class Cancelled:
    """What was stopped, and which of the sweep's stages another sweep keeps running."""

    driver: int | None = None
    stages: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    """Stage -> the sweep that runs it."""


def cancel(name: str, home: Home, note: Callable[[str], None]) -> Cancelled:
    """Cancel the sweep of this name if there is one, else the stage. `note` is told what it waits for."""
    if NAME.fullmatch(name) and (home.sweep(name) / "sweep.yaml").exists():
        return _cancel_sweep(name, home, note)
    folder = home.find_stage(name)
    if _jobs([folder]):
        _mark(folder)
        cancel_jobs([folder])
        return Cancelled(stages=[folder.name])
    return Cancelled(stages=[folder.name] if _cancel_stage(folder, note) else [])


def _cancel_sweep(name: str, home: Home, note: Callable[[str], None]) -> Cancelled:
    found = Cancelled()
    folders = folders_of(home, name)
    running = [folder.name for folder in folders if folder.is_held() and _sweep_of(folder) == name]
    lock = home.sweep(name) / "lock"
    _jobs(folders)  # before anything is ended: whether there is an answer
    if lock_is_held(lock):
        found.driver = _end(lock, lambda _: True, group=False)
        found.stages = [folder for folder in running if not StageFolder(home.path / "stages" / folder).is_held()]
    jobs = _jobs(folders)
    found.stages += [folder.name for folder in cancel_jobs([folder for folder, job in jobs.items() if job.sweep == name])]
    found.left = {folder.name: job.sweep for folder, job in jobs.items() if job.sweep != name}
    folders = [folder for folder in folders if folder not in jobs]
    while active := [folder for folder in folders if folder.is_held()]:  # a driver of single stages may start the next in between
        mine = [folder for folder in active if _sweep_of(folder) == name]
        if not mine:
            found.left |= {folder.name: _sweep_of(folder) for folder in active}
            break
        found.stages += [folder.name for folder in mine if _cancel_stage(folder, note)]
    return found


def _jobs(folders: Sequence[StageFolder]) -> dict[StageFolder, Job]:
    """The stages' jobs. Raises `PriorlabError` without an answer, unless processes of this machine run all that may have one."""
    try:
        return jobs_of(folders, strict=True)
    except PriorlabError:
        return jobs_of([folder for folder in folders if not lock_is_held(folder.path / "lock")], strict=True)


def _cancel_stage(folder: StageFolder, note: Callable[[str], None]) -> bool:
    """Whether the stage was running and was stopped before it finished."""
    if not folder.is_held():
        return False
    lock = folder.path / "lock"
    if not lock_is_held(lock) and (elsewhere := folder.runs_elsewhere()) is not None:
        if folder.holder_is_dead(note):
            return False
        raise PriorlabError(f"{folder.path} is run by {elsewhere}; run the command on that machine")
    _mark(folder)
    try:
        # Marked again once it runs: a command that was starting it has removed the mark.
        _end(lock, lambda process: runs_spec(process, folder.spec), group=True, found=lambda: _mark(folder))
    except PriorlabError:
        folder.cancelled.unlink(missing_ok=True)
        raise
    if folder.record_file.exists():  # it finished first
        folder.cancelled.unlink(missing_ok=True)
        return False
    return True


def _mark(folder: StageFolder) -> None:
    """Call before ending the stage: a driver looks for the mark once the stage has ended."""
    by = f"process {os.getpid()} on {socket.gethostname()}"
    write_json_atomically(folder.cancelled, {"time": time.time(), "by": by})


def _end(lock: Path, is_meant: Callable[[int], bool], *, group: bool, found: Callable[[], None] = lambda: None) -> int | None:
    """Stop the holder of a lock: SIGTERM, then SIGKILL if that fails. Its process number, or None if it ended by itself.

    `found` is called before it is signalled.
    """
    process = _find(lock, is_meant)
    if process is None:
        return None
    found()
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal_holder(process, lock, number, group=group and number == signal.SIGKILL)  # a stage needs its workers to end in order
        if _wait(lambda: process not in holders(lock), _GRACE_SECONDS):
            return process
    raise PriorlabError(f"process {process} holds {lock} and survives even SIGKILL; see what it waits for (a dead disk?)")


def _find(lock: Path, is_meant: Callable[[int], bool]) -> int | None:
    deadline = time.time() + _START_SECONDS
    while lock_is_held(lock):
        meant = [process for process in holders(lock) if is_meant(process)]
        if meant:  # children that inherited the lock started after their parent
            return min(meant, key=_age)
        if time.time() > deadline:
            raise PriorlabError(
                f"{lock} is held by {holder_text(lock)}, but not by a process of {socket.gethostname()} that can be stopped; "
                "run the command on that machine"
            )
        time.sleep(_POLL_SECONDS)
    return None


def _age(process: int) -> int:
    """Start time in clock ticks, the 22nd field of stat; the command's name before it may hold blanks."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:  # it has just ended
        return 0


def _wait(is_so: Callable[[], bool], seconds: float) -> bool:
    deadline = time.time() + seconds
    while not is_so():
        if time.time() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _sweep_of(folder: StageFolder) -> str:
    spec = read_json(folder.spec)
    return str(spec.get("sweep", "")) if isinstance(spec, dict) else ""
