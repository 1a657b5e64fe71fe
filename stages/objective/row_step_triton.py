"""The two passes of `row_step` as hand-written Triton kernels, one program per row. CUDA only; they do not compile there yet.

Their arithmetic is tested on CPU in Triton's interpreter (TRITON_INTERPRET=1 before import). Once they compile, `passes=PASSES` of
`fused_loss_and_statistics` selects them, and `scripts/benchmarks/loss.py` shows whether they win.

The first kernel reads each logit once: maximum and sums are kept together and rescaled when the maximum grows, as in online softmax
(Milakov & Gimelshein, arXiv 1805.02867), where the compiled pass reads a row twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.objective.row_step import Passes, RowSums

if TYPE_CHECKING:
    from jaxtyping import Float

_BLOCK = 4096


def row_sums(logits: Float[Tensor, "rows vocab"], threshold: Float[Tensor, "rows 1"] | None) -> RowSums:
    """As `row_step.row_sums`."""
    rows, vocab = logits.shape
    results = [torch.empty(rows, 1, dtype=torch.float32, device=logits.device) for _ in RowSums._fields]
    _row_sums_kernel[(rows,)](
        logits, logits if threshold is None else threshold, *results, vocab, logits.stride(0),
        has_head=threshold is not None, block=_BLOCK,
    )  # fmt: skip
    return RowSums(*results)


def write_gradient_(
    logits: Float[Tensor, "rows vocab"],
    log_total: Float[Tensor, "rows 1"],
    threshold: Float[Tensor, "rows 1"] | None,
    in_head: Float[Tensor, "rows 1"],
    outside: Float[Tensor, "rows 1"],
) -> None:
    """As `row_step.write_gradient_`."""
    rows, vocab = logits.shape
    grid = (rows, triton.cdiv(vocab, _BLOCK))
    _write_gradient_kernel[grid](
        logits, log_total, logits if threshold is None else threshold, in_head, outside, vocab, logits.stride(0),
        has_head=threshold is not None, block=_BLOCK,
    )  # fmt: skip


@triton.jit
def _row_sums_kernel(
    logits: Tensor,
    threshold: Tensor,
    top_out: Tensor,
    total_out: Tensor,
    weighted_out: Tensor,
    head_out: Tensor,
    vocab: int,
    stride: int,
    has_head: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    start_of_row = logits + row.to(tl.int64) * stride
    columns = tl.arange(0, block)
    edge = 0.0
    if has_head:
        edge = tl.load(threshold + row)
    # Finite, so that the first rescaling is exp(-large) = 0 and not exp(-inf + inf).
    top = -3.0e38
    total = 0.0
    weighted = 0.0
    head = 0.0
    for start in range(0, vocab, block):
        inside = start + columns < vocab
        x = tl.load(start_of_row + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(x, axis=0))
        shrink = tl.exp(top - new_top)
        centred = tl.where(inside, x - new_top, 0.0)
        e = tl.where(inside, tl.exp(centred), 0.0)
        # sum e' (x - top') with e' = shrink e and x - top' = (x - top) - (top' - top)
        weighted = tl.where(total > 0, shrink * (weighted - (new_top - top) * total), 0.0) + tl.sum(e * centred, axis=0)
        total = shrink * total + tl.sum(e, axis=0)
        if has_head:
            head = shrink * head + tl.sum(tl.where(x >= edge, e, 0.0), axis=0)
        top = new_top
    tl.store(top_out + row, top)
    tl.store(total_out + row, total)
    tl.store(weighted_out + row, weighted)
    tl.store(head_out + row, head)


@triton.jit
def _write_gradient_kernel(
    logits: Any,
    log_total: Tensor,
    threshold: Tensor,
    in_head: Tensor,
    outside: Tensor,
    vocab: int,
    stride: int,
    has_head: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    place = logits + row.to(tl.int64) * stride + columns
    inside = columns < vocab
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    coefficient = tl.load(outside + row)
    if has_head:
        coefficient = tl.where(x >= tl.load(threshold + row), tl.load(in_head + row), coefficient)
    gradient = tl.exp(x - tl.load(log_total + row)) * coefficient
    tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)


PASSES = Passes(row_sums, write_gradient_)
