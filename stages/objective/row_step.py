"""From a chunk of logits to its loss, statistics and gradient, in place: what `fused` does between its matmuls.

Two passes over the vocabulary do all the heavy work, `row_sums` and `write_gradient_`; between them an objective turns a handful of
numbers per row into another handful (`protocol`). The passes are compiled for large vocabularies, once for each set of numbers that an
objective wants, and `row_step_triton` has them as hand-written kernels. The numbers per row stay eager: there is nothing to gain, and a
compiler may replace `expm1` by `exp - 1`, which is 0 where the weight of beta < 0 is largest.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.objective.protocol import Objective, Row, Terms

if TYPE_CHECKING:
    from jaxtyping import Float, Int

STATISTICS = ("cross_entropy", "entropy", "head_mass", "tail_mass", "weight")
"""`weight`, which stands last, is the objective's pull on the true token, 1 for cross-entropy."""

# Below this vocabulary compiling (some seconds, once per process) hardly ever pays: a thousand steps save less.
_COMPILE_FROM_VOCAB = 2048
# Logits that uncompiled passes take at a time on a CPU. Temporaries of this size, 128 KiB, come from memory at hand; larger ones are
# given back to the system after each use, and page faults then take as long as the arithmetic.
_EAGER_BLOCK = 1 << 15
# Columns folded onto one another by `kth_largest`: 16 was among the fastest of 8 to 64 at 32,000 and 152,000 columns and k = 100.
_FOLD = 16


class RowSums(NamedTuple):
    """Per row (rows, 1), with e = exp(logits - top): sum of e, of e * (logits - top), of e over the head, of logits - top; and with
    f = e^(1/tau) the sums of f and of f * (logits - top). Those not asked for are zero.
    """

    top: Tensor
    total: Tensor
    weighted: Tensor
    head: Tensor
    plain: Tensor
    sharper: Tensor
    sharper_weighted: Tensor


class Gradient(NamedTuple):
    """What the second pass writes: `Terms` times the scale, (rows, 1), but for the true token's own column."""

    log_total: Tensor
    in_head: Tensor
    outside: Tensor
    slope: Tensor | None
    offset: Tensor | None
    sharper: Tensor | None
    log_sharper: Tensor | None
    """Log of q's normalizer."""
    sharpness: Tensor | None
    """1 / tau, the same in every row."""

    def of_rows(self, rows: slice) -> Gradient:
        """The part that belongs to some of the rows."""
        return Gradient(*(part if part is None else part[rows] for part in self))  # type: ignore[arg-type]  # as it was


class Passes(NamedTuple):
    """The two passes over the vocabulary; any implementation equals `row_sums` and `write_gradient_`."""

    row_sums: Callable[[Tensor, Tensor | None, Tensor | None, bool], RowSums]
    write_gradient_: Callable[[Tensor, Tensor | None, Gradient], None]


def row_step_(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    objective: Objective,
    *,
    head_k: int,
    scale: Tensor,
    passes: Passes,
    response_sizes: Int[Tensor, " responses"] | None = None,
) -> Float[Tensor, " sums"]:
    """Sums over the rows of the loss, of 1, and of `STATISTICS`; the logits become the gradient of the loss times `scale`.

    `head_k` is the size of the head whose masses are reported; 0 leaves them out (zeros) unless the objective has a head itself.
    `response_sizes`, for an objective that wants responses, are the rows of each; together they are all rows.
    """
    column = targets.unsqueeze(-1)
    k = objective.head_size or head_k
    threshold = kth_largest(logits, k) if k else None
    target_logit = _raised(logits.gather(-1, column))
    sharpness = None
    if objective.second_temperature is not None:
        sharpness = torch.full_like(target_logit, 1 / objective.second_temperature)

    sums = passes.row_sums(logits, threshold, sharpness, objective.wants_mean)
    top, total = sums.top, sums.total
    log_total = top + total.log()
    log_target = target_logit - log_total
    target = log_target.exp()
    entropy = total.log() - sums.weighted / total

    head = tail = zero = torch.zeros_like(target)
    if threshold is not None:
        head, tail = _masses(sums.head / total, target, target_logit >= threshold)
    log_response = response_size = zero
    if response_sizes is not None:
        log_response = torch.segment_reduce(log_target, "sum", lengths=response_sizes).repeat_interleave(response_sizes, 0)
        response_size = response_sizes.repeat_interleave(response_sizes).unsqueeze(-1)
    vocab = logits.shape[-1]
    terms = objective.terms(
        Row(
            log_target, entropy, head, tail,
            log_first=top - log_total,
            log_last=zero if threshold is None else threshold - log_total,
            log_mean=sums.plain / vocab - total.log() if objective.wants_mean else zero,
            sharper=zero if sharpness is None else sums.sharper_weighted / sums.sharper - total.log(),
            log_response=log_response,
            response_size=response_size,
            vocab=vocab,
        )
    )  # fmt: skip
    if objective.z_loss:
        terms = _with_z_loss(terms, log_total, objective.z_loss)
    if head_k not in (0, k):
        threshold_reported = kth_largest(logits, head_k)
        reported = passes.row_sums(logits, threshold_reported, None, False).head / total
        head, tail = _masses(reported, target, target_logit >= threshold_reported)

    own = target * terms.target - terms.pull
    if terms.slope is not None:
        own = own + target * terms.slope * log_target
    log_sharper = None
    if terms.sharper is not None and sharpness is not None:
        log_sharper = sums.sharper.log() + top * sharpness
        own = own + terms.sharper * (target_logit * sharpness - log_sharper).exp()
    if terms.offset is not None:
        own = own + terms.offset
    everywhere = terms.target * scale
    gradient = Gradient(
        log_total,
        in_head=everywhere if terms.in_head is None else terms.in_head * scale,
        outside=everywhere if terms.outside is None else terms.outside * scale,
        slope=None if terms.slope is None else terms.slope * scale,
        offset=None if terms.offset is None else terms.offset * scale,
        sharper=None if terms.sharper is None else terms.sharper * scale,
        log_sharper=log_sharper,
        sharpness=sharpness,
    )
    passes.write_gradient_(logits, threshold if terms.in_head is not None else None, gradient)
    # Not scatter_, which on CPU raises a whole bfloat16 chunk to float32 and back.
    logits[torch.arange(len(targets), device=targets.device), targets] = (own * scale).to(logits.dtype).squeeze(-1)
    return torch.cat([terms.loss, torch.ones_like(target), -log_target, entropy, head, tail, terms.pull], -1).sum(0)


def _with_z_loss(terms: Terms, log_total: Tensor, weight: float) -> Terms:
    """weight (log Z)^2 on top, whose gradient with respect to logit j is 2 weight log Z pi_j."""
    more = 2 * weight * log_total
    raised = {name: value + more for name in ("target", "in_head", "outside") if (value := getattr(terms, name)) is not None}
    return dataclasses.replace(terms, loss=terms.loss + weight * log_total**2, **raised)


def row_sums(
    logits: Float[Tensor, "rows vocab"],
    threshold: Float[Tensor, "rows 1"] | None,
    sharpness: Float[Tensor, "rows 1"] | None,
    wants_mean: bool,
) -> RowSums:
    """First pass. Without a threshold the head is empty; `sharpness` is 1 / tau."""
    x = _raised(logits)
    top = x.amax(-1, keepdim=True)
    centred = x - top
    e = centred.exp()
    head = plain = sharper = sharper_weighted = torch.zeros_like(top)
    if threshold is not None:
        head = (e * (x >= threshold)).sum(-1, keepdim=True)
    if wants_mean:
        plain = centred.sum(-1, keepdim=True)
    if sharpness is not None:
        f = (centred * sharpness).exp()
        sharper, sharper_weighted = f.sum(-1, keepdim=True), (f * centred).sum(-1, keepdim=True)
    return RowSums(top, e.sum(-1, keepdim=True), (e * centred).sum(-1, keepdim=True), head, plain, sharper, sharper_weighted)


def write_gradient_(logits: Float[Tensor, "rows vocab"], threshold: Float[Tensor, "rows 1"] | None, gradient: Gradient) -> None:
    """Second pass: each logit becomes its gradient, with `in_head` from the threshold up and `outside` below."""
    x = _raised(logits)
    coefficient = gradient.outside if threshold is None else torch.where(x >= threshold, gradient.in_head, gradient.outside)
    log_probs = x - gradient.log_total
    if gradient.slope is not None:
        coefficient = coefficient + gradient.slope * log_probs
    found = log_probs.exp() * coefficient
    if gradient.sharper is not None and gradient.sharpness is not None and gradient.log_sharper is not None:
        found = found + gradient.sharper * (x * gradient.sharpness - gradient.log_sharper).exp()
    if gradient.offset is not None:
        found = found + gradient.offset
    logits.copy_(found)


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


def _row_sums_in_blocks(logits: Tensor, threshold: Tensor | None, sharpness: Tensor | None, wants_mean: bool) -> RowSums:
    blocks = _blocks(logits)
    if len(blocks) == 1:
        return row_sums(logits, threshold, sharpness, wants_mean)
    parts = [
        row_sums(
            logits[rows], None if threshold is None else threshold[rows], None if sharpness is None else sharpness[rows], wants_mean
        )
        for rows in blocks
    ]
    return RowSums(*(torch.cat(of_parts) for of_parts in zip(*parts, strict=True)))


def _write_gradient_in_blocks_(logits: Tensor, threshold: Tensor | None, gradient: Gradient) -> None:
    for rows in _blocks(logits):
        write_gradient_(logits[rows], None if threshold is None else threshold[rows], gradient.of_rows(rows))


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
    # A pass is compiled anew for each dtype and each set of numbers that an objective wants; torch gives up after 8, silently. Older
    # versions than 2.13 have no such argument, and a process seldom needs more.
    limit: dict[str, Any] = {"recompile_limit": 64} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}

    def with_fall_back(eager: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(eager, dynamic=True, **limit)

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
