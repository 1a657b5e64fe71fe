"""A control: GRPO on coin flips (as the random rewards of arXiv 2506.10947).

What a run gains with them it did not learn from answers: the model came to end its responses, or to sample from fewer of them, or the
difference is chance. Each problem's flips in a step come from the run's seed, so they depend neither on what was sampled nor on how
problems are spread over processes, and a resumed run flips the same.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.algorithm import RandomAdvantage
from stages.rl.advantage.protocol import Advantage
from stages.rl.dynamic_sampling import Group

_STREAM = 0xC011
"""Apart from other draws that start from seed and step."""


class Random(Advantage):
    def __init__(self, config: RandomAdvantage, seed: int) -> None:
        self.share = config.share
        self.seed = seed

    def rewards(self, group: Group, step: int) -> Float[Tensor, " samples"]:
        flips = np.random.default_rng([self.seed, step, group.problem, _STREAM]).random(len(group.rewards)) < self.share
        return torch.from_numpy(flips).to(group.rewards.dtype)


def build(config: RandomAdvantage, seed: int) -> Advantage:
    return Random(config, seed)
