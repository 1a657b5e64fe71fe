"""Cross-entropy with a bonus for entropy, everywhere or only where the model is undecided.

    loss = -log pi_x - alpha H(pi)
    gradient with respect to logit j: pi_j - 1[j = x] + alpha pi_j (log pi_j + H)

With `gate` below 1 the bonus counts only where the two most probable tokens together hold at most that much: where there is one way to
go on, diversity would be error. The gate is that of SED-SFT (arXiv 2602.07464), whose own term is (pi_x - 1/2)^2 and not the entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stages.objective.protocol import Objective, Row, Terms, of_targets


@dataclass(frozen=True, kw_only=True)
class Entropy(Objective):
    """`Entropy(alpha=0)` is cross-entropy; alpha < 0 sharpens."""

    kind: ClassVar[str] = "entropy"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"alpha": (-1, math.inf), "gate": (0, 1)}

    alpha: float = 0.1
    """Weight of the entropy."""
    gate: float = 1.0
    """Largest probability of the top two at which the bonus counts; 1: everywhere."""

    @property
    def head_size(self) -> int:
        return 2 if self.gate < 1 else 0

    def losses(self, logits: Tensor, log_probs: Tensor, targets: Tensor, responses: Tensor) -> Tensor:
        probabilities = log_probs.exp()
        entropy = -(probabilities * log_probs).sum(-1)
        if self.gate < 1:
            entropy = entropy * (log_probs.detach().topk(min(2, log_probs.shape[-1])).values.exp().sum(-1) <= self.gate)
        return -of_targets(log_probs, targets) - self.alpha * entropy

    def terms(self, row: Row) -> Terms:
        one = torch.ones_like(row.log_target)
        open_gate = one if self.gate == 1 else (row.log_first.exp() + row.log_last.exp() <= self.gate).to(one.dtype)
        alpha = self.alpha * open_gate
        return Terms(loss=-row.log_target - alpha * row.entropy, pull=one, target=one + alpha * row.entropy, slope=alpha)
