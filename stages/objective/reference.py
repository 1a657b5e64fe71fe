"""The reward-shaped next-token objective, exact over the vocabulary: the reference that faster code must equal.

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

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.config.prior import Prior

# For beta < 0 the weight (1 - pi_x)^beta diverges as pi_x -> 1, while its product with the gradient, (1 - pi_x)^(1 + beta), vanishes.
# Below this bound 1 - pi_x counts as the bound, which caps the weight: 31.6 at beta = -0.25.
MIN_COMPLEMENT = 1e-6


def shaped_loss(
    logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"],
    prior: Prior,
    *,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Shaped objective in nats; equals `F.cross_entropy` in value and gradient when beta and both lambdas are 0.

    Computed in float32 at least (bf16 logits are raised). `mean` divides by the number of targets that are not `ignore_index`, and is 0
    with zero gradients when there is none (`F.cross_entropy` gives NaN there). `none` keeps the shape of `targets`, 0 where ignored.
    Ties at the head's edge: K holds every token with a logit at least as large as the k-th largest, so it may exceed k; k >= vocab puts
    every token into K. The true token never counts in P_head or P_tail, whether in K or not.
    """
    counted = targets != ignore_index
    safe_targets = targets.masked_fill(~counted, 0)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = logits.log_softmax(dim=-1)
    target_log_probs = log_probs.gather(-1, safe_targets.unsqueeze(-1)).squeeze(-1)

    losses = -positive_weight(target_log_probs.detach(), prior) * target_log_probs
    if prior.rank_aware:
        head_mass, tail_mass = negative_masses(logits, log_probs, safe_targets, prior.k)
        losses = losses - prior.lambda_head * head_mass - prior.lambda_tail * tail_mass
    losses = losses.masked_fill(~counted, 0.0)

    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / counted.sum().clamp(min=1)
    raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")


def positive_weight(target_log_probs: Float[Tensor, "*batch"], prior: Prior) -> Float[Tensor, "*batch"]:
    """w: what the shaped reward multiplies the cross-entropy gradient of the true token with.

    Raises:
        ValueError: the prior changes over training, and which moment is meant is not known here.
    """
    if prior.schedule:
        raise ValueError(f"prior {prior.name} has a schedule; give the loss its setting at one moment, prior.at(share_of_tokens)")
    if prior.beta == 0:
        return torch.ones_like(target_log_probs)
    # expm1 keeps 1 - pi_x accurate near pi_x = 1, where 1 - exp(log pi_x) would round to 0.
    complement = (-torch.expm1(target_log_probs)).clamp(min=MIN_COMPLEMENT)
    factor = complement**prior.beta
    if prior.form == "product":
        return factor
    return torch.exp(target_log_probs * (1 - factor))


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


def distribution_statistics(
    logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"], k: int
) -> dict[str, Float[Tensor, "*batch"]]:
    """Per position, without gradient: cross_entropy and entropy in nats, head_mass and tail_mass (P_head and P_tail of the k-head)."""
    with torch.no_grad():
        logits = logits.float()
        log_probs = logits.log_softmax(dim=-1)
        head_mass, tail_mass = negative_masses(logits, log_probs, targets, k)
        return {
            "cross_entropy": -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
            "entropy": -(log_probs.exp() * log_probs).sum(-1),
            "head_mass": head_mass,
            "tail_mass": tail_mass,
        }
