"""The protocol for evaluating checkpoints, and limits on verifying responses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.config.base import Config, Dtype, execution, identity_since
from pipeline.config.digests import digest_of_digests, file_digest
from pipeline.config.engine import Engine
from pipeline.config.tasks import Task


class Verification(Config):
    """Limits on the worker processes that verify responses, for stages that score them."""

    verify_seconds: float = identity_since(5.0, gt=0, description="limit on verifying one response")
    verify_memory_mib: int = identity_since(1024, ge=64, description="limit on a worker's memory beyond what loading its task takes")
    max_verify_failures: float = execution(
        0.01, ge=0, lt=1, description="share of verifications that may hit a limit or fail before the stage stops"
    )
    verify_workers: int = execution(1, ge=1)


class SelectionConfig(Config):
    """Picking k of the n samples by the elliptical rule instead of at random (arXiv 2510.11686, section 3), blind to verdicts."""

    projection: int = Field(512, ge=1, description="dimensions of the projected features")
    ridge: float = Field(0.01, gt=0, description="lambda of the paper: what the covariance's diagonal starts at")


Examples = Annotated[int, Field(ge=0)]
Temperature = Annotated[float, Field(ge=0.01, le=2)]
"""Of sampling. vLLM raises lower ones to .01 without a word, and refuses higher ones."""


class HarnessConfig(Config):
    """Benchmarks of lm-evaluation-harness, besides the task's problems; needs lm-eval 0.4.13, installed manually."""

    tasks: tuple[str, ...] = Field(min_length=1, description="by their names in the harness, or in task files in `folder`")
    fewshot: Examples | dict[str, Examples] | None = Field(
        None, description="examples before each problem, for all tasks or by task; default: each task's own number"
    )
    limit: int | None = Field(None, ge=1, description="first problems of each task")
    folder: str | None = execution(None, description="a folder with task files (.yaml) and their data")
    sha256: str | None = Field(None, description="filled in for a folder")
    allow_code: bool = execution(False, description="tasks that run model-written code (humaneval, mbpp)")
    batch: int = execution(8, ge=1, description="sequences at a time without a GPU")

    @model_validator(mode="before")
    @classmethod
    def _identify(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("folder"), str) or given.get("sha256"):
            return given
        folder = Path(given["folder"]).expanduser().absolute()
        if not any(folder.rglob("*.yaml")):
            raise ValueError(f"folder is {given['folder']!r}, which holds no task files (.yaml)")
        return given | {"folder": str(folder), "sha256": task_folder_digest(folder)}

    @model_validator(mode="after")
    def _examples_are_of_these_tasks(self) -> HarnessConfig:
        other = sorted(self.fewshot.keys() - set(self.tasks)) if isinstance(self.fewshot, dict) else []
        if other:
            raise ValueError(
                f"fewshot has {', '.join(other)}, not among tasks ({', '.join(self.tasks)}); name a task as it stands there"
            )
        return self


def task_folder_digest(folder: Path) -> str:
    """sha256 over the files of a task folder, wherever it is."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return digest_of_digests([(path.relative_to(folder).as_posix(), file_digest(path)) for path in files])


AVERAGE = "average"
"""What tables call the mean over evaluation sets."""


class EvaluationSet(Config):
    """Problems to evaluate on, besides or instead of the recipe's own."""

    task: Task | None = Field(None, description="whose problems; default: the recipe's own task")
    problems: int | None = Field(None, ge=1, description="how many; default: evaluate.problems")


class EvaluateConfig(Verification):
    """The frozen protocol, the same before and after RL, and on all evaluation sets."""

    name: str = execution("evaluate")
    problems: int = Field(ge=1)
    sets: tuple[EvaluationSet, ...] = identity_since((), description="what to evaluate on, a stage each; default: the recipe's task")
    samples: int = Field(ge=1, description="responses per problem; pass@k is estimated up to this k")
    temperature: Temperature = 1.0
    temperatures: tuple[Temperature, ...] = identity_since((), description="further ones, for the same problems")
    top_p: float = Field(1.0, gt=0, le=1)
    max_response_tokens: int = Field(ge=1)
    dtype: Dtype = "float32"
    heldout_blocks: int = Field(ge=1, description="blocks of held-out text for perplexity and entropy")
    head_k: int = Field(5, ge=1, description="size of the head whose mass is reported, the same for all priors")
    seed: int = Field(0, ge=0)
    selection: SelectionConfig | None = identity_since(None, description="also report what samples picked for novelty find")
    harness: HarnessConfig | None = identity_since(None, description="also run lm-evaluation-harness benchmarks")
    verify_seconds: float = Field(5.0, gt=0, description="limit on verifying one response")  # in the identity from the start
    kv_cache_gib: int = execution(1, ge=1, description="engine's cache on CPU")
    gpu_memory_share: float = execution(0.8, gt=0, lt=1, description="of each GPU, for the engine")
    engine: Engine = execution(Engine())
    threads: int = execution(1, ge=1)

    @model_validator(mode="after")
    def _temperatures_differ(self) -> EvaluateConfig:
        every = (self.temperature, *self.temperatures)
        twice = next((value for value in self.temperatures if every.count(value) > 1), None)
        if twice is not None:
            raise ValueError(
                f"temperatures has {twice:g} twice, or it is evaluate.temperature ({self.temperature:g}), which is always sampled; "
                "leave one out"
            )
        return self


OWN_TASK = "task"
"""In a list of evaluation sets, the recipe's own task."""


def written_set(node: Any, named: Callable[[Any], dict[str, Any]], _: dict[str, Any]) -> Any:
    """An evaluation set as written, a name or a mapping, with its task resolved by `named`; `OWN_TASK` stays open."""
    node = {"task": node} if isinstance(node, str) else node
    if not isinstance(node, dict) or node.get("task") in (None, OWN_TASK):
        return {key: value for key, value in node.items() if key != "task"} if isinstance(node, dict) else node
    return node | {"task": named(node["task"])}
