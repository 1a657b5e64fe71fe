"""The protocol that checkpoints are evaluated by, and the limits under which responses are verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.config.base import Config, Dtype, execution, identity_since
from pipeline.config.digests import digest_of_digests, file_digest


class Verification(Config):
    """Limits of the worker processes that verify responses, for the stages that score them."""

    verify_seconds: float = identity_since(5.0, gt=0, description="limit on verifying one response")
    verify_memory_mib: int = identity_since(1024, ge=64, description="limit on a worker's memory beyond what its task takes to load")
    max_verify_failures: float = execution(
        0.01, ge=0, lt=1, description="share of responses that may exceed a limit or fail before the stage stops"
    )
    verify_workers: int = execution(1, ge=1)


class SelectionConfig(Config):
    """Picking k of the n samples by the elliptical rule instead of at random (arXiv 2510.11686, section 3); it looks at no verdict."""

    projection: int = Field(512, ge=1, description="dimensions of the projected features")
    ridge: float = Field(0.01, gt=0, description="lambda of the paper: what an unseen direction starts with")


class HarnessConfig(Config):
    """Benchmarks of lm-evaluation-harness, beside the problems of the task; the package is lm-eval 0.4.13, installed by hand."""

    tasks: tuple[str, ...] = Field(min_length=1, description="by the harness's names, or those of task files in `folder`")
    fewshot: int | None = Field(None, ge=0, description="examples before each problem; none given is each task's own number")
    limit: int | None = Field(None, ge=1, description="first problems of each task")
    folder: str | None = execution(None, description="a folder with task files (.yaml) and their data")
    sha256: str | None = Field(None, description="filled in for a folder")
    allow_code: bool = execution(False, description="tasks that run what the model wrote (humaneval, mbpp)")
    batch: int = execution(8, ge=1, description="sequences at a time where there is no GPU")

    @model_validator(mode="before")
    @classmethod
    def _identify(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("folder"), str) or given.get("sha256"):
            return given
        folder = Path(given["folder"]).expanduser().absolute()
        if not any(folder.rglob("*.yaml")):
            raise ValueError(f"folder is {given['folder']!r}, which holds no task files (.yaml)")
        return given | {"folder": str(folder), "sha256": task_folder_digest(folder)}


def task_folder_digest(folder: Path) -> str:
    """sha256 over the files of a folder with tasks, wherever it lies."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return digest_of_digests([(path.relative_to(folder).as_posix(), file_digest(path)) for path in files])


class EvaluateConfig(Verification):
    """The frozen protocol, the same before and after RL."""

    name: str = execution("evaluate")
    problems: int = Field(ge=1)
    samples: int = Field(ge=1, description="responses per problem; pass@k is known up to this k")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_response_tokens: int = Field(ge=1)
    dtype: Dtype = "float32"
    heldout_blocks: int = Field(ge=1, description="blocks of held-out text for perplexity and entropy")
    head_k: int = Field(5, ge=1, description="size of the head whose mass is reported, the same for all priors")
    seed: int = 0
    selection: SelectionConfig | None = identity_since(None, description="also report what is found among samples picked to differ")
    harness: HarnessConfig | None = identity_since(None, description="also measure benchmarks of lm-evaluation-harness")
    verify_seconds: float = Field(5.0, gt=0, description="limit on verifying one response")  # in the identity from the start
    kv_cache_gib: int = execution(1, ge=1, description="engine's cache on CPU")
    gpu_memory_share: float = execution(0.8, gt=0, lt=1)
    threads: int = execution(1, ge=1)
