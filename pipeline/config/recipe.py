"""The whole pipeline of one cell, and from it the input of each kind of stage."""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, execution, identity_since
from pipeline.config.cluster import ClusterConfig
from pipeline.config.corpus import CorpusConfig
from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.midtraining import MidtrainConfig
from pipeline.config.model import ModelConfig
from pipeline.config.prior import Prior
from pipeline.config.tasks import Task
from pipeline.config.training import PretrainConfig, RLConfig


class TrackingConfig(Config):
    """Weights & Biases. `auto` is online when a key is found (environment or netrc), else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = execution("auto")
    project: str = execution("priorlab")
    entity: str | None = execution(None)
    artifacts: bool = execution(False, description="log what stages export as artifacts with lineage: references, no uploads")


_THIS_MACHINE = ClusterConfig(kind="local")


class RecipeConfig(Config):
    """The whole pipeline of one cell."""

    name: str = execution("recipe")
    task: Task
    corpus: CorpusConfig
    model: ModelConfig
    prior: Prior
    pretrain: PretrainConfig
    midtrain: MidtrainConfig | None = None
    rl: RLConfig | None = None
    evaluate: EvaluateConfig
    seed: int = Field(0, ge=0, lt=2**32)
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = Field(default_factory=lambda: _THIS_MACHINE, json_schema_extra={"execution": True})

    @functools.cached_property
    def midtrain_prior(self) -> Prior:
        """What mid-training trains with; one object, since the graph knows parts of recipes by their objects."""
        own = None if self.midtrain is None else self.midtrain.prior
        return self.prior.at(1.0) if own is None else own

    @functools.cached_property
    def midtrain_corpus(self) -> CorpusConfig | None:
        """Mid-training's own text, cut by the first corpus's tokenizer; None if it has none of its own."""
        own = None if self.midtrain is None else self.midtrain.corpus
        return None if own is None else own.model_copy(update={"tokenizer": self.corpus.tokenizer})

    @property
    def midtrain_positions(self) -> int:
        """Positions of the model that RL starts from: mid-training makes room for its blocks."""
        longer = None if self.midtrain is None else self.midtrain.corpus
        return max(self.model.max_positions, 0 if longer is None else longer.block_size)

    @model_validator(mode="after")
    def _one_tokenizer(self) -> RecipeConfig:
        own = None if self.midtrain is None else self.midtrain.corpus
        if own is not None and own.tokenizer not in (CorpusConfig.model_fields["tokenizer"].default, self.corpus.tokenizer):
            raise ValueError("midtrain.corpus.tokenizer differs from corpus.tokenizer; leave it out, since a model has one tokenizer")
        return self

    @model_validator(mode="after")
    def _processes_fit_the_nodes(self) -> RecipeConfig:
        for kind in STAGE_CONFIGS:
            settings = getattr(self, kind)
            launch = getattr(settings, "launch", None)
            processes, nodes = 1 if launch is None else launch.processes, self.cluster.resources(kind).nodes
            if self.cluster.kind == "slurm" and settings is not None and processes % nodes:
                key = f"{kind}.launch.processes ({processes})" if launch is not None else f"the one process of the stage {kind}"
                raise ValueError(f"cluster.{kind}.nodes is {nodes}; {key} cannot be spread evenly over so many nodes")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> RecipeConfig:
        if self.corpus.block_size > self.model.max_positions:
            raise ValueError(f"corpus.block_size ({self.corpus.block_size}) exceeds model.max_positions ({self.model.max_positions})")
        limits = [] if self.rl is None else [("rl", self.rl.longest_response, self.midtrain_positions)]
        # The same protocol evaluates the model before mid-training, hence with its positions.
        for name, limit, positions in [*limits, ("evaluate", self.evaluate.max_response_tokens, self.model.max_positions)]:
            prompt = self.task.max_prompt_tokens
            if prompt + limit > positions:
                raise ValueError(
                    f"{name}.max_response_tokens ({limit}) and {prompt} tokens for the prompt exceed "
                    f"model.max_positions ({positions}); lower task.max_prompt_tokens or max_response_tokens, "
                    "or raise model.max_positions"
                )
        return self


class CorpusStage(Config):
    """Input of the stage `corpus`: a tokenizer, training blocks and held-out blocks.

    Parent of a later corpus: the first one, as `tokenizer`, whose own it then uses.
    """

    task: Task
    corpus: CorpusConfig

    @property
    def reads_hub(self) -> bool:
        return self.corpus.reads_hub or (self.corpus.uses_task and self.task.reads_hub)

    def identity(self) -> dict[str, Any]:
        """The task is part of it where it has a say in the text."""
        kept = super().identity() | {"task": self.task.text_identity()}
        if not self.corpus.uses_task:
            del kept["task"]
        return kept


class PretrainStage(Config):
    """Input of the stage `pretrain`; parent: corpus."""

    model: ModelConfig
    prior: Prior
    pretrain: PretrainConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        """An adopted checkpoint is its files and nothing else: what it was trained with is not known here."""
        return super().identity() if self.pretrain.adopted is None else {"adopted": self.pretrain.adopted}


class MidtrainStage(Config):
    """Input of the stage `midtrain`; parents: checkpoint and corpus."""

    prior: Prior
    midtrain: MidtrainConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        """Without what the settings say of corpus and prior: the one is a parent, the other resolved in `prior`."""
        kept = super().identity()
        return kept | {"midtrain": {key: value for key, value in kept["midtrain"].items() if key not in ("corpus", "prior")}}


class RLStage(Config):
    """Input of the stage `rl`; parent: checkpoint."""

    task: Task
    rl: RLConfig
    seed: int


class EvaluateStage(Config):
    """Input of the stage `evaluate`; parents: checkpoint and corpus."""

    task: Task
    evaluate: EvaluateConfig
    step: int | None = identity_since(None, description="of training, whose checkpoint is evaluated in place of the last one")

    @property
    def reads_hub(self) -> bool:
        """The harness's tasks lie there, but for those of one's own."""
        return self.task.reads_hub or self.evaluate.harness is not None


StageConfig = CorpusStage | PretrainStage | MidtrainStage | RLStage | EvaluateStage


STAGE_CONFIGS: dict[str, type[StageConfig]] = {
    "corpus": CorpusStage,
    "pretrain": PretrainStage,
    "midtrain": MidtrainStage,
    "rl": RLStage,
    "evaluate": EvaluateStage,
}


# Raised by hand when a change of code changes what a stage of this kind produces; code itself is not fingerprinted.
RECIPE_VERSIONS: dict[str, int] = {"corpus": 1, "pretrain": 3, "midtrain": 2, "rl": 2, "evaluate": 1}
