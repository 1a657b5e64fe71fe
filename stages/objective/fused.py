"""Any objective fused with the output layer: matmul, loss and gradient in one pass over chunks of tokens.

Logits are never whole in memory: `row_step` turns a chunk's logits, in place, into their gradient, which the two matmuls of backward
consume while it is at hand. Backward only scales what forward has computed. Statistics fall out of the same pass. Equal to
`reference.objective_loss(hidden @ weight.T, ...)` up to rounding; the weight's gradient is summed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stages.objective.protocol import Objective, response_numbers
from stages.objective.row_step import STATISTICS, Passes, passes_for, row_step_

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# A chunk holds as many logits as stay in a core's cache between the passes, on a GPU as keep it busy, but at least as many rows as a
# matmul needs to run at full speed. On a GPU each chunk also reads and writes all of the weight's float32 gradient, so chunks are few:
# 2,048 rows of bfloat16 logits take half as much memory as that gradient at a width of 2,048.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 26}
_MIN_CHUNK_ROWS = {"cpu": 256, "cuda": 2048}
# Rows of the weight's gradient summed up at a time: a half-precision product of this many rows is still in the cache when it is added.
_WEIGHT_BLOCK = 4096

# From torch 2.10 on a half-precision product can be added to a float32 matrix as it is made (pytorch/pytorch#167931).
_CUDA_ADDS_TO_FLOAT32 = torch.__version__ >= "2.10"

Chunk = tuple[slice, Tensor | None]
"""Rows whose logits are in memory together, and how many of them belong to each response if the objective wants to know."""


def fused_linear_loss(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    objective: Objective,
    *,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """The objective's loss in nats of `hidden @ weight.T`; same conventions as `reference.objective_loss`.

    Gradients are computed along with the loss and handed out once: a second backward through the same loss raises RuntimeError.

    Raises:
        ValueError: shapes or dtypes do not fit together, or an option is none of those offered.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'sum'")
    divisor = (targets != ignore_index).sum().clamp(min=1) if reduction == "mean" else 1
    return fused_loss_and_statistics(
        hidden, weight, targets, objective, head_k=0, divisor=divisor, ignore_index=ignore_index, chunk_tokens=chunk_tokens
    )[0]


def fused_loss_and_statistics(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    objective: Objective,
    *,
    head_k: int,
    divisor: Tensor | float = 1,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    passes: Passes | None = None,
) -> tuple[Tensor, Float[Tensor, " statistics"]]:
    """Summed loss over `divisor`, and the count of tokens followed by the (undivided) sums of `STATISTICS` over them.

    Dividing here, before gradients are rounded to the weight's dtype, saves bf16 the second rounding of a division afterwards.

    `head_k` is the size of the head whose masses are reported; 0 leaves them out (zeros). With a rank-aware objective of the same k
    the head is looked up once for both. `passes` replaces what does the passes over the vocabulary (`row_step.Passes`).

    Raises:
        ValueError: shapes do not fit together; `hidden` and `weight`, as autocast leaves them, are not of one dtype that is bfloat16,
            float32 or float64; or `chunk_tokens` is less than 1.
    """
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; expected at least 1, or None to choose by the vocabulary")
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        raise ValueError(
            f"expected hidden (tokens, width), weight (vocab, width) and targets (tokens); got {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)} and {tuple(targets.shape)}"
        )
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (hidden, weight))
    if hidden.dtype != weight.dtype or hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}; expected both in bfloat16, float32 or float64 "
            "(float16 would lose gradients that are rounded before a loss scale can lift them)"
        )
    if not torch.is_grad_enabled():  # which autograd does not tell a function: gradients would be computed for nobody
        hidden, weight = hidden.detach(), weight.detach()
    vocab = weight.shape[0]
    device = "cpu" if weight.is_cpu else "cuda"
    chunk = chunk_tokens or max(_MIN_CHUNK_ROWS[device], _CHUNK_BYTES[device] // (vocab * weight.element_size()))
    counted = targets != ignore_index
    rows = counted.nonzero().squeeze(-1)
    if len(rows) < len(targets):  # rows that do not count cost nothing
        hidden, targets = hidden.index_select(0, rows), targets[rows]
    chunks: list[Chunk] = [(slice(start, start + chunk), None) for start in range(0, len(hidden), chunk)]
    if objective.wants_responses:
        chunks = _whole_responses(response_numbers(counted)[rows], chunk)
    total, statistics = _FusedLoss.apply(hidden, weight, targets, objective, head_k, divisor, chunks, passes or passes_for(vocab))
    return total, statistics


def _whole_responses(numbers: Int[Tensor, " rows"], chunk: int) -> list[Chunk]:
    """As many responses as fit into `chunk` rows, but at least one, however long."""
    sizes = numbers.bincount()
    chunks: list[Chunk] = []
    start = first = end = 0
    for number, size in enumerate(sizes.tolist()):
        if end + size - start > chunk and end > start:
            chunks.append((slice(start, end), sizes[first:number]))
            start, first = end, number
        end += size
    if end > start:
        chunks.append((slice(start, end), sizes[first:]))
    return chunks


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        objective: Objective,
        head_k: int,
        divisor: Tensor | float,
        chunks: list[Chunk],
        passes: Passes,
    ) -> tuple[Tensor, Tensor]:
        accumulator = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        scale = 1 / torch.as_tensor(divisor, dtype=accumulator, device=hidden.device)
        sums = torch.zeros(2 + len(STATISTICS), dtype=accumulator, device=hidden.device)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.empty_like(weight, dtype=accumulator if len(chunks) > 1 else None) if wants_weight else None
        # One buffer for all chunks: fresh memory of this size is given back to the system each time and costs as much as a softmax.
        buffer = hidden.new_empty(max((len(hidden[rows]) for rows, _ in chunks), default=0), weight.shape[0])
        for rows, response_sizes in chunks:
            part = hidden[rows]
            logits = torch.mm(part, weight.T, out=buffer[: len(part)])
            sums += row_step_(
                logits, targets[rows], objective, head_k=head_k, scale=scale, passes=passes, response_sizes=response_sizes
            )
            d_logits = logits
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[rows])
            if d_weight is not None:
                _add_product_(d_weight, d_logits, part, keep=rows.start > 0)
        if d_weight is not None and not chunks:
            d_weight.zero_()
        ctx.gradients = (d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        statistics = sums[1:].detach()
        ctx.mark_non_differentiable(statistics)
        return sums[0] * scale, statistics

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused loss hands out its gradients once; compute the loss again for a second backward")
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None  # scaled in place below: at a large vocabulary a copy would be the peak of the whole step
        d_hidden = None if d_hidden is None else d_hidden.mul_(scale)
        d_weight = None if d_weight is None else d_weight.mul_(scale).to(ctx.weight_dtype)
        return d_hidden, d_weight, None, None, None, None, None, None


def _add_product_(
    total: Float[Tensor, "vocab width"], d_logits: Float[Tensor, "rows vocab"], hidden: Float[Tensor, "rows width"], *, keep: bool
) -> None:
    """total = keep * total + d_logits.T @ hidden; what is not kept may be uninitialised.

    Half-precision products on their way to a float32 total stay in float32 on CUDA; on CPU each is rounded once.
    """
    if total.dtype == d_logits.dtype:
        total.addmm_(d_logits.T, hidden, beta=int(keep))
        return
    if total.is_cuda and _CUDA_ADDS_TO_FLOAT32:
        torch.addmm(total, d_logits.T, hidden, out_dtype=total.dtype, beta=int(keep), out=total)
        return
    for start in range(0, len(total), _WEIGHT_BLOCK):
        block, left = total[start : start + _WEIGHT_BLOCK], d_logits[:, start : start + _WEIGHT_BLOCK].T
        product = torch.mm(left, hidden, out_dtype=total.dtype) if total.is_cuda else left @ hidden
        block.add_(product) if keep else block.copy_(product)
