"""Focal loss: cross-entropy, less of it where the model is sure already (Lin et al. 2017, arXiv 1708.02002).

    loss = -(1 - pi_x)^gamma log pi_x
    w    = (1 - pi_x)^gamma - gamma pi_x (1 - pi_x)^(gamma - 1) log pi_x

The factor is differentiated too. `Shaped` with beta = gamma holds it constant: w is then the first summand alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stages.objective.protocol import WeightedCrossEntropy, complement


@dataclass(frozen=True, kw_only=True)
class Focal(WeightedCrossEntropy):
    """`Focal(gamma=0)` is cross-entropy."""

    kind: ClassVar[str] = "focal"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"gamma": (0, math.inf)}

    gamma: float = 2.0
    """Exponent of 1 - pi_x; 2 is the choice of its authors."""

    def weight(self, log_target: Tensor) -> Tensor:
        rest = complement(log_target)
        # log pi / (1 - pi) goes to -1 as pi -> 1, where its parts round to 0.
        slope = torch.where(rest > 0, log_target / rest, -1.0)
        return rest**self.gamma * (1 - self.gamma * log_target.exp() * slope)

    def value(self, log_target: Tensor) -> Tensor:
        # Below the bound, which only pi_x = 1 is, the derivative of the power would be infinite for gamma < 1.
        return -(complement(log_target).clamp(min=1e-30) ** self.gamma) * log_target
