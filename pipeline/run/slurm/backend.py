"""Stages as jobs of a Slurm cluster: one job per stage, submitted at once, chained by `afterok`.

Slurm alone carries the sweep from then on: the command only watches, and may end. Jobs are found again by the ids in their stages'
folders. A stage whose parent fails is cancelled by Slurm (`--kill-on-invalid-dep`). `max_jobs` is kept the same way, without anybody to
watch: jobs stand in that many lanes, and each also waits for the end (`afterany`) of the one before it in its lane.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.errors import PriorlabError
from pipeline.experiment.graph import StageNode
from pipeline.run.backend import Backend, Command, Job, Seen
from pipeline.run.launch import PYTHON
from pipeline.run.retries import cause_of_exit
from pipeline.run.slurm import queue
from pipeline.run.slurm.job import StageJob
from pipeline.run.slurm.queue import SlurmJob
from pipeline.run.state import AT_WORK, StageState
from pipeline.store.files import take_lock, write_json_atomically
from pipeline.store.folders import StageFolder, status_of

_LOCK_SECONDS = 0.25
_RECORD_SECONDS = 60.0
"""How long a record may stay invisible after its job has ended: network file systems show files late."""
_ENDING_POLL_SECONDS = 1.0


class SlurmBackend(Backend):
    chains = True
    no_room = "Slurm accepts no more of your jobs for now; the rest are submitted as others end, or when you rerun this"
    stopping = "cancelling the jobs of this sweep; press Ctrl-C again to stop waiting for them"

    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self.cluster = command.cluster
        self.detached = not self.cluster.wait
        self._jobs: dict[str, str] = {}  # job ids by fingerprint
        self._ended: dict[str, float] = {}  # when a job was first seen to have ended, by id
        self._poll_seconds = self.cluster.poll_seconds
        self._cancelling = False
        self._asked = -math.inf
        self._refused = -math.inf  # when Slurm last refused a job for the number of those in the queue, or did not answer
        self._lanes: list[list[str]] = [[] for _ in range(self.cluster.max_jobs or 0)]
        self._listed: dict[str, SlurmJob] | None = None  # Slurm's answer, for as long as nobody else submits

    def begin(self, states: Sequence[StageState]) -> None:
        queue.require_slurm()

    @contextmanager
    def handover(self) -> Iterator[None]:
        """One process submits at a time, so that two sweeps with a stage in common make one job of it."""
        self.command.home.path.mkdir(parents=True, exist_ok=True)
        while (lock := take_lock(self.command.home.path / "slurm.lock")) is None:
            time.sleep(_LOCK_SECONDS)
        self._listed = None
        try:
            yield
        finally:
            os.close(lock)

    def found(self, states: Sequence[StageState]) -> Iterator[tuple[StageState, Seen]]:
        """Jobs of this sweep's last start, or of another sweep with the same stage."""
        jobs = self._listed = queue.all_jobs()
        for state in states:
            if state.state != "waiting":
                continue
            job = queue.job_of(state.folder, jobs)
            if job is None or not job.live:
                job = queue.lost_job(state.node, state.folder, jobs)
                if job is not None:
                    queue.remember(state.folder, job.id, self.command.sweep, job.name)
            if job is None or not job.live:
                continue
            self._jobs[state.node.fingerprint] = job.id
            if job.doomed or any(parent.state == "waiting" for parent in state.parents):
                queue.cancel([job.id])  # it waits for a job that has failed
            else:
                self._stand_in_lane(job.id, [])
                yield state, Seen("queued", f"job {job.id}")

    @property
    def full(self) -> bool:
        return time.monotonic() - self._refused < self._poll_seconds

    def start(self, state: StageState) -> Seen | None:
        if self.full:  # since the last stage of this round
            return Seen("later")
        try:
            job = self._submitted_elsewhere(state)
        except PriorlabError:  # the controller restarts, or is busy
            self._refused = time.monotonic()
            return Seen("later")
        if job is None:
            with _undisturbed():
                job = self._submit(state)
        if job is None:
            self._refused = time.monotonic()
            return None
        self._jobs[state.node.fingerprint] = job
        return Seen("queued", f"job {job}")

    def _submitted_elsewhere(self, state: StageState) -> str | None:
        """The job that another command has made of the stage since this one last looked: after a failure both would try again."""
        if not queue.was_submitted(state.folder):
            return None
        if self._listed is None:
            self._listed = queue.all_jobs()
        job = queue.job_of(state.folder, self._listed)
        known = self._jobs.get(state.node.fingerprint)
        return job.id if job is not None and job.live and not job.doomed and job.id != known else None

    def _submit(self, state: StageState) -> str | None:
        """The job's id; None if Slurm has as many jobs as it takes. Raises `PriorlabError` if it refuses this one."""
        from submitit import SlurmExecutor  # half of the command line's start-up time otherwise
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        node, folder = state.node, state.folder
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json_atomically(folder.spec, node.spec(self.command.home, self.command.sweep))
        folder.status.unlink(missing_ok=True)
        folder.cancelled.unlink(missing_ok=True)
        parents = [self._jobs[parent.node.fingerprint] for parent in state.parents if parent.state in AT_WORK]
        ahead = self._ahead(parents)
        dependency = [f"afterok:{job}" for job in dict.fromkeys(parents)] + [f"afterany:{job}" for job in ahead]
        executor = SlurmExecutor(folder.path / "slurm", max_num_timeout=self.cluster.max_timeouts)
        work = StageJob(
            node.kind, str(folder.path), node.config.processes, node.config.threads, self.cluster.resources(node.kind).minutes,
            self.command.commit, node.config.reads_hub, saves=node.config.launch is not None,
            grace_seconds=self.cluster.warning_seconds * 2 / 3,
        )  # fmt: skip
        try:
            executor.update_parameters(**self._parameters(node, folder, dependency))
            job: str = executor.submit(work).job_id
        except (FailedJobError, FailedSubmissionError) as error:
            if queue.is_full(str(error)):
                return None
            words = " ".join(line.strip() for line in str(error).splitlines() if "sbatch" in line) or str(error)
            raise PriorlabError(f"sbatch refused the job: {words}; look at cluster.{node.kind}") from error
        queue.remember(folder, job, self.command.sweep, queue.job_name(node, folder))
        self._stand_in_lane(job, ahead)
        return job

    def _parameters(self, node: StageNode, folder: StageFolder, dependency: list[str]) -> dict[str, Any]:
        """submitit's names for what sbatch is told."""
        resources = self.cluster.resources(node.kind)
        per_node = node.config.processes // resources.nodes
        cpus = resources.cpus_per_process * per_node
        options = {"requeue": True, "kill-on-invalid-dep": "yes"} | self.cluster.options | resources.options
        chosen: dict[str, Any] = {
            "job_name": queue.job_name(node, folder),
            "nodes": resources.nodes,
            "ntasks_per_node": 1,  # which starts torchrun, where there are several processes
            "cpus_per_task": cpus,
            "time": resources.minutes,
            "signal_delay_s": self.cluster.warning_seconds,
            "setup": [f"export {name}={shlex.quote(value)}" for name, value in PYTHON.items()],
            # Since Slurm 22.05 srun does not take --cpus-per-task over from sbatch.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"],
            "additional_parameters": {name: value for name, value in options.items() if value is not False},
        }
        if dependency:
            chosen["dependency"] = ",".join(dependency)
        if resources.gpus_per_process:
            chosen["gpus_per_node"] = resources.gpus_per_process * per_node
        if resources.memory_gib is not None:
            chosen["mem"] = f"{int(resources.memory_gib * 1024)}MB"
        partition = resources.partition or self.cluster.partition
        if partition is not None:
            chosen["partition"] = partition
        return chosen

    def _ahead(self, parents: list[str]) -> list[str]:
        """The job that the next one must follow in its lane: a parent if one stands last, else the one in the shortest lane."""
        if not self._lanes or any(not lane for lane in self._lanes):
            return []
        behind_parent = [lane for lane in self._lanes if lane[-1] in parents]
        return [(behind_parent or [min(self._lanes, key=len)])[0][-1]]

    def _stand_in_lane(self, job: str, ahead: list[str]) -> None:
        if self._lanes:
            lane = next((lane for lane in self._lanes if lane[-1:] == ahead), min(self._lanes, key=len))
            lane.append(job)

    def poll(self, active: Sequence[StageState]) -> Iterator[tuple[StageState, Seen]]:
        if time.monotonic() - self._asked < self._poll_seconds:
            return
        self._asked = time.monotonic()
        try:
            jobs = queue.all_jobs()
        except PriorlabError:  # the controller restarts, or is busy: the jobs do not mind
            return
        for state in active:
            if state.state not in AT_WORK:  # of a parent that ended in this round
                continue
            number = self._jobs[state.node.fingerprint]
            job = jobs.get(number)
            if state.folder.record_file.exists():
                yield state, Seen("ended")
            elif job is not None and job.doomed:
                with suppress(PriorlabError):  # no answer: it waits for nothing, and the next look finds it again
                    queue.cancel([job.id])
                    yield state, self._lost(state, number, job)
            elif job is not None and job.live:
                yield state, Seen("queued", f"job {number} waits: {job.reason}") if job.waiting else Seen("running")
            elif not self._cancelling and any(parent.state in AT_WORK for parent in state.parents):
                continue  # Slurm has cancelled it: what came of the parent says why
            elif time.monotonic() - self._ended.setdefault(number, time.monotonic()) >= _patience(job):
                yield state, self._lost(state, number, job)

    def _lost(self, state: StageState, number: str, job: SlurmJob | None) -> Seen:
        """The job has ended without a record."""
        status = status_of(state.folder)
        reported = cause_of_exit(status.get("code", 1)) if status.get("state") == "failed" else None
        ended = f"job {number} ended" + (f" as {job.state}" if job is not None else ", and Slurm has forgotten how")
        hint = f"; raise cluster.{state.node.kind}.memory_gib" if job is not None and job.state == "OUT_OF_MEMORY" else ""
        reason = str(status["message"]) if reported else ended + hint
        cause = queue.cause_of_job(None if job is None else job.state, reported)
        return Seen("ended", reason, cause, state.folder.path / "slurm" / f"{number}_0_log.err")

    def withdraw(self, states: Sequence[StageState]) -> None:
        with suppress(PriorlabError):  # Slurm may have cancelled them already
            queue.cancel(self._jobs[state.node.fingerprint] for state in states)

    def interrupt(self, active: Sequence[StageState], *, kill: bool) -> list[StageState]:
        """Jobs stay, unless the config says that they are cancelled; those that another sweep submitted stay anyway."""
        if self.cluster.on_interrupt == "leave" or kill:
            return []
        own = [state for state in active if queue.submitted_by(state.folder) == self.command.sweep]
        queue.cancel(self._jobs[state.node.fingerprint] for state in reversed(own))  # later ones first: none starts in between
        self._asked, self._poll_seconds, self._cancelling = -math.inf, _ENDING_POLL_SECONDS, True
        return own

    @classmethod
    def jobs(cls, folders: Iterable[StageFolder], *, strict: bool = False) -> dict[StageFolder, Job]:
        """Slurm is asked only if an unfinished stage was ever submitted."""
        submitted = [folder for folder in folders if queue.was_submitted(folder) and not folder.record_file.exists()]
        try:
            jobs = queue.all_jobs() if submitted else {}
        except PriorlabError:
            if strict:
                raise
            jobs = {}
        found = {folder: queue.job_of(folder, jobs) for folder in submitted}
        return {
            folder: Job(job.id, job.waiting, job.reason, queue.submitted_by(folder) or "")
            for folder, job in found.items()
            if job is not None and job.live
        }

    @classmethod
    def cancel(cls, folders: Sequence[StageFolder]) -> list[StageFolder]:
        found = cls.jobs(folders, strict=True)
        queue.cancel(job.id for job in reversed(found.values()))  # dependents first: none starts in between
        return list(found)


def _patience(job: SlurmJob | None) -> float:
    return _RECORD_SECONDS if job is None or job.state == "COMPLETED" else 0.0


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal: one that ended sbatch between submission and its answer would orphan a job."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
