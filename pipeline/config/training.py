"""Settings of the optimizer, and of training on packed text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Dtype, execution, identity_since
from pipeline.config.launch import Launch


class AdamWConfig(Config):
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int = Field(0, ge=0, description="last steps, over which the rate falls to final_ratio")
    decay: Literal["linear", "cosine"] = identity_since("linear", description="shape of the decay")
    final_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)

    def identity(self) -> dict[str, Any]:
        kept = super().identity()
        if self.decay_steps == 0:
            kept.pop("decay", None)
        return kept

    def check_steps(self, steps: int) -> None:
        """Raises `ValueError` if warmup and decay do not fit into `steps`."""
        if self.warmup_steps + self.decay_steps > steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) + decay_steps ({self.decay_steps}) exceed steps ({steps})")


class Milestones(Config):
    """Which intermediate checkpoints are kept and evaluated: evenly spaced ones, or those at given shares of the tokens."""

    count: int | None = Field(None, ge=2, description="evenly spaced, with the last")
    spacing: Literal["linear", "log"] = Field("linear", description="log: each after twice as many tokens as the one before")
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((), description="of the token budget, instead of count")

    @model_validator(mode="before")
    @classmethod
    def _list_of_shares(cls, given: Any) -> Any:
        return {"shares": given} if isinstance(given, (list, tuple)) else given

    @model_validator(mode="after")
    def _one_of_both(self) -> Milestones:
        if (self.count is None) == (not self.shares):
            raise ValueError(
                f"count is {self.count} and shares {list(self.shares)}; give one of them, e.g. {{count: 8, spacing: log}} or [0.1, 0.5]"
            )
        return self

    def steps(self, total: int) -> list[int]:
        """Optimizer steps, of `total`, after which a checkpoint is kept; without the last."""
        shares: list[float] = list(self.shares)
        if self.count is not None:
            behind = range(1, self.count)  # how many checkpoints come after
            shares = [2.0**-later if self.spacing == "log" else 1 - later / self.count for later in behind]
        return sorted({self.step_at(share, total) for share in shares} - {total})

    @staticmethod
    def step_at(share: float, total: int) -> int:
        """The optimizer step, of `total`, after which this share of the tokens has been seen."""
        return max(1, round(share * total))


class NextTokenTraining(Config):
    """Training on packed text, from scratch or not: tokens consumed = steps x global_batch x the corpus's block_size."""

    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1, description="blocks per optimizer step, over all processes")
    optimizer: AdamWConfig
    dtype: Dtype = "float32"
    head_k: int = execution(5, ge=1, description="size of the head whose mass is logged")
    expert_bias_rate: float = identity_since(
        1e-3,
        ge=0,
        description="step size of an expert's bias when its load is above or below average; 0: no balancing",
    )
    launch: Launch = Launch()
    evaluate_at: Milestones | None = Field(None, description="intermediate checkpoints to evaluate besides the last")

    @property
    def milestones(self) -> list[int]:
        """Steps of the intermediate checkpoints."""
        return [] if self.evaluate_at is None else self.evaluate_at.steps(self.steps)

    def identity(self) -> dict[str, Any]:
        """Intermediate checkpoints are results, however they were requested; weights do not depend on them."""
        kept = {key: value for key, value in super().identity().items() if key != "evaluate_at"}
        return kept | ({"milestones": self.milestones} if self.milestones else {})

    @model_validator(mode="after")
    def _batch_divides(self) -> NextTokenTraining:
        one_pass = self.launch.processes * self.launch.micro_batch
        if self.global_batch % one_pass:
            raise ValueError(
                f"global_batch is {self.global_batch}; it must be a multiple of processes x micro_batch = "
                f"{self.launch.processes} x {self.launch.micro_batch} = {one_pass}"
            )
        self.launch.check_dtype(self.dtype)
        self.optimizer.check_steps(self.steps)
        return self


class PretrainConfig(NextTokenTraining):
    """Stage one, from scratch."""

    adopted: str | None = identity_since(
        None,
        pattern="^sha256:[0-9a-f]{64}$",
        description="digest of a checkpoint that `priorlab adopt` brought in, instead of training one",
    )

    @model_validator(mode="after")
    def _adopted_has_one_checkpoint(self) -> PretrainConfig:
        if self.adopted is not None and self.milestones:
            raise ValueError("evaluate_at is set, but an adopted checkpoint has no intermediate ones; leave evaluate_at out")
        return self
