"""Any objective in plain PyTorch, exact over the vocabulary: the reference that faster code must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stages.objective.protocol import Objective, of_targets, response_numbers
from stages.objective.shaped import negative_masses

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def objective_loss(
    logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"],
    objective: Objective,
    *,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """The objective's loss in nats, differentiable; equals `F.cross_entropy` in value and gradient for `Shaped()`.

    Computed in float32 at least (bf16 logits are raised). `mean` divides by the number of targets that are not `ignore_index`, and is 0
    with zero gradients when there is none (`F.cross_entropy` gives NaN there). `none` keeps the shape of `targets`, 0 where ignored.

    Raises:
        ValueError: the reduction is none of those offered.
    """
    counted = targets != ignore_index
    safe_targets = targets.masked_fill(~counted, 0)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = logits.log_softmax(dim=-1)
    losses = objective.losses(logits, log_probs, safe_targets, response_numbers(counted))
    if objective.z_loss:
        losses = losses + objective.z_loss * logits.logsumexp(-1) ** 2
    losses = losses.masked_fill(~counted, 0.0)

    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / counted.sum().clamp(min=1)
    raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")


def distribution_statistics(
    logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"], k: int
) -> dict[str, Float[Tensor, "*batch"]]:
    """Per position, without gradient: cross_entropy and entropy in nats, head_mass and tail_mass (P_head and P_tail of the k-head)."""
    with torch.no_grad():
        logits = logits.float()
        log_probs = logits.log_softmax(dim=-1)
        head_mass, tail_mass = negative_masses(logits, log_probs, targets, k)
        return {
            "cross_entropy": -of_targets(log_probs, targets),
            "entropy": -(log_probs.exp() * log_probs).sum(-1),
            "head_mass": head_mass,
            "tail_mass": tail_mass,
        }
