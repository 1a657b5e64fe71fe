"""Representation-based exploration (arXiv 2510.11686): reward responses that the base model represents unlike the rest of their group.

The bonus is the leverage of a response's feature within its group, h' (ridge I + sum g g')^-1 h about the group's mean, after a random
projection drawn anew each step. A group without a correct response gets none: being different is worth something only near the goal.

With as many dimensions as responses and a small ridge every leverage is 1 - 1/n, which steers nothing: hence half the group by default,
the logged spread, and a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.exploration import RepresentationExploration
from stages.novelty import frozen_model, leverages, response_features, sparse_projection
from stages.rl.dynamic_sampling import Group
from stages.rl.exploration.protocol import Context, Exploration

# A spread within groups below this share of the mean counts as none.
_FLAT = 0.01
_LOG = logging.getLogger(__name__)


class Representation(Exploration):
    def __init__(self, config: RepresentationExploration, context: Context) -> None:
        self.config = config
        self.context = context
        self.dimensions = config.projection or max(1, context.samples_per_prompt // 2)
        self.base = frozen_model(context.base)
        self._warned = False

    def bonus(self, groups: Sequence[Group], step: int) -> list[Float[Tensor, " samples"]]:
        """beta times the leverage, for the responses of groups with a correct one; else 0."""
        projection = sparse_projection(self.base.config.hidden_size, self.dimensions, [self.context.seed, step])
        leverage: dict[int, Float[Tensor, " samples"]] = {}
        for number, group in enumerate(groups):
            if group.correct.any():
                features = response_features(self.base, group.prompt_ids, group.completion_ids) @ projection
                leverage[number] = leverages(features, self.config.ridge)
        self._report(list(leverage.values()), len(groups))
        nothing = torch.zeros(self.context.samples_per_prompt, dtype=torch.float64)
        return [self.config.beta * leverage.get(number, nothing) for number in range(len(groups))]

    def _report(self, leverage: list[Float[Tensor, " samples"]], groups: int) -> None:
        """Mean and spread within groups of what is added to rewards; only the spread can change a policy."""
        mean = float(torch.stack(leverage).mean()) if leverage else 0.0
        spread = float(torch.stack(leverage).std(dim=1).mean()) if leverage else 0.0
        self.context.log("bonus_mean", self.config.beta * mean)
        self.context.log("bonus_std", self.config.beta * spread)
        self.context.log("groups_with_bonus", len(leverage) / groups)
        if leverage and spread < _FLAT * mean and not self._warned:
            self._warned = True
            _LOG.warning(
                "the exploration bonus is a constant (mean %.3g, spread within groups %.3g), which steers nothing; lower "
                "rl.exploration.projection (%d dimensions, %d responses a group) or raise rl.exploration.ridge",
                self.config.beta * mean, self.config.beta * spread, self.dimensions, self.context.samples_per_prompt,
            )  # fmt: skip


def build(config: RepresentationExploration, context: Context) -> Exploration:
    return Representation(config, context)
