"""How RL explores. One config class per kind; `Exploration` is discriminated by `kind`.

The kind is also the name of its module in `stages/rl/exploration`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Config, execution


class NoExploration(Config):
    """Plain GRPO: sampling alone explores."""

    kind: Literal["none"] = "none"
    name: str = execution("none")


class DiversityExploration(Config):
    """Entropy of correct responses as a second objective (diversity-aware policy optimisation, arXiv 2505.23433)."""

    kind: Literal["diversity"] = "diversity"
    name: str = execution("diversity")
    lambda_diversity: float = Field(0.01, ge=0, description="weight of the second objective")
    responses: Literal["correct", "all"] = Field("correct", description="which responses count")


class RepresentationExploration(Config):
    """Reward for responses whose features are unlike the rest of their group (arXiv 2510.11686)."""

    kind: Literal["representation"] = "representation"
    name: str = execution("representation")
    beta: float = Field(0.01, ge=0, description="weight of the bonus, between 0 and 1, added to the reward")
    ridge: float = Field(0.01, gt=0, description="lambda of the paper: what the covariance's diagonal starts at")
    projection: int | None = Field(
        None,
        ge=1,
        description="dimensions of the projected features; default: half the group, above which the bonus becomes constant",
    )


class DistinctExploration(Config):
    """Reward for correct responses that few others in their group repeat. The worked example of docs/exploration.md."""

    kind: Literal["distinct"] = "distinct"
    name: str = execution("distinct")
    beta: float = Field(0.1, ge=0, description="weight of the bonus, between 0 and 1, added to the reward")


Exploration = Annotated[
    NoExploration | DiversityExploration | RepresentationExploration | DistinctExploration, Field(discriminator="kind")
]
