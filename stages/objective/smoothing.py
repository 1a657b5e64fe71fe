"""Label smoothing: a share epsilon of each target is spread over the whole vocabulary (Szegedy et al. 2016, arXiv 1512.00567).

loss = -(1 - epsilon) log pi_x - (epsilon / V) sum_a log pi_a
gradient with respect to logit j: pi_j - (1 - epsilon) 1[j = x] - epsilon / V
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stages.objective.protocol import Objective, Row, Terms, of_targets


@dataclass(frozen=True, kw_only=True)
class Smoothing(Objective):
    """`Smoothing(epsilon=0)` is cross-entropy."""

    kind: ClassVar[str] = "smoothing"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"epsilon": (0, 1)}

    epsilon: float = 0.1
    """Share of the target that is spread."""

    @property
    def wants_mean(self) -> bool:
        return True

    def losses(self, logits: Tensor, log_probs: Tensor, targets: Tensor, responses: Tensor) -> Tensor:
        return -(1 - self.epsilon) * of_targets(log_probs, targets) - self.epsilon * log_probs.mean(-1)

    def terms(self, row: Row) -> Terms:
        one = torch.ones_like(row.log_target)
        loss = -(1 - self.epsilon) * row.log_target - self.epsilon * row.log_mean
        return Terms(loss=loss, pull=(1 - self.epsilon) * one, target=one, offset=-self.epsilon / row.vocab * one)
