"""A bonus for being different and right: a correct response earns more the fewer of its group's correct ones repeat it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.exploration import DistinctExploration
from stages.rl.dynamic_sampling import Group
from stages.rl.exploration.protocol import Context, Exploration


class Distinct(Exploration):
    def __init__(self, config: DistinctExploration) -> None:
        self.beta = config.beta

    def bonus(self, groups: Sequence[Group], step: int) -> list[Float[Tensor, " samples"]]:
        """beta / (how often the response was given) for correct responses, 0 for others."""
        bonuses = []
        for group in groups:
            texts = [tuple(ids) for ids in group.completion_ids]
            given = Counter(text for text, correct in zip(texts, group.correct.tolist(), strict=True) if correct)
            bonuses.append(torch.tensor([self.beta / given[text] if text in given else 0.0 for text in texts]))
        return bonuses


def build(config: DistinctExploration, _context: Context) -> Exploration:
    return Distinct(config)
