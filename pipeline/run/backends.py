"""The places where stages can run, and what is at work there without a command that watches it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.run.backend import Backend, Job
from pipeline.run.local import LocalBackend
from pipeline.run.slurm.backend import SlurmBackend
from pipeline.store.folders import StageFolder

BACKENDS: dict[str, type[Backend]] = {"local": LocalBackend, "slurm": SlurmBackend}
"""By `cluster.kind`."""


def jobs_of(folders: Iterable[StageFolder], *, strict: bool = False) -> dict[StageFolder, Job]:
    """The job of each stage that is at work without a command. `strict` as in `Backend.jobs`."""
    every = list(folders)
    return {folder: job for backend in BACKENDS.values() for folder, job in backend.jobs(every, strict=strict).items()}


def cancel_jobs(folders: Sequence[StageFolder]) -> list[StageFolder]:
    """End the jobs of stages, whoever started them; the stages that had one. Raises `PriorlabError` where a backend does not answer."""
    return [folder for backend in BACKENDS.values() for folder in backend.cancel(folders)]
