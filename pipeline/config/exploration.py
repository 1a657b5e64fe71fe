"""How RL is made to explore. One config class per kind; `Exploration` is told apart by `kind`.

The kind is also the name of the module in `stages/rl/exploration` that does it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Config, execution


class NoExploration(Config):
    """Plain GRPO: what sampling itself finds."""

    kind: Literal["none"] = "none"
    name: str = execution("none")


class DiversityExploration(Config):
    """Entropy of correct responses as a second objective (diversity-aware policy optimisation, arXiv 2505.23433)."""

    kind: Literal["diversity"] = "diversity"
    name: str = execution("diversity")
    lambda_diversity: float = Field(0.01, ge=0, description="weight of the second objective")
    responses: Literal["correct", "all"] = Field("correct", description="which responses it looks at")


class RepresentationExploration(Config):
    """Reward for responses whose features are unlike the rest of their group (arXiv 2510.11686)."""

    kind: Literal["representation"] = "representation"
    name: str = execution("representation")
    beta: float = Field(0.01, ge=0, description="weight of the bonus, which lies between 0 and 1, beside the reward")
    ridge: float = Field(0.01, gt=0, description="lambda of the paper: what an unseen direction starts with")
    projection: int | None = Field(
        None,
        ge=1,
        description="dimensions of the projected features; none given is half the group, above which the bonus turns constant",
    )


class DistinctExploration(Config):
    """Reward for correct responses that few others of their group repeat. The worked example of docs/exploration.md."""

    kind: Literal["distinct"] = "distinct"
    name: str = execution("distinct")
    beta: float = Field(0.1, ge=0, description="weight of the bonus, which lies between 0 and 1, beside the reward")


Exploration = Annotated[
    NoExploration | DiversityExploration | RepresentationExploration | DistinctExploration, Field(discriminator="kind")
]
