"""What kind of policy gradient RL takes: the form of the loss, the advantages, and the terms beside them.

`Advantage` is discriminated by `kind`, which is also the name of its module in `stages/rl/advantage`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, execution

Loss = Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "gspo", "luspo", "sapo", "vespo"]
"""TRL's names, and gspo, which TRL spells as grpo with one ratio per response."""
PER_RESPONSE = frozenset({"grpo", "gspo", "dr_grpo", "luspo", "sapo"})
"""Losses that TRL divides by the number of responses, including those that do not count."""


class GroupAdvantage(Config):
    """GRPO: reward minus the group's mean, scaled as `scale_rewards` says."""

    kind: Literal["group"] = "group"
    name: str = execution("group")


class MaxRLAdvantage(Config):
    """(reward - mean) / mean over the group (arXiv 2602.02710)."""

    kind: Literal["maxrl"] = "maxrl"
    name: str = execution("maxrl")


class NegativeAdvantage(Config):
    """-1 for a wrong response, a small weight for a right one (arXiv 2506.01347)."""

    kind: Literal["negative"] = "negative"
    name: str = execution("negative")
    positive_weight: float = Field(0.1, ge=0, le=1, description="advantage of a correct response, the paper's lambda")


class PassAtKAdvantage(Config):
    """The reward of a set of k responses is that of its best one (arXiv 2508.10751)."""

    kind: Literal["pass_at_k"] = "pass_at_k"
    name: str = execution("pass_at_k")
    k: int = Field(4, ge=1)


class RandomAdvantage(Config):
    """A control: GRPO on rewards that ignore the response."""

    kind: Literal["random"] = "random"
    name: str = execution("random")
    share: float = Field(0.5, gt=0, lt=1, description="probability of reward 1")


Advantage = Annotated[
    GroupAdvantage | MaxRLAdvantage | NegativeAdvantage | PassAtKAdvantage | RandomAdvantage, Field(discriminator="kind")
]

Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class Importance(Config):
    """What corrects for an engine that samples from other probabilities than the trainer computes.

    A weight is the trainer's probability over the engine's, of a token or of the whole response. `truncate` lowers a weight above
    `cap` to it; `mask` sets it to 0.
    """

    mode: Correction | None = Field(None, description="default: none in float32, token_truncate in bfloat16")
    cap: float = Field(3.0, gt=1, description="largest weight")


class Entropy(Config):
    """A bonus on the policy's entropy: `coefficient` times its mean per token, in nats.

    With a `target`, the coefficient is what is adapted (Skywork-OR1, arXiv 2505.22312): it starts at `coefficient`, rises by `step`
    after each optimizer step whose entropy was at or below the target, falls by as much after any other, and acts only at or below it.
    """

    coefficient: float = Field(0.0, ge=0)
    target: float | None = Field(None, ge=0, description="nats per token")
    largest: float = Field(1.0, gt=0, description="bound on the adapted coefficient")
    step: float = Field(0.005, gt=0, description="by which the coefficient is adapted")

    @property
    def acts(self) -> bool:
        return self.coefficient > 0 or self.target is not None

    def identity(self) -> dict[str, Any]:
        """Without a target, leaves out the fields that only adapting uses."""
        kept = super().identity()
        return kept if self.target is not None else {"coefficient": self.coefficient}

    @model_validator(mode="after")
    def _starts_in_bounds(self) -> Entropy:
        if self.target is not None and self.coefficient > self.largest:
            raise ValueError(f"coefficient is {self.coefficient:g}, above largest ({self.largest:g}); lower it, or raise largest")
        return self
