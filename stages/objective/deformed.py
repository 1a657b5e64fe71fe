"""The deformed logarithm: between cross-entropy and the expected error (arXiv 2510.00526).

    loss = (1 - pi_x^alpha) / alpha          w = pi_x^alpha

At alpha = 0 it is cross-entropy. At alpha = 1 the gradient is that of -sg(pi_x) log pi_x, dynamic fine-tuning (DFT, arXiv 2508.05629).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stages.objective.protocol import WeightedCrossEntropy


@dataclass(frozen=True, kw_only=True)
class Deformed(WeightedCrossEntropy):
    kind: ClassVar[str] = "deformed"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"alpha": (0, math.inf)}

    alpha: float = 0.5
    """How much the gradient favours tokens that are probable already."""

    def weight(self, log_target: Tensor) -> Tensor:
        return (self.alpha * log_target).exp()

    def value(self, log_target: Tensor) -> Tensor:
        # Below this bound the two differ by less than rounding, and a division by the least of numbers would overflow.
        return -log_target if self.alpha < 1e-12 else -(self.alpha * log_target).expm1() / self.alpha
