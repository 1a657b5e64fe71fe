"""The two passes of `row_step` as hand-written Triton kernels. CUDA only; not the default, since no GPU has measured them yet.

Their arithmetic is tested on CPU in Triton's interpreter (TRITON_INTERPRET=1 before import), and tests compile them for three
generations of GPUs. `passes=PASSES` of `fused_loss_and_statistics` selects them; `scripts/benchmarks/loss.py` shows whether they win.

The first kernel reads each logit once: maximum and sums are kept together and rescaled when the maximum grows, as in online softmax
(Milakov & Gimelshein, arXiv 1805.02867), where the compiled pass reads a row twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from stages.objective.row_step import Gradient, Passes, RowSums

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_BLOCK = 4096


def row_sums(
    logits: Float[Tensor, "rows vocab"],
    threshold: Float[Tensor, "rows 1"] | None,
    sharpness: Float[Tensor, "rows 1"] | None,
    wants_mean: bool,
) -> RowSums:
    """As `row_step.row_sums`."""
    rows, vocab = logits.shape
    sums = RowSums(*(torch.zeros(rows, 1, dtype=torch.float32, device=logits.device) for _ in RowSums._fields))
    _row_sums_kernel[(rows,)](
        logits, sums.top if threshold is None else threshold, sums.top if sharpness is None else sharpness, *sums,
        vocab, logits.stride(0),
        has_head=threshold is not None, has_mean=wants_mean, has_sharper=sharpness is not None, block=_BLOCK,
    )  # fmt: skip
    return sums


def write_gradient_(logits: Float[Tensor, "rows vocab"], threshold: Float[Tensor, "rows 1"] | None, gradient: Gradient) -> None:
    """As `row_step.write_gradient_`."""
    rows, vocab = logits.shape
    absent = gradient.log_total
    _write_gradient_kernel[(rows, triton.cdiv(vocab, _BLOCK))](
        logits, absent if threshold is None else threshold, *(absent if part is None else part for part in gradient),
        vocab, logits.stride(0),
        has_head=threshold is not None, has_slope=gradient.slope is not None, has_offset=gradient.offset is not None,
        has_sharper=gradient.sharper is not None, block=_BLOCK,
    )  # fmt: skip


# Only constants are annotated: Triton reads annotations as types of its own, and does not know those of tensors.
@triton.jit
def _row_sums_kernel(  # type: ignore[no-untyped-def]
    logits,
    threshold,
    sharpness,
    top_out,
    total_out,
    weighted_out,
    head_out,
    plain_out,
    sharper_out,
    sharper_weighted_out,
    vocab,
    stride,
    has_head: tl.constexpr,
    has_mean: tl.constexpr,
    has_sharper: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0)
    start_of_row = logits + row.to(tl.int64) * stride
    columns = tl.arange(0, block)
    edge = 0.0
    if has_head:
        edge = tl.load(threshold + row)
    power = 1.0
    if has_sharper:
        power = tl.load(sharpness + row)
    # Finite, so that the first rescaling is exp(-large) = 0 and not exp(-inf + inf).
    top = -3.0e38
    total = 0.0
    weighted = 0.0
    head = 0.0
    plain = 0.0
    sharper = 0.0
    sharper_weighted = 0.0
    for start in range(0, vocab, block):
        inside = start + columns < vocab
        x = tl.load(start_of_row + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(x, axis=0))
        rise = new_top - top
        shrink = tl.exp(-rise)
        centred = tl.where(inside, x - new_top, 0.0)
        e = tl.where(inside, tl.exp(centred), 0.0)
        # sum e' (x - top') with e' = shrink e and x - top' = (x - top) - (top' - top)
        weighted = tl.where(total > 0, shrink * (weighted - rise * total), 0.0) + tl.sum(e * centred, axis=0)
        total = shrink * total + tl.sum(e, axis=0)
        if has_head:
            head = shrink * head + tl.sum(tl.where(x >= edge, e, 0.0), axis=0)
        if has_mean:
            plain = tl.where(start > 0, plain - rise * start, 0.0) + tl.sum(centred, axis=0)
        if has_sharper:
            f = tl.where(inside, tl.exp(centred * power), 0.0)
            shrink_sharper = tl.exp(-rise * power)
            kept = tl.where(sharper > 0, shrink_sharper * (sharper_weighted - rise * sharper), 0.0)
            sharper_weighted = kept + tl.sum(f * centred, axis=0)
            sharper = shrink_sharper * sharper + tl.sum(f, axis=0)
        top = new_top
    tl.store(top_out + row, top)
    tl.store(total_out + row, total)
    tl.store(weighted_out + row, weighted)
    tl.store(head_out + row, head)
    tl.store(plain_out + row, plain)
    tl.store(sharper_out + row, sharper)
    tl.store(sharper_weighted_out + row, sharper_weighted)


@triton.jit
def _write_gradient_kernel(  # type: ignore[no-untyped-def]
    logits,
    threshold,
    log_total,
    in_head,
    outside,
    slope,
    offset,
    sharper,
    log_sharper,
    sharpness,
    vocab,
    stride,
    has_head: tl.constexpr,
    has_slope: tl.constexpr,
    has_offset: tl.constexpr,
    has_sharper: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    place = logits + row.to(tl.int64) * stride + columns
    inside = columns < vocab
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    log_prob = x - tl.load(log_total + row)
    coefficient = tl.load(outside + row)
    if has_head:
        coefficient = tl.where(x >= tl.load(threshold + row), tl.load(in_head + row), coefficient)
    if has_slope:
        coefficient += tl.load(slope + row) * log_prob
    gradient = tl.exp(log_prob) * coefficient
    if has_sharper:
        gradient += tl.load(sharper + row) * tl.exp(x * tl.load(sharpness + row) - tl.load(log_sharper + row))
    if has_offset:
        gradient += tl.load(offset + row)
    tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)


PASSES = Passes(row_sums, write_gradient_)
