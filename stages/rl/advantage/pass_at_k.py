"""Pass@k as the reward (arXiv 2508.10751): sets of k responses are rewarded, 1 if any is correct.

A response's advantage is the mean, over all sets of k of the group that it is in, of the set's reward normalised over all sets. With n
responses, w of them wrong, and f = C(w, k) / C(n, k) the share of sets that fail,

    mean and standard deviation of the sets' rewards   1 - f and s = sqrt(f (1 - f))
    a right response, whose sets are all worth 1       A = f / s
    a wrong one, whose sets are worth 0 where
    the other k - 1 are wrong too                      A = (f - C(w - 1, k - 1) / C(n - 1, k - 1)) / s

(equations 14 and 15). Where fewer than k are wrong no set fails and nothing is learned: with k = 4 of 8, a problem that is solved
more than half the time. With k = 1 it is GRPO with the standard deviation of the population.
"""

from __future__ import annotations

from math import comb, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.algorithm import PassAtKAdvantage
from stages.rl.advantage.protocol import Advantage


class PassAtK(Advantage):
    def __init__(self, config: PassAtKAdvantage) -> None:
        self.k = config.k

    def advantages(self, rewards: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
        right = rewards > 0
        samples, wrong, k = len(rewards), int((~right).sum()), self.k
        failing = comb(wrong, k) / comb(samples, k)
        spread = sqrt(failing * (1 - failing))
        if spread == 0:
            return torch.zeros_like(rewards)
        of_wrong = failing - comb(wrong - 1, k - 1) / comb(samples - 1, k - 1)
        return torch.where(right, failing / spread, of_wrong / spread)


def build(config: PassAtKAdvantage, _seed: int) -> Advantage:
    return PassAtK(config)
