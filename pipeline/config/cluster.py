"""Where stages run: as local processes or as Slurm jobs. Execution only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.base import Config, execution


class Retries(Config):
    """How often one command retries a stage after each cause of failure, and how long it waits first: the delay doubles."""

    out_of_memory: int = execution(1, ge=0, description="locally, the next attempt runs alone")
    preempted: int = execution(5, ge=0, description="ended by an outside SIGTERM, or by Slurm for another job")
    node_failure: int = execution(3, ge=0)
    bug: int = execution(1, ge=0, description="any unexpected error; many are transient")
    no_space: int = execution(0, ge=0, description="a full disk")
    diverged: int = execution(0, ge=0, description="a non-finite loss")
    first_delay_seconds: float = execution(5.0, ge=0)
    longest_delay_seconds: float = execution(300.0, ge=0)


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"is {value!r}; it becomes a line of the job script, so it must be one line of printable characters")
    return value


Line = Annotated[str, AfterValidator(_one_line)]
Option = Annotated[str, Field(pattern="^[a-z][a-z-]*$")]


class Resources(Config):
    """What one kind of stage needs. Locally only `memory_gib` counts; the rest is what its Slurm job requests.

    A stage's processes (`launch.processes`) are spread evenly over its nodes.
    """

    nodes: int = execution(1, ge=1)
    gpus_per_process: int = execution(0, ge=0)
    cpus_per_process: int = execution(1, ge=1)
    memory_gib: float | None = execution(None, gt=0, description="per node; default: the partition's, or locally an estimate")
    minutes: int = execution(60, ge=1, description="time limit; a stage that saves step checkpoints resumes in a requeued job")
    partition: Line | None = execution(None)
    options: dict[Option, Line | int | bool] = execution({}, description="further sbatch options, e.g. {constraint: a100}")


class ClusterConfig(Config):
    """Where stages run: as local processes or as Slurm jobs. Execution only; one per sweep."""

    name: str = execution("cluster")
    kind: Literal["local", "slurm"] = execution(...)
    partition: Line | None = execution(None, description="for stages that name none")
    options: dict[Option, Line | int | bool] = execution({}, description="further sbatch options for all jobs, e.g. {account: mine}")
    stages_per_gpu: int = execution(
        1, ge=1, le=48, description="on this machine: how many stages share a GPU, each with its part of the memory"
    )
    max_jobs: int | None = execution(None, ge=1, description="how many of a sweep's jobs may run at once")
    on_interrupt: Literal["leave", "cancel"] = execution("leave", description="what Ctrl-C does to the jobs")
    wait: bool = execution(True, description="false: submit and return at once")
    poll_seconds: float = execution(10.0, gt=0, description="between queries to Slurm's controller")
    warning_seconds: int = execution(90, ge=1, description="before the time limit, to stop the stage cleanly and requeue it")
    retries: Retries = execution(Retries())
    max_timeouts: int = execution(100, ge=0, description="how often a job may hit its time limit and be requeued")
    corpus: Resources = execution(Resources())
    pretrain: Resources = execution(Resources())
    midtrain: Resources = execution(Resources())
    sft: Resources = execution(Resources())
    rl: Resources = execution(Resources())
    evaluate: Resources = execution(Resources())

    @model_validator(mode="before")
    @classmethod
    def _chosen(cls, given: Any) -> Any:
        if isinstance(given, dict) and "kind" not in given:
            raise ValueError(f"{', '.join(given) or 'nothing'} is set, but no cluster is chosen; add cluster=local or cluster=slurm")
        return given

    @model_validator(mode="after")
    def _slurm_shares_by_itself(self) -> ClusterConfig:
        if self.kind == "slurm" and self.stages_per_gpu > 1:
            raise ValueError(
                f"stages_per_gpu is {self.stages_per_gpu}, which goes with cluster=local; on Slurm, ask for part of a GPU in options, "
                "as your site names it, e.g. cluster.rl.options.gres=shard:1"
            )
        return self

    @model_validator(mode="after")
    def _time_to_work(self) -> ClusterConfig:
        for kind, minutes in ((name, value.minutes) for name, value in self if isinstance(value, Resources)):
            if self.warning_seconds * 5 > minutes * 60:
                raise ValueError(
                    f"warning_seconds is {self.warning_seconds}, more than a fifth of {kind}.minutes ({minutes}); "
                    f"raise {kind}.minutes, or lower warning_seconds"
                )
        return self

    def resources(self, kind: str) -> Resources:
        """For a stage kind."""
        return getattr(self, kind)
