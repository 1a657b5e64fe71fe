"""W-REINFORCE (arXiv 2506.01347): learn mostly from what is wrong.

The reward is 1 or -1 without a baseline, and that of right responses is multiplied by `positive_weight` (the paper's lambda, 0.1).
Pushing a wrong response down hands its probability to all others in proportion to what they have, which keeps the policy broad; pushing
a right one up takes from all others. A group that is all wrong has a signal too, so dynamic sampling replaces hardly any.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.algorithm import NegativeAdvantage
from stages.rl.advantage.protocol import Advantage


class Negative(Advantage):
    def __init__(self, config: NegativeAdvantage) -> None:
        self.positive_weight = config.positive_weight

    def advantages(self, rewards: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
        return torch.where(rewards > 0, self.positive_weight, -1.0)


def build(config: NegativeAdvantage, _seed: int) -> Advantage:
    return Negative(config)
