"""Maximum-likelihood RL (arXiv 2602.02710): A = (r - mean) / mean over the group, and 0 where nothing is right.

Plain policy gradients follow p', the gradient of a problem's success rate; maximum likelihood follows (log p)' = p' / p. With n
responses the expected gradient here is p' times the first n - 1 terms of 1 / p = 1 + (1 - p) + (1 - p)^2 + ... Rarely solved problems
weigh more than under GRPO, which divides by sqrt(p (1 - p)).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.algorithm import MaxRLAdvantage
from stages.rl.advantage.protocol import Advantage


class MaxRL(Advantage):
    def advantages(self, rewards: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
        mean = rewards.mean()
        return (rewards - mean) / mean if mean > 0 else torch.zeros_like(rewards)


def build(_config: MaxRLAdvantage, _seed: int) -> Advantage:
    return MaxRL()
