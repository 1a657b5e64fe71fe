"""Diversity-aware policy optimisation (arXiv 2505.23433): raise the entropy of correct responses.

    J = J_GRPO + lambda E[ -1(correct) (1/T) sum_t (pi(o_t) / pi_old(o_t)) log pi(o_t) ]

The ratio is 1 in value on the rollouts' own policy, but it carries the gradient that makes the sum an estimate of the entropy: without
it, the term would only push down what was sampled. On wrong responses entropy is noise, so they are left out by default.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.exploration import DiversityExploration
from stages.rl.exploration.protocol import Context, Exploration, Tokens


class Diversity(Exploration):
    def __init__(self, config: DiversityExploration) -> None:
        self.config = config

    def loss(self, tokens: Tokens) -> Float[Tensor, " responses"]:
        """-lambda times each response's mean of -ratio x log-prob over its counted tokens; 0 for responses not looked at."""
        ratio = torch.exp(tokens.log_probs - tokens.old_log_probs)
        length = tokens.counted.sum(dim=1).clamp(min=1)
        surprise = -(ratio * tokens.log_probs * tokens.counted).sum(dim=1) / length
        looked_at = tokens.correct if self.config.responses == "correct" else torch.ones_like(tokens.correct)
        return -self.config.lambda_diversity * surprise * looked_at


def build(config: DiversityExploration, _context: Context) -> Exploration:
    return Diversity(config)
