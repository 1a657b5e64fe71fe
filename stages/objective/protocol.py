"""What an objective of next-token prediction is to the loss.

An objective has its knobs, and says of each row of logits what its loss is and which numbers make up its gradient. With x the true
token, pi = softmax(z), and q = softmax(z / tau) where an objective has a tau, the gradient with respect to logit j always has the form

    pi_j (c_j + slope log pi_j)  +  sharper q_j  +  offset  -  pull 1[j = x]

in which only numbers per row differ. So every objective costs the two passes over the vocabulary that cross-entropy costs
(c = pull = 1, the rest absent), and `row_step` does them for all. Needs torch only; pydantic's view of the knobs is in
`pipeline/config/prior.py`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class Row(NamedTuple):
    """What an objective may know of each row, as (rows, 1) in float32 at least. What it did not ask for is zero."""

    log_target: Tensor
    """log pi_x, in nats."""
    entropy: Tensor
    head: Tensor
    """Probability of the wrong tokens among the `head_size` most probable."""
    tail: Tensor
    """Probability of the wrong tokens outside of these."""
    log_first: Tensor
    """log pi of the most probable token."""
    log_last: Tensor
    """log pi of the last of the `head_size` most probable ones."""
    log_mean: Tensor
    """Mean of log pi over the vocabulary."""
    sharper: Tensor
    """Sum of q_a log pi_a, for an objective with a tau."""
    log_response: Tensor
    """Sum of log pi_x over the response that the row is part of."""
    response_size: Tensor
    """Rows of that response."""
    vocab: int


@dataclass(frozen=True)
class Terms:
    """Loss and gradient of each row, as (rows, 1); the module's docstring has the formula. None: absent, and not computed."""

    loss: Tensor
    pull: Tensor
    target: Tensor
    """c of the true token. Of every other token too, unless the objective has a head:"""
    in_head: Tensor | None = None
    outside: Tensor | None = None
    slope: Tensor | None = None
    sharper: Tensor | None = None
    offset: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What training minimizes. A subclass has its knobs as fields, its `kind`, the loss in plain PyTorch, and its terms.

    Raises:
        ValueError: a knob is not finite, or out of its bounds.
    """

    kind: ClassVar[str]
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"z_loss": (0, math.inf)}
    """By knob, the least and the largest value; others are not bounded."""

    z_loss: float = 0.0
    """Weight of (log sum_a exp z_a)^2, which any objective can have on top: it keeps logits from drifting (PaLM, arXiv 2204.02311)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)):
                continue
            if not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}; expected a finite number")
            low, high = (Objective.bounds | self.bounds).get(field.name, (-math.inf, math.inf))
            if not low <= value <= high:
                expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
                raise ValueError(f"{field.name} is {value:g}; expected {expected}")

    @property
    def head_size(self) -> int:
        """k, if the objective has to know the k most probable tokens; else 0."""
        return 0

    @property
    def second_temperature(self) -> float | None:
        """tau, if the objective has one."""
        return None

    @property
    def wants_mean(self) -> bool:
        """Whether `Row.log_mean` is needed."""
        return False

    @property
    def wants_responses(self) -> bool:
        """Whether a token's loss depends on the whole response that it is part of (`response_numbers`)."""
        return False

    @abstractmethod
    def losses(
        self,
        logits: Float[Tensor, "*batch vocab"],
        log_probs: Float[Tensor, "*batch vocab"],
        targets: Int[Tensor, "*batch"],
        responses: Int[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch"]:
        """The reference: the loss of each target in nats, without `z_loss`, whose gradient by autograd is the objective's."""

    @abstractmethod
    def terms(self, row: Row) -> Terms:
        """Loss, in nats, and gradient of each row, without `z_loss`."""


class WeightedCrossEntropy(Objective):
    """An objective whose gradient is that of cross-entropy times a number per row: c = pull = w."""

    @abstractmethod
    def weight(self, log_target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """w of a true token with this log-probability."""

    @abstractmethod
    def value(self, log_target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The loss, in nats."""

    def losses(self, logits: Tensor, log_probs: Tensor, targets: Tensor, responses: Tensor) -> Tensor:
        return self.value(of_targets(log_probs, targets))

    def terms(self, row: Row) -> Terms:
        weight = self.weight(row.log_target)
        return Terms(loss=self.value(row.log_target), pull=weight, target=weight)


def of_targets(log_probs: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log pi_x."""
    return log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def response_numbers(counted: Bool[Tensor, "*batch time"]) -> Int[Tensor, "*batch time"]:
    """Of each target the number of its response, from 0; -1 where it does not count. A response is a run of targets that count, one
    after the other in the last dimension.
    """
    goes_on = torch.nn.functional.pad(counted[..., :-1], (1, 0))
    numbers = (counted & ~goes_on).flatten().cumsum(0).view(counted.shape) - 1
    return numbers.masked_fill(~counted, -1)


def complement(log_probs: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """1 - pi, accurate near pi = 1, where 1 - exp(log pi) would round to 0."""
    return -log_probs.expm1()
