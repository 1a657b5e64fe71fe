"""Run a graph on a Slurm cluster: one job per stage, submitted at once, chained by `afterok`.

Slurm alone carries the sweep from then on: this process only watches, and may end. Jobs are found again by the ids in their stages'
folders. A stage whose parent fails is cancelled by Slurm (`--kill-on-invalid-dep`). `max_jobs` is kept the same way, without anybody to
watch: jobs stand in that many lanes, and each also waits for the end (`afterany`) of the one before it in its lane.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.config.cluster import ClusterConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import StageNode
from pipeline.run.launch import CODE, git_commit, processes_of, reads_hub, threads_of
from pipeline.run.retries import Attempts, cause_of_exit, cause_of_job
from pipeline.run.runner import StageState, State, View
from pipeline.run.slurm.job import StageJob
from pipeline.run.slurm.queue import Job, all_jobs, cancel, job_name, job_of, lost_job, remember, require_slurm, submitted_by
from pipeline.store.files import take_lock, write_json_atomically
from pipeline.store.folders import Home, status_of

_TICK_SECONDS = 0.25
_RECORD_SECONDS = 60.0
"""How long a record may stay invisible after its job has ended: network file systems show files late."""
_CANCEL_SECONDS = 60.0


class SlurmRunner:
    def __init__(self, home: Home, sweep: str, cluster: ClusterConfig, states: dict[str, StageState], view: View) -> None:
        self.home = home
        self.sweep = sweep
        self.cluster = cluster
        self.states = states
        self.view = view
        self.stopping = False
        self.commit = git_commit()
        self._jobs: dict[str, str] = {}  # job ids by fingerprint
        self._ended: dict[str, float] = {}
        self._again: dict[str, float] = {}  # when to submit a stage once more, by fingerprint
        self.attempts = Attempts(cluster.retries)
        self._lanes: list[list[str]] = [[] for _ in range(cluster.max_jobs or 0)]

    def loop(self) -> None:
        require_slurm()
        with self._submitting():
            self._adopt(all_jobs())
            self._submit_rest()
        if not self.cluster.wait:
            return
        asked = 0.0
        while (self._active() or self._again) and not self.stopping:
            if time.time() - asked >= self.cluster.poll_seconds:
                self._poll()
                asked = time.time()
            self._submit_again()
            for state in self._active():
                state.progress = status_of(state.folder)
            self.view.tick(list(self.states.values()))
            time.sleep(_TICK_SECONDS)
        if self.stopping and self.cluster.on_interrupt == "cancel":
            self._cancel()

    def stop(self) -> None:
        self.stopping = True

    def _parents(self, state: StageState) -> list[StageState]:
        return [self.states[p.fingerprint] for p in state.node.parents.values() if p.fingerprint in self.states]

    def _blocked(self, state: StageState) -> bool:
        lost = [parent for parent in self._parents(state) if parent.state in ("failed", "blocked")]
        if lost:
            self._enter(state, "blocked", f"needs {lost[0].node.name}, which {lost[0].state}")
        return bool(lost)

    def _active(self) -> list[StageState]:
        return [state for state in self.states.values() if state.state in ("queued", "running")]

    def _adopt(self, jobs: dict[str, Job]) -> None:
        """Jobs that are there already, of this sweep's last start or of another sweep with the same stage."""
        for fingerprint, state in self.states.items():
            job = job_of(state.folder, jobs)
            if state.state == "waiting" and (job is None or not job.live):
                job = lost_job(state.node, state.folder, jobs)
                if job is not None:
                    remember(state.folder, job.id, self.sweep, job.name)
            if state.state != "waiting" or job is None or not job.live:
                continue
            if job.doomed or any(parent.state == "waiting" for parent in self._parents(state)):
                cancel([job.id])  # it waits for a job that has failed
            else:
                self._jobs[fingerprint] = job.id
                self._stand_in_lane(job.id, [])
                self._enter(state, "queued", f"job {job.id}")

    def _submit_rest(self) -> None:
        for fingerprint, state in self.states.items():  # parents come first
            if self.stopping:
                return
            if state.state != "waiting" or fingerprint in self._again or self._blocked(state):
                continue
            if any(parent.state == "waiting" for parent in self._parents(state)):
                continue
            try:
                with _undisturbed():
                    self._jobs[fingerprint] = job = self._submit(state)
            except PriorlabError as error:
                self._enter(state, "failed", str(error))
                continue
            self._enter(state, "queued", f"job {job}")

    def _submit_again(self) -> None:
        """Stages whose time has come after a failure, and what depends on them."""
        due = [fingerprint for fingerprint, when in self._again.items() if when <= time.time()]
        for fingerprint in due:
            del self._again[fingerprint]
        if due:
            with self._submitting():
                self._submit_rest()

    def _submit(self, state: StageState) -> str:
        from submitit import SlurmExecutor  # half of the command line's start-up time otherwise
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        node, folder = state.node, state.folder
        resources = self.cluster.resources(node.kind)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json_atomically(folder.spec, node.spec(self.home, self.sweep))
        folder.status.unlink(missing_ok=True)
        parents = [self._jobs[parent.fingerprint] for parent in node.parents.values() if parent.fingerprint in self._jobs]
        ahead = self._ahead(parents)
        dependency = [f"afterok:{job}" for job in dict.fromkeys(parents)] + [f"afterany:{job}" for job in ahead]
        executor = SlurmExecutor(folder.path / "slurm", max_num_timeout=self.cluster.max_timeouts)
        work = StageJob(
            node.kind, str(folder.path), processes_of(node), threads_of(node), resources.minutes, self.commit, reads_hub(node),
            grace_seconds=self.cluster.warning_seconds * 2 / 3,
        )  # fmt: skip
        try:
            executor.update_parameters(**self._parameters(node, dependency))
            job: str = executor.submit(work).job_id
        except (FailedJobError, FailedSubmissionError) as error:
            words = " ".join(line.strip() for line in str(error).splitlines() if "sbatch" in line) or str(error)
            raise PriorlabError(f"sbatch refused the job: {words}; look at cluster.{node.kind}") from error
        remember(folder, job, self.sweep, job_name(node, folder))
        self._stand_in_lane(job, ahead)
        return job

    def _parameters(self, node: StageNode, dependency: list[str]) -> dict[str, Any]:
        """submitit's names for what sbatch is told."""
        resources = self.cluster.resources(node.kind)
        per_node = processes_of(node) // resources.nodes
        cpus = resources.cpus_per_process * per_node
        options = {"requeue": True, "kill-on-invalid-dep": "yes"} | self.cluster.options | resources.options
        chosen: dict[str, Any] = {
            "job_name": job_name(node, node.folder(self.home)),
            "nodes": resources.nodes,
            "ntasks_per_node": 1,  # which starts torchrun, where there are several processes
            "cpus_per_task": cpus,
            "time": resources.minutes,
            "signal_delay_s": self.cluster.warning_seconds,
            "setup": [f"export PYTHONPATH={shlex.quote(str(CODE))}${{PYTHONPATH:+:$PYTHONPATH}}"],
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

    def _poll(self) -> None:
        try:
            jobs = all_jobs()
        except PriorlabError:  # the controller restarts, or is busy: the jobs do not mind
            return
        for fingerprint, state in self.states.items():
            if state not in self._active():
                continue
            job = jobs.get(self._jobs[fingerprint])
            if state.folder.record_file.exists():
                state.ended = time.time()
                self._enter(state, "done")
            elif job is not None and job.doomed:
                cancel([job.id])
                self._lose(state, job)
            elif job is not None and job.live:
                self._follow(state, job)
            elif any(parent in self._active() for parent in self._parents(state)):
                continue  # Slurm has cancelled it: what came of the parent says why
            elif time.time() - self._ended.setdefault(fingerprint, time.time()) >= self._patience(job):
                self._lose(state, job)

    @staticmethod
    def _patience(job: Job | None) -> float:
        return _RECORD_SECONDS if job is None or job.state == "COMPLETED" else 0.0

    def _follow(self, state: StageState, job: Job) -> None:
        name = "queued" if job.waiting else "running"
        reason = f"job {job.id}" + (f" waits: {job.reason}" if job.waiting else "")
        if state.state != name:
            state.log = state.folder.last_log()
            state.started = state.started or time.time()
            self._enter(state, name, reason)
        state.reason = reason if job.waiting else ""

    def _lose(self, state: StageState, job: Job | None) -> None:
        """The job has ended without a record."""
        number = self._jobs[state.node.fingerprint]
        state.ended = time.time()
        state.log = state.folder.last_log() or state.folder.path / "slurm" / f"{number}_0_log.err"
        if self._blocked(state):
            return
        status = status_of(state.folder)
        reported = cause_of_exit(status.get("code", 1)) if status.get("state") == "failed" else None
        cause = cause_of_job(None if job is None else job.state, reported)
        ended = f"job {number} ended" + (f" as {job.state}" if job is not None else ", and Slurm has forgotten how")
        hint = f"; raise cluster.{state.node.kind}.memory_gib" if job is not None and job.state == "OUT_OF_MEMORY" else ""
        reason = str(status["message"]) if reported else ended + hint
        delay = self.attempts.next_delay(state.node.fingerprint, cause)
        if delay is None:
            self._enter(state, "failed", reason)
        else:
            self._retry(state, delay, f"{reason}; {self.attempts.words(state.node.fingerprint, cause, delay)}")

    def _retry(self, state: StageState, delay: float, reason: str) -> None:
        """Submit it once more after a while. Slurm cancels the jobs that wait for the one that failed; they get new ones, too."""
        self._again[state.node.fingerprint] = time.time() + delay
        self._enter(state, "waiting", reason)
        for other in self._active():  # parents come first
            if any(parent.state == "waiting" for parent in self._parents(other)):
                cancel([self._jobs[other.node.fingerprint]])
                self._enter(other, "waiting")
        for fingerprint, each in self.states.items():
            if each.state == "waiting":
                self._jobs.pop(fingerprint, None)
                self._ended.pop(fingerprint, None)

    def _cancel(self) -> None:
        """Cancel this sweep's jobs, later ones first; those that another sweep submitted stay."""
        own = [state for state in self._active() if submitted_by(state.folder) == self.sweep]
        cancel(self._jobs[state.node.fingerprint] for state in reversed(own))
        deadline = time.time() + _CANCEL_SECONDS
        while time.time() < deadline:
            jobs = all_jobs()
            found = [jobs.get(self._jobs[state.node.fingerprint]) for state in own]
            if not any(job is not None and job.live for job in found):
                break
            time.sleep(1)
        for state in own:
            done = state.folder.record_file.exists()
            self._enter(state, "done" if done else "waiting", "" if done else "cancelled")

    def _enter(self, state: StageState, name: State, reason: str = "") -> None:
        state.state, state.reason = name, reason
        self.view.changed(state, list(self.states.values()))

    @contextmanager
    def _submitting(self) -> Iterator[None]:
        """One process submits at a time, so that two sweeps with a stage in common make one job of it."""
        self.home.path.mkdir(parents=True, exist_ok=True)
        while (lock := take_lock(self.home.path / "slurm.lock")) is None:
            time.sleep(_TICK_SECONDS)
        try:
            yield
        finally:
            os.close(lock)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal: one that ended sbatch between submission and its answer would orphan a job."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
