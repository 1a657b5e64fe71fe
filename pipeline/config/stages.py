"""The kinds of stage. One class holds all that is known about a kind: input, identity, version, processes, memory and work.

A new kind takes one class here, a package of that name in `stages`, its place in a cell (`pipeline.experiment.graph`), and its
`Resources` in `pipeline.config.cluster`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pipeline.config.base import Config, execution, identity_since
from pipeline.config.corpus import CorpusConfig
from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.finetuning import SFTConfig
from pipeline.config.launch import Launch
from pipeline.config.midtraining import MidtrainConfig
from pipeline.config.model import ModelConfig
from pipeline.config.prior import Prior
from pipeline.config.rl import RLConfig
from pipeline.config.tasks import Task
from pipeline.config.training import NextTokenTraining, PretrainConfig


class StageConfig(Config):
    """The input of a stage, and what all stages of its kind share."""

    kind: ClassVar[str]
    version: ClassVar[int]
    """Raised manually when a code change alters what the kind produces; code itself is not fingerprinted."""
    imports_gib: ClassVar[float]
    """Memory of one process on the quickstart's model, mostly libraries: the estimate until one is measured."""
    needs_devices: ClassVar[bool] = True
    charted: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """What metrics are plotted against in W&B: {axis: metrics}."""

    @property
    def launch(self) -> Launch | None:
        """How it is spread over processes; None if the kind has one process and saves no step checkpoints."""
        return None

    @property
    def processes(self) -> int:
        return 1 if self.launch is None else self.launch.processes

    def launched(self, **launch: Any) -> Self:
        """The same with some settings of its launch replaced; the kind must have one. Raises `ValueError` if they do not fit."""
        settings = getattr(self, self.kind)
        settings = settings.model_copy(update={"launch": settings.launch.model_copy(update=launch)})
        return type(self).model_validate(self.model_copy(update={self.kind: settings}).model_dump())

    @property
    def threads(self) -> int:
        """CPU threads per process."""
        return 1 if self.launch is None else self.launch.threads

    @property
    def reads_hub(self) -> bool:
        """Whether it reads data from the Hugging Face hub."""
        return False

    @property
    def adopted(self) -> str | None:
        """Digest of the checkpoint adopted as the stage's result instead of computing one."""
        return None

    @property
    def kv_cache_gib(self) -> int:
        """Per process, for the engine on a CPU."""
        return 0

    @abstractmethod
    def work(self, block_size: int) -> str:
        """How much work it is, in words; `block_size` is its corpus's, in tokens."""


class CorpusStage(StageConfig):
    """Input of the stage `corpus`, which makes a tokenizer, training blocks and held-out blocks.

    A later corpus has the first one as its parent, in the role `tokenizer`, and uses its tokenizer.
    """

    kind, version, imports_gib, needs_devices = "corpus", 1, 0.8, False

    task: Task
    corpus: CorpusConfig

    @property
    def reads_hub(self) -> bool:
        asks_task = self.corpus.uses_task or self.corpus.tokenizer.kind == "pretrained"  # which must know the task's prompts
        return self.corpus.reads_hub or (asks_task and self.task.reads_hub)

    def identity(self) -> dict[str, Any]:
        """The task is part of it if the text depends on it."""
        kept = super().identity() | {"task": self.task.text_identity()}
        if not self.corpus.uses_task:
            del kept["task"]
        return kept

    def work(self, block_size: int) -> str:
        return self.corpus.size


class TrainingStage(StageConfig):
    """What stages of next-token training share. Their settings are in the field named after the kind."""

    imports_gib = 1.5
    charted: ClassVar = {"tokens": ("*",)}

    seed: int

    @property
    def settings(self) -> NextTokenTraining:
        return getattr(self, self.kind)

    @property
    def launch(self) -> Launch:
        return self.settings.launch

    def work(self, block_size: int) -> str:
        steps = self.settings.steps
        return f"{steps:,} steps, {steps * self.settings.global_batch * block_size:,} tokens"


class PretrainStage(TrainingStage):
    """Input of the stage `pretrain`; parent: corpus."""

    kind, version = "pretrain", 3

    model: ModelConfig
    prior: Prior
    pretrain: PretrainConfig

    @property
    def adopted(self) -> str | None:
        return self.pretrain.adopted

    def identity(self) -> dict[str, Any]:
        """An adopted checkpoint is identified by its files alone: how it was trained is not known here."""
        return super().identity() if self.adopted is None else {"adopted": self.adopted}

    def work(self, block_size: int) -> str:
        return super().work(block_size) if self.adopted is None else f"adopted checkpoint {self.adopted[:19]}"


class MidtrainStage(TrainingStage):
    """Input of the stage `midtrain`; parents: checkpoint and corpus."""

    kind, version = "midtrain", 2

    prior: Prior
    midtrain: MidtrainConfig
    checkpoint_temperature: float = execution(1.0, gt=0, description="of the checkpoint's prior, undone before training")

    def identity(self) -> dict[str, Any]:
        """Without the settings' corpus and prior: the one is a parent, the other is resolved in `prior`."""
        kept = super().identity()
        return kept | {"midtrain": {key: value for key, value in kept["midtrain"].items() if key not in ("corpus", "prior")}}


class SFTStage(TrainingStage):
    """Input of the stage `sft`; parent: checkpoint. Its blocks are its own, so it ignores the sizes of a corpus's."""

    kind, version = "sft", 1

    task: Task
    sft: SFTConfig
    checkpoint_temperature: float = execution(1.0, gt=0, description="of the checkpoint's prior, undone before training")

    @property
    def reads_hub(self) -> bool:
        return self.task.reads_hub if self.sft.source is None else self.sft.source.hub is not None

    def identity(self) -> dict[str, Any]:
        """The task is part of it if the solutions are its own."""
        kept = super().identity() | {"task": self.task.text_identity()}
        if self.sft.source is not None:
            del kept["task"]
        return kept

    def work(self, block_size: int) -> str:
        return super().work(self.sft.block_size)


class RLStage(StageConfig):
    """Input of the stage `rl`; parent: checkpoint."""

    # 3: no importance correction in float32 and one per token in bfloat16, where TRL's default multiplied whole responses;
    # dynamic sampling goes on until the batch is full.
    kind, version, imports_gib = "rl", 3, 2.5
    charted: ClassVar = {"step": ("*",), "rollouts_generated": ("validation/*",)}

    task: Task
    rl: RLConfig
    seed: int
    step: int | None = identity_since(None, description="training step whose checkpoint RL starts from instead of the last")

    @property
    def launch(self) -> Launch:
        return self.rl.launch

    @property
    def reads_hub(self) -> bool:
        return self.task.reads_hub

    @property
    def kv_cache_gib(self) -> int:
        return self.rl.kv_cache_gib

    def identity(self) -> dict[str, Any]:
        """Of the task, what it is trained on: what it is evaluated on may change."""
        return super().identity() | {"task": self.task.training_identity()}

    def work(self, block_size: int) -> str:
        return f"{self.rl.steps:,} steps, {self.rl.steps * self.rl.prompts_per_step * self.rl.samples_per_prompt:,} rollouts"


class EvaluateStage(StageConfig):
    """Input of the stage `evaluate`, on one evaluation set; parents: checkpoint and corpus."""

    kind, version, imports_gib = "evaluate", 1, 2.0

    task: Task
    evaluate: EvaluateConfig
    step: int | None = identity_since(None, description="training step whose checkpoint is evaluated instead of the last")
    trained_on: Task | None = execution(None, description="the task trained on, to check for overlap; null if its config excludes it")
    trained_splits: tuple[Literal["corpus", "rl"], ...] = execution((), description="those of its splits that the checkpoint has seen")

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"task": self.task.evaluation_identity()}

    @property
    def threads(self) -> int:
        return self.evaluate.threads

    @property
    def reads_hub(self) -> bool:
        """The harness may read its tasks from there."""
        trained_on_hub = self.trained_on is not None and self.trained_on.reads_hub
        return self.task.reads_hub or trained_on_hub or self.evaluate.harness is not None

    @property
    def kv_cache_gib(self) -> int:
        return self.evaluate.kv_cache_gib

    def work(self, block_size: int) -> str:
        more = len(self.evaluate.temperatures)
        return f"{self.evaluate.problems:,} problems x {self.evaluate.samples} samples" + f" at {1 + more} temperatures" * bool(more)


KINDS: dict[str, type[StageConfig]] = {
    config.kind: config for config in (CorpusStage, PretrainStage, MidtrainStage, SFTStage, RLStage, EvaluateStage)
}
"""All kinds by name."""
