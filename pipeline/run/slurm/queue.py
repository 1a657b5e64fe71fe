"""What Slurm knows of our jobs. One `squeue` answers for all of them, so that a sweep of hundreds costs the controller one question.

The id of a stage's job is kept in its folder (`job.json`): whoever looks at the stage later, another command or another sweep, finds
the job that is already there. Slurm forgets a job minutes after its end; from then on record.json and status.json speak for it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import PriorlabError
from pipeline.experiment.graph import StageNode
from pipeline.run.retries import Cause
from pipeline.store.files import read_mapping, write_json_atomically
from pipeline.store.folders import StageFolder

_SECONDS = 60
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "CONFIGURING"}
_RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "SUSPENDED", "STOPPED"}
_CAUSES = {
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
}
"""By a job's last state."""


@dataclass(frozen=True)
class SlurmJob:
    """A job as `squeue` shows it."""

    id: str
    name: str
    state: str
    reason: str

    @property
    def waiting(self) -> bool:
        return self.state in _WAITING

    @property
    def live(self) -> bool:
        return self.waiting or self.state in _RUNNING

    @property
    def doomed(self) -> bool:
        """It waits for one that has failed, and Slurm would let it wait for ever."""
        return self.waiting and self.reason == "DependencyNeverSatisfied"


def require_slurm() -> None:
    """Raises `PriorlabError` where Slurm's commands are missing."""
    missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]
    if missing:
        raise PriorlabError(
            f"cluster=slurm needs {', '.join(missing)} on the PATH; run this on a login node of the cluster, or use cluster=local"
        )


def is_full(refusal: str) -> bool:
    """Whether sbatch refused a job for the number of jobs: of a user, account or quality of service, or of the whole cluster."""
    return any(words in refusal for words in ("MaxSubmitJob", "Resource temporarily unavailable"))


def all_jobs() -> dict[str, SlurmJob]:
    """This user's jobs by id, those that ended minutes ago among them. Raises `PriorlabError` if Slurm does not answer."""
    listed = _call("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%j")
    jobs = {}
    for line in listed.splitlines():
        number, state, reason, name = line.strip().split("|", 3)
        jobs[number] = SlurmJob(number, name, state, reason)
    return jobs


def cancel(ids: Iterable[str]) -> None:
    chosen = list(ids)
    if chosen:
        _call("scancel", *chosen)


def _call(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise PriorlabError(
            f"{command[0]} did not answer in {_SECONDS} seconds; see whether Slurm's controller is up: scontrol ping"
        ) from None
    except FileNotFoundError:
        raise PriorlabError(f"{command[0]} is not on the PATH; run this on a login node of the cluster") from None
    if done.returncode:
        raise PriorlabError(f"{' '.join(command[:2])} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def remember(folder: StageFolder, job: str, sweep: str, name: str) -> None:
    write_json_atomically(folder.path / "job.json", {"job": job, "name": name, "sweep": sweep})


def submitted_by(folder: StageFolder) -> str | None:
    """The sweep that submitted the stage's last job."""
    return read_mapping(folder.path / "job.json").get("sweep")


def job_of(folder: StageFolder, jobs: dict[str, SlurmJob]) -> SlurmJob | None:
    """The stage's last job, if Slurm still knows it. Its name must fit too: ids start anew when a cluster is set up again."""
    kept = read_mapping(folder.path / "job.json")
    found = jobs.get(kept.get("job", ""))
    return found if found is not None and found.name == kept.get("name") else None


def was_submitted(folder: StageFolder) -> bool:
    return (folder.path / "job.json").exists()


def job_name(node: StageNode, folder: StageFolder) -> str:
    """Told apart from a job of the same stage for another home, so that a live job can be found by its name alone."""
    place = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:8]
    return f"priorlab-{node.kind}-{node.slug}-{node.fingerprint[:12]}-{place}"


def lost_job(node: StageNode, folder: StageFolder, jobs: dict[str, SlurmJob]) -> SlurmJob | None:
    """A live job of the stage that its folder does not know of: whoever submitted it was killed before it could write that down."""
    name = job_name(node, folder)
    return next((job for job in jobs.values() if job.live and job.name == name), None)


def cause_of_job(state: str | None, reported: Cause | None) -> Cause:
    """Why a job ended, by its last state and what the stage itself has left; `refused` if Slurm was told to end it."""
    if state in _CAUSES:
        return _CAUSES[state]
    return reported or ("refused" if state in ("CANCELLED", "TIMEOUT", "DEADLINE", None) else "bug")
