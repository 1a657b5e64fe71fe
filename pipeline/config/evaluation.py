"""The protocol that checkpoints are evaluated by, and the limits under which responses are verified."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import Config, Dtype, execution, identity_since


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
    verify_seconds: float = Field(5.0, gt=0, description="limit on verifying one response")  # in the identity from the start
    kv_cache_gib: int = execution(1, ge=1, description="engine's cache on CPU")
    gpu_memory_share: float = execution(0.8, gt=0, lt=1)
    threads: int = execution(1, ge=1)
