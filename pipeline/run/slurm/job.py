"""What runs inside a Slurm job, on each of its nodes: the stage's process, its lock and its log, as on a machine of its own.

Three things end it early. Some seconds before the time limit Slurm sends SIGUSR2: the stage is ended, and submitit's checkpointing
hook requeues the job under its own id, so that what depends on it goes on waiting. Preemption and `scontrol requeue` send SIGTERM:
the stage is ended, and Slurm requeues. `scancel` sends SIGTERM too, and nothing follows. A stage run again resumes from its step
checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

from pipeline.errors import REFUSED_EXIT, PriorlabError
from pipeline.run.launch import Nodes, exit_code, failure, launch_command, process_environment, signal_session, start_process
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import StageFolder, status_of
from pipeline.store.lease import SILENCE_SECONDS

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_POLL_SECONDS = 0.2
_LOCK_SECONDS = SILENCE_SECONDS + 60.0
"""The processes of an attempt that was just requeued may still be ending, or have died with their node and left their lease."""
_SIGNAL_LAG_SECONDS = 3.0
"""Slurm signals stage and job alike; the stage's death may be seen before the job's own signal."""
_LINGER_SECONDS = 900.0
"""A job that ends by itself while Slurm preempts it counts as failed and is not requeued: it waits to be killed."""


@dataclass
class StageJob:
    """Pickled by submitit and called on every node."""

    kind: str
    folder: str
    processes: int
    threads: int
    minutes: int
    commit: str
    hub: bool
    saves: bool
    """Whether it saves step checkpoints."""
    grace_seconds: float
    """For the stage to save a step checkpoint, once it is asked to end."""
    _started: float = field(default=0.0, repr=False)
    _saved_before: set[str] = field(default_factory=set, repr=False)

    def __call__(self) -> None:
        folder = StageFolder(Path(self.folder))
        rank = int(os.environ["SLURM_NODEID"])
        if folder.record_file.exists():  # finished by somebody while the job waited
            return
        self._started = time.time()
        self._saved_before = _saved(folder)
        nodes = _nodes(rank)
        lock = _take_lock(folder) if rank == 0 else None
        if rank == 0:
            folder.status.unlink(missing_ok=True)
        start = launch_command(self.kind, folder, self.processes, nodes, saving_seconds=self.grace_seconds)
        seen = process_environment(self.threads, lock, self.commit, hub=self.hub, saving_seconds=self.grace_seconds)
        with _output(folder, rank, start, self.commit) as log:
            process = start_process(start, seen, log, lock)
        if lock is not None:
            os.close(lock)  # the stage process holds it now
        ending = _Ending(process, self.grace_seconds)
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
        signal_session(process, signal.SIGKILL)  # workers that outlived their parent
        if rank == 0:
            folder.free_dead_lease()
        if folder.record_file.exists() or (rank > 0 and process.returncode == 0):
            return
        ending.wait_for_signal()
        if ending.asked:
            time.sleep(_LINGER_SECONDS)
        code = exit_code(folder, process.returncode)
        reason = failure(folder, code)
        if rank == 0:
            _report(folder, reason, code)
        raise PriorlabError(reason)

    def checkpoint(self) -> DelayedSubmission | None:
        """submitit's hook, when the stage has been ended: what to run after requeueing; None fails the job instead.

        A stage that got through its whole time without saving anything would do so for ever.
        """
        from submitit.helpers import DelayedSubmission

        folder = StageFolder(Path(self.folder))
        timed_out = time.time() - self._started > 0.8 * 60 * self.minutes
        if timed_out and _saved(folder) <= self._saved_before and not folder.record_file.exists():
            launch = f", or lower {self.kind}.launch.save_steps" if self.saves else ""
            _report(
                folder,
                f"reached its time limit without saving anything new; raise cluster.{self.kind}.minutes (it is {self.minutes}){launch}",
                REFUSED_EXIT,
            )
            return None
        return DelayedSubmission(replace(self, _started=0.0, _saved_before=set()))


class _Ending:
    """Ends the stage when Slurm says that the job will end, then hands SIGUSR2 on to submitit, which requeues on the first node."""

    def __init__(self, process: subprocess.Popen[bytes], grace_seconds: float) -> None:
        self.process = process
        self.grace_seconds = grace_seconds
        self.asked = False
        self._requeue = signal.getsignal(signal.SIGUSR2)
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.process.terminate()
        deadline = time.time() + self.grace_seconds
        while self.process.poll() is None and time.time() < deadline:
            time.sleep(_POLL_SECONDS)
        signal_session(self.process, signal.SIGKILL)
        if number == signal.SIGUSR2 and callable(self._requeue):
            self._requeue(number, frame)

    def wait_for_signal(self) -> None:
        deadline = time.time() + _SIGNAL_LAG_SECONDS
        while not self.asked and time.time() < deadline:
            time.sleep(_POLL_SECONDS)


def _nodes(rank: int) -> Nodes:
    """Where torchrun's processes meet: at the first node's address as Slurm has it, which need not be its name."""
    count = int(os.environ["SLURM_JOB_NUM_NODES"])
    if count == 1:
        return Nodes()
    first = _scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()[0]
    shown = dict(pair.split("=", 1) for pair in _scontrol("show", "node", first, "--oneliner").split() if "=" in pair)
    # Every node must name the same port without asking: it follows from the job, and differs after each requeueing.
    number = int(os.environ["SLURM_JOB_ID"]) * 7 + int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return Nodes(count, rank, shown.get("NodeAddr", first), 20000 + number % 12000)


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S607


def _take_lock(folder: StageFolder) -> int:
    deadline = time.time() + _LOCK_SECONDS
    while (lock := folder.lock()) is None:
        if time.time() > deadline:
            raise PriorlabError(f"{folder.path} is already run by {folder.holder()}; start the sweep again when that has ended")
        time.sleep(1)
    return lock


@contextlib.contextmanager
def _output(folder: StageFolder, rank: int, start: list[str], commit: str) -> Iterator[IO[bytes]]:
    """The attempt's log on the first node; the others' output goes to Slurm's file of their task."""
    if rank > 0:
        yield sys.stdout.buffer
        return
    attempt = folder.new_attempt()
    about = {"command": start, "job": os.environ["SLURM_JOB_ID"], "nodes": os.environ["SLURM_JOB_NODELIST"], "commit": commit}
    write_json_atomically(attempt / "attempt.json", about)
    with (attempt / "stdout.log").open("wb") as log:
        yield log


def _saved(folder: StageFolder) -> set[str]:
    """The step checkpoints that a stage could resume from."""
    return {path.parent.name for path in folder.checkpoints.glob("*/complete")}


def _report(folder: StageFolder, reason: str, code: int) -> None:
    """Leave a reason that outlives Slurm's memory of the job; the stage's own words stand above it."""
    if status_of(folder).get("state") != "failed":
        with contextlib.suppress(OSError):
            write_json_atomically(folder.status, {"state": "failed", "message": reason, "code": code, "time": time.time()})
