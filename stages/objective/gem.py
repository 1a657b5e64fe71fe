"""GEM: the model's sharpened distribution, not the model's own, is pulled towards the data (arXiv 2408.16673, with h = 1).

    loss = sum_a sg(q_a) (log pi_a - log pi_x),   q = softmax(z / tau)
    gradient with respect to logit j: q_j - 1[j = x]

It rests where q is the data's distribution, so where the model is flatter than the data if tau < 1. At tau = 1 the gradient is that of
cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stages.objective.protocol import Objective, Row, Terms, of_targets


@dataclass(frozen=True, kw_only=True)
class Gem(Objective):
    kind: ClassVar[str] = "gem"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"tau": (0.01, 100)}

    tau: float = 0.7
    """Temperature of q; 0.7 is its authors' choice."""

    @property
    def second_temperature(self) -> float:
        return self.tau

    def losses(self, logits: Tensor, log_probs: Tensor, targets: Tensor, responses: Tensor) -> Tensor:
        sharper = (logits.detach() / self.tau).softmax(-1)
        return (sharper * log_probs).sum(-1) - of_targets(log_probs, targets)

    def terms(self, row: Row) -> Terms:
        one = torch.ones_like(row.log_target)
        return Terms(loss=row.sharper - row.log_target, pull=one, target=torch.zeros_like(one), sharper=one)
