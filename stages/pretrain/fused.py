"""The shaped objective fused with the output layer: matmul, loss and gradient in one pass over chunks of tokens.

Logits are never whole in memory: a chunk's logits are turned into its loss and, by the closed-form gradient of `objective`, into the
gradients of hidden states and weight while they are at hand. Backward only scales what forward has computed. Statistics fall out of the
same pass. Equal to `objective.shaped_loss(hidden @ weight.T, ...)` up to rounding; the weight's gradient is summed in float32.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.config import Prior
from stages.pretrain.objective import head_mask, positive_weight

# Logits of one chunk: 2^24 float32 numbers are 64 MiB, enough rows for a full-speed matmul even at a vocabulary of 150,000.
_CHUNK_NUMBERS = 1 << 24
# Below this vocabulary a chunk fits the cache, and compiling (half a minute, once per process) would never pay.
_COMPILE_FROM_VOCAB = 8192

STATISTICS = ("cross_entropy", "entropy", "head_mass", "tail_mass")


def fused_linear_shaped_loss(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    prior: Prior,
    *,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Shaped loss in nats of `hidden @ weight.T`; same conventions as `objective.shaped_loss`."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'sum'")
    divisor = (targets != ignore_index).sum().clamp(min=1) if reduction == "mean" else 1
    return fused_loss_and_statistics(
        hidden, weight, targets, prior, head_k=0, divisor=divisor, ignore_index=ignore_index, chunk_tokens=chunk_tokens
    )[0]


def fused_loss_and_statistics(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    prior: Prior,
    *,
    head_k: int,
    divisor: Tensor | int = 1,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Float[Tensor, " statistics"]]:
    """Summed loss over `divisor`, and the count of tokens followed by the (undivided) sums of `STATISTICS` over them.

    Dividing here, before gradients are rounded to the weight's dtype, saves bf16 the second rounding of a division afterwards.

    `head_k` is the size of the head whose masses are reported; 0 leaves them out (zeros). With a rank-aware prior of the same k the
    head is looked up once for both.
    """
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; expected at least 1, or None to choose by the vocabulary")
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        raise ValueError(
            f"expected hidden (tokens, width), weight (vocab, width) and targets (tokens); got {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)} and {tuple(targets.shape)}"
        )
    chunk = chunk_tokens or max(1, _CHUNK_NUMBERS // weight.shape[0])
    total, statistics = _FusedLoss.apply(hidden, weight, targets, prior, head_k, divisor, ignore_index, chunk)
    return total, statistics


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        prior: Prior,
        head_k: int,
        divisor: Tensor | int,
        ignore_index: int,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        step = _row_step(prior, head_k, weight.shape[0])
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        sums = torch.zeros(2 + len(STATISTICS), dtype=_accumulator(hidden), device=hidden.device)
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=_accumulator(weight)) if wants_weight else None
        # Rows that count are gathered first: padding costs nothing, and no row needs masking.
        rows = (targets != ignore_index).nonzero().squeeze(-1)
        for index in rows.split(chunk):
            part = hidden[index]
            logits = (part @ weight.T).to(_accumulator(hidden))
            d_logits, row_sums = step(logits, targets[index])
            sums += row_sums
            d_logits = (d_logits / divisor).to(weight.dtype)
            if d_hidden is not None:
                d_hidden[index] = d_logits @ weight
            if d_weight is not None:
                d_weight += d_logits.T @ part
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        statistics = sums[1:].detach()
        ctx.mark_non_differentiable(statistics)
        return sums[0] / divisor, statistics

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        d_hidden = None if d_hidden is None else d_hidden * scale.to(d_hidden.dtype)
        d_weight = None if d_weight is None else (d_weight * scale).to(ctx.weight_dtype)
        return d_hidden, d_weight, None, None, None, None, None, None


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


RowStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def row_step(
    logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, " rows"], prior: Prior, head_k: int
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, " sums"]]:
    """Gradient with respect to the logits, and the sums over rows of loss, count and `STATISTICS`.

    Gradient of logit j: pi_j (b - r_j), b = sum_a pi_a r_a = w + lambda_head P_head + lambda_tail P_tail.
    """
    column = targets.unsqueeze(-1)
    log_total = logits.logsumexp(-1, keepdim=True)
    log_probs = logits - log_total
    probabilities = log_probs.exp()
    log_target = log_probs.gather(-1, column)
    target = probabilities.gather(-1, column)
    weight = positive_weight(log_target, prior)
    entropy = log_total.squeeze(-1) - (probabilities * logits).sum(-1)

    losses, baseline = -weight * log_target, weight
    head = tail = torch.zeros_like(log_target)
    gradient: Tensor | None = None
    if prior.rank_aware:
        in_head = head_mask(logits, prior.k)
        head, tail = _masses(probabilities, in_head, target, column)
        losses = losses - prior.lambda_head * head - prior.lambda_tail * tail
        baseline = weight + prior.lambda_head * head + prior.lambda_tail * tail
        gradient = probabilities * torch.where(in_head, baseline - prior.lambda_head, baseline - prior.lambda_tail)
    if head_k and not (prior.rank_aware and prior.k == head_k):
        head, tail = _masses(probabilities, head_mask(logits, head_k), target, column)
    if gradient is None:
        gradient = probabilities * baseline
    gradient = gradient.scatter(-1, column, target * baseline - weight)
    count = torch.full_like(entropy, 1.0)
    sums = torch.stack([x.sum() for x in (losses, count, -log_target, entropy, head, tail)])
    return gradient, sums


def _masses(probabilities: Tensor, in_head: Tensor, target: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """P_head and P_tail of each row; the target counts in neither."""
    whole_head = torch.where(in_head, probabilities, 0.0).sum(-1, keepdim=True)
    target_in_head = in_head.gather(-1, column)
    head = torch.where(target_in_head, whole_head - target, whole_head).clamp(min=0.0)
    return head, (1.0 - target - head).clamp(min=0.0)


@functools.cache
def _row_step(prior: Prior, head_k: int, vocab: int) -> RowStep:
    """The row step for a prior, compiled where that pays; eager, with a warning, where there is no working compiler."""
    eager: RowStep = functools.partial(row_step, prior=prior, head_k=head_k)
    if vocab < _COMPILE_FROM_VOCAB:
        return eager
    compiled = torch.compile(row_step, dynamic=True)
    state = {"broken": False}

    def step(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not state["broken"]:
            try:
                return compiled(logits, targets, prior=prior, head_k=head_k)
            except Exception as error:
                state["broken"] = True
                reason = (str(error).splitlines() or ["no message"])[0]
                warnings.warn(f"the fused loss runs uncompiled: {type(error).__name__}: {reason}", stacklevel=2)
        return eager(logits, targets)

    return step
