"""The reward-shaped objective: the true token's reward depends on its probability, the others' on their rank.

Each token is a one-step episode: state = prefix, action = next token. Cross-entropy pays the true token x with 1/pi_x and every other
token nothing; the shaped reward scales the first and pays the rest by rank (arXiv 2512.22955, Eqs. 10-13). The expectation over actions
is a finite sum, so no sampling is needed. Per token, with sg = stop-gradient and K = the k most probable tokens:

    loss = -( sg(w) * log pi_x  +  lambda_head * P_head  +  lambda_tail * P_tail )
    P_head = sum of pi_a over a in K, a != x          P_tail = 1 - pi_x - P_head
    w = (1 - pi_x)^beta                  form "product": reward (1/pi_x) (1 - pi_x)^beta
    w = pi_x^(1 - (1 - pi_x)^beta)       form "power":   reward (1/pi_x)^((1 - pi_x)^beta)

Gradient with respect to logit j: -pi_j (r_j - sum_a pi_a r_a), the policy gradient with its natural baseline; r_x = w / pi_x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor

from stages.objective.protocol import Objective, Row, Terms, complement, of_targets

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Form = Literal["product", "power"]

# For beta < 0 the weight (1 - pi_x)^beta diverges as pi_x -> 1, while its product with the gradient, (1 - pi_x)^(1 + beta), vanishes.
# Below this bound 1 - pi_x counts as the bound, which caps the weight: 31.6 at beta = -0.25.
MIN_COMPLEMENT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Shaped(Objective):
    """`Shaped()` is cross-entropy. Ties at the head's edge: K holds every token with a logit at least as large as the k-th largest, so
    it may exceed k; k >= vocab puts every token into K. The true token never counts in P_head or P_tail, whether in K or not.

    Raises:
        ValueError: beta is below -1, a number is not finite, a lambda has no head to refer to, or the form is unknown.
    """

    kind: ClassVar[str] = "shaped"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"beta": (-1, math.inf)}

    beta: float = 0.0
    """Exponent of the positive reward; < 0 sharpens, > 0 flattens."""
    lambda_head: float = 0.0
    """Reward of wrong tokens inside the head."""
    lambda_tail: float = 0.0
    """Reward of wrong tokens outside it."""
    k: int = 0
    """Size of the head, in tokens."""
    form: Form = "product"
    """Of the positive reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 1 if self.rank_aware else 0
        if self.k < least:
            raise ValueError(f"k is {self.k}, the size of the head in tokens; these lambdas need at least {least}")
        if self.form not in get_args(Form):
            raise ValueError(f"form is {self.form!r}; expected one of {', '.join(map(repr, get_args(Form)))}")

    @property
    def rank_aware(self) -> bool:
        """Whether a token's reward depends on its rank, so that the head must be looked up."""
        return self.lambda_head != 0 or self.lambda_tail != 0

    @property
    def head_size(self) -> int:
        return self.k if self.rank_aware else 0

    def weight(self, log_target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """w: what the shaped reward multiplies the cross-entropy gradient of the true token with."""
        if self.beta == 0:
            return torch.ones_like(log_target)
        factor = complement(log_target).clamp(min=MIN_COMPLEMENT) ** self.beta
        if self.form == "product":
            return factor
        return torch.exp(log_target * (1 - factor))

    def losses(self, logits: Tensor, log_probs: Tensor, targets: Tensor, responses: Tensor) -> Tensor:
        log_target = of_targets(log_probs, targets)
        found = -self.weight(log_target.detach()) * log_target
        if self.rank_aware:
            head, tail = negative_masses(logits, log_probs, targets, self.k)
            found = found - self.lambda_head * head - self.lambda_tail * tail
        return found

    def terms(self, row: Row) -> Terms:
        weight = self.weight(row.log_target)
        loss = -weight * row.log_target
        if not self.rank_aware:
            return Terms(loss=loss, pull=weight, target=weight)
        loss = loss - self.lambda_head * row.head - self.lambda_tail * row.tail
        baseline = weight + self.lambda_head * row.head + self.lambda_tail * row.tail
        return Terms(loss=loss, pull=weight, target=baseline, in_head=baseline - self.lambda_head, outside=baseline - self.lambda_tail)


def head_mask(logits: Float[Tensor, "*batch vocab"], k: int) -> Tensor:
    """True for the k most probable tokens, ties with the k-th included."""
    k = min(k, logits.shape[-1])
    threshold = logits.detach().topk(k, dim=-1).values[..., -1:]
    return logits.detach() >= threshold


def negative_masses(
    logits: Float[Tensor, "*batch vocab"],
    log_probs: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"],
    k: int,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """(P_head, P_tail): probability of the wrong tokens inside and outside the head; K is a constant of the gradient."""
    in_head = head_mask(logits, k)
    wrong = torch.ones_like(in_head).scatter(-1, targets.unsqueeze(-1), False)
    probabilities = log_probs.exp()
    return (probabilities * (wrong & in_head)).sum(-1), (probabilities * (wrong & ~in_head)).sum(-1)
