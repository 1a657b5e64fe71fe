"""Coverage: cross-entropy, less of it on responses that some of N samples would hit already (arXiv 2502.07154).

    loss of a response = -log(1 - (1 - P)^N)          P = product of pi_x over its tokens
    w of each token    = N P (1 - P)^(N - 1) / (1 - (1 - P)^N)

1 - (1 - P)^N is the probability that the response is among N samples, which is what pass@N asks for. While P is far below 1/N, w is
1, as for cross-entropy. Far above, the response is learned well enough, and w goes to 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from stages.objective.protocol import Objective, Row, Terms, of_targets

if TYPE_CHECKING:
    from jaxtyping import Float

# Below this log P, which float32 still resolves, w is 1 and the loss off its limit -log(N P) by less than rounding.
_RARE = -60.0


@dataclass(frozen=True, kw_only=True)
class Coverage(Objective):
    """`Coverage(attempts=1)` is cross-entropy. A response is a run of targets that count, without a gap in between."""

    kind: ClassVar[str] = "coverage"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"attempts": (1, 1e6)}

    attempts: float = 16.0
    """N, the samples of which one should hit."""

    @property
    def wants_responses(self) -> bool:
        return True

    def weight(self, log_response: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """w of the tokens of a response with this log P."""
        log_rest = self._log_rest(log_response)
        hits = self.attempts * log_response.clamp(min=_RARE).exp()
        return hits * ((self.attempts - 1) * log_rest).exp() / -(self.attempts * log_rest).expm1()

    def value(self, log_response: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The loss of a response, in nats."""
        covered = -(self.attempts * self._log_rest(log_response)).expm1()
        return (log_response.clamp(min=_RARE) - log_response) - covered.log()

    def losses(self, logits: Tensor, log_probs: Tensor, targets: Tensor, responses: Tensor) -> Tensor:
        log_target, counted = of_targets(log_probs, targets), responses >= 0
        number = responses[counted]
        sums = log_target.new_zeros(len(number)).index_add(0, number, log_target[counted])
        sizes = number.bincount(minlength=len(number)).clamp(min=1)
        return torch.zeros_like(log_target).masked_scatter(counted, (self.value(sums) / sizes)[number])

    def terms(self, row: Row) -> Terms:
        weight = self.weight(row.log_response)
        return Terms(loss=self.value(row.log_response) / row.response_size, pull=weight, target=weight)

    def _log_rest(self, log_response: Tensor) -> Tensor:
        """log (1 - P), accurate for small P and large: N times its error is that of w. Clamps keep slopes finite."""
        within, half = log_response.clamp(min=_RARE), -math.log(2)
        return torch.where(
            within > half,
            (-within.expm1()).clamp(min=1e-30).log(),
            (-within.clamp(max=half).exp()).log1p(),
        )
