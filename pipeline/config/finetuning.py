"""Supervised fine-tuning: the model learns to respond as worked solutions do."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.base import execution
from pipeline.config.prior import Prior, ShapedPrior
from pipeline.config.tasks import ProblemSource
from pipeline.config.training import NextTokenTraining


class SolutionSource(ProblemSource):
    """Prompts and responses: two columns of a dataset on the hub, or of a local file. Both are read as they are."""

    problem: str = Field("prompt", min_length=1, description="column of what the model reads")
    response: str = Field("response", min_length=1, description="column of what it learns to answer")


class SFTConfig(NextTokenTraining):
    """Optional stage before RL. The loss counts responses and their end alone; a block holds whole solutions, as many as fit."""

    name: str = execution("sft")
    documents: int | None = Field(None, ge=1, description="solutions of the task, of problems that are neither RL's nor evaluated")
    source: SolutionSource | None = Field(None, description="solutions from elsewhere instead, all of them")
    block_size: int = Field(ge=2, description="tokens per training sequence; longer solutions are left out")
    prior: Prior = Field(ShapedPrior(name="ce"), description="default: cross-entropy")

    @model_validator(mode="after")
    def _one_source(self) -> SFTConfig:
        if (self.documents is None) == (self.source is None):
            given = "both are given" if self.source is not None else "neither is given"
            raise ValueError(f"{given}: set documents, a number of the task's own solutions, or source, e.g. {{file: solutions.jsonl}}")
        return self
