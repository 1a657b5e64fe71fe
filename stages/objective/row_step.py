"""From a chunk of logits to its loss, statistics and gradient, in place: what `fused` does between its matmuls.

Two passes over the vocabulary do all the heavy work, `row_sums` and `write_gradient_`; between them lie a handful of numbers per row.
The passes are compiled for large vocabularies, and `row_step_triton` has them as hand-written kernels. The numbers per row stay eager:
there is nothing to gain, and a compiler may replace `expm1` by `exp - 1`, which is 0 where the weight of beta < 0 is largest.

With pi the probabilities, r the rewards of `objective` and b = sum_a pi_a r_a = w + lambda_head P_head + lambda_tail P_tail, the
gradient with respect to logit j is pi_j (b - r_j).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.config.prior import Prior
from stages.objective.reference import positive_weight

STATISTICS = ("cross_entropy", "entropy", "head_mass", "tail_mass")

# Below this vocabulary compiling (some seconds, once per process) hardly ever pays: a thousand steps save less.
_COMPILE_FROM_VOCAB = 2048
# Logits that uncompiled passes take at a time on a CPU. Temporaries of this size, 128 KiB, come from memory at hand; larger ones are
# given back to the system after each use, and page faults then take as long as the arithmetic.
_EAGER_BLOCK = 1 << 15
# Columns folded onto one another by `kth_largest`: 16 was among the fastest of 8 to 64 at 32,000 and 152,000 columns and k = 100.
_FOLD = 16


class RowSums(NamedTuple):
    """Per row (rows, 1), with e = exp(logits - top): sum of e, of e * (logits - top), and of e over the head."""

    top: Tensor
    total: Tensor
    weighted: Tensor
    head: Tensor


class Passes(NamedTuple):
    """The two passes over the vocabulary; any implementation equals `row_sums` and `write_gradient_`."""

    row_sums: Callable[[Tensor, Tensor | None], RowSums]
    write_gradient_: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor], None]


def row_step_(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    prior: Prior,
    *,
    head_k: int,
    scale: Tensor,
    passes: Passes,
) -> Float[Tensor, " sums"]:
    """Sums over the rows of the loss, of 1, and of `STATISTICS`; the logits become the gradient of the loss times `scale`.

    `head_k` is the size of the head whose masses are reported; 0 leaves them out (zeros) unless the prior has a head itself.
    """
    column = targets.unsqueeze(-1)
    k = prior.k if prior.rank_aware else head_k
    threshold = kth_largest(logits, k) if k else None
    target_logit = _raised(logits.gather(-1, column))

    top, total, weighted, head_total = passes.row_sums(logits, threshold)
    log_total = top + total.log()
    log_target = target_logit - log_total
    target = log_target.exp()
    entropy = total.log() - weighted / total
    weight = positive_weight(log_target, prior)

    head = tail = torch.zeros_like(target)
    if threshold is not None:
        head, tail = _masses(head_total / total, target, target_logit >= threshold)
    losses, baseline = -weight * log_target, weight
    outside = in_head = baseline * scale
    if prior.rank_aware:
        losses = losses - prior.lambda_head * head - prior.lambda_tail * tail
        baseline = weight + prior.lambda_head * head + prior.lambda_tail * tail
        in_head, outside = (baseline - prior.lambda_head) * scale, (baseline - prior.lambda_tail) * scale
    if head_k not in (0, k):
        threshold_reported = kth_largest(logits, head_k)
        reported = passes.row_sums(logits, threshold_reported).head / total
        head, tail = _masses(reported, target, target_logit >= threshold_reported)

    passes.write_gradient_(logits, log_total, threshold if prior.rank_aware else None, in_head, outside)
    # Not scatter_, which on CPU raises a whole bfloat16 chunk to float32 and back.
    own = ((target * baseline - weight) * scale).to(logits.dtype).squeeze(-1)
    logits[torch.arange(len(targets), device=targets.device), targets] = own
    return torch.cat([losses, torch.ones_like(losses), -log_target, entropy, head, tail], -1).sum(0)


def row_sums(logits: Float[Tensor, "rows vocab"], threshold: Float[Tensor, "rows 1"] | None) -> RowSums:
    """First pass; without a threshold the head is empty."""
    x = _raised(logits)
    top = x.amax(-1, keepdim=True)
    centred = x - top
    e = centred.exp()
    head = torch.zeros_like(top) if threshold is None else (e * (x >= threshold)).sum(-1, keepdim=True)
    return RowSums(top, e.sum(-1, keepdim=True), (e * centred).sum(-1, keepdim=True), head)


def write_gradient_(
    logits: Float[Tensor, "rows vocab"],
    log_total: Float[Tensor, "rows 1"],
    threshold: Float[Tensor, "rows 1"] | None,
    in_head: Float[Tensor, "rows 1"],
    outside: Float[Tensor, "rows 1"],
) -> None:
    """Second pass: each logit becomes its probability times `in_head` from the threshold up, times `outside` below."""
    x = _raised(logits)
    coefficient = outside if threshold is None else torch.where(x >= threshold, in_head, outside)
    logits.copy_((x - log_total).exp() * coefficient)


def kth_largest(logits: Float[Tensor, "rows vocab"], k: int) -> Float[Tensor, "rows 1"]:
    """The k-th largest logit of each row (the smallest if k exceeds the vocabulary), in float32 at least.

    Selecting from a large vocabulary costs more than softmax. The k largest lie among the columns whose maxima are the k largest, once
    the row is folded onto `_FOLD` layers; any further column holds nothing larger than these k maxima.
    """
    vocab = logits.shape[-1]
    k = min(k, vocab)
    width = vocab // _FOLD
    if width + _FOLD * k < vocab // 2:
        layers = logits[:, : width * _FOLD].unflatten(-1, (_FOLD, width))
        columns = _columns_of_largest(layers.amax(1), k)
        candidates = layers.gather(2, columns.unsqueeze(1).expand(-1, _FOLD, -1)).flatten(1)
        logits = torch.cat([candidates, logits[:, width * _FOLD :]], dim=-1)
    if logits.is_cpu:
        rows = _for_numpy(logits)
        return torch.from_numpy(np.partition(rows, -k, axis=-1)[:, -k, None].copy())
    return _raised(logits.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True))


def _columns_of_largest(values: Float[Tensor, "rows columns"], k: int) -> Int[Tensor, "rows k"]:
    if values.is_cpu:
        return torch.from_numpy(np.argpartition(_for_numpy(values), -k, axis=-1)[:, -k:])
    return values.topk(k, dim=-1, sorted=False).indices


def _for_numpy(values: Tensor) -> np.ndarray:
    """On the CPU numpy selects from 2,000 values six times as fast as `topk`, and folded from 32,000 twice."""
    return _raised(values.detach()).numpy()


def _masses(whole_head: Tensor, target: Tensor, target_in_head: Tensor) -> tuple[Tensor, Tensor]:
    """P_head and P_tail of each row; the target counts in neither."""
    head = torch.where(target_in_head, whole_head - target, whole_head).clamp(min=0.0)
    return head, (1.0 - target - head).clamp(min=0.0)


def _raised(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _row_sums_in_blocks(logits: Tensor, threshold: Tensor | None) -> RowSums:
    blocks = _blocks(logits)
    if len(blocks) == 1:
        return row_sums(logits, threshold)
    parts = [row_sums(logits[rows], None if threshold is None else threshold[rows]) for rows in blocks]
    return RowSums(*(torch.cat(of_parts) for of_parts in zip(*parts, strict=True)))


def _write_gradient_in_blocks_(logits: Tensor, log_total: Tensor, threshold: Tensor | None, in_head: Tensor, outside: Tensor) -> None:
    for rows in _blocks(logits):
        write_gradient_(logits[rows], log_total[rows], None if threshold is None else threshold[rows], in_head[rows], outside[rows])


def _blocks(logits: Float[Tensor, "rows vocab"]) -> list[slice]:
    """At least one, and all of a GPU's logits in one."""
    count, vocab = logits.shape
    rows = max(1, _EAGER_BLOCK // vocab if logits.is_cpu else count)
    return [slice(start, start + rows) for start in range(0, max(1, count), rows)]


EAGER = Passes(_row_sums_in_blocks, _write_gradient_in_blocks_)


@functools.cache
def passes_for(vocab: int) -> Passes:
    """The passes compiled where that pays; eager, with a warning, where there is no working compiler."""
    if vocab < _COMPILE_FROM_VOCAB:
        return EAGER
    return _compiled()


@functools.cache
def _compiled() -> Passes:
    state = {"broken": False}

    def with_fall_back(eager: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(eager, dynamic=True)

        def run(*arguments: Any) -> Any:
            if not state["broken"]:
                try:
                    return compiled(*arguments)
                except torch._dynamo.exc.TorchDynamoException as error:
                    state["broken"] = True
                    reason = (str(error).splitlines() or ["no message"])[0]
                    warnings.warn(f"the fused loss runs uncompiled: {type(error).__name__}: {reason}", stacklevel=2)
            return eager(*arguments)

        return run

    return Passes(with_fall_back(row_sums), with_fall_back(write_gradient_))
