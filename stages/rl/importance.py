"""How far the engine that samples is from the trainer that learns, and what a correction for it does to the gradient.

The gradient of a sampled token is meant to be weighted by w = pi_trainer / pi_engine, 1 but for rounding. TRL applies one of four
estimates: of each token or of the whole response, and above a cap lowered to it (`truncate`) or dropped (`mask`). Over a response,
small differences add up: with a standard deviation of s a token, that of log w is s sqrt(tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config.algorithm import Correction

QUANTILES = {"q01": 0.01, "q50": 0.5, "q99": 0.99}


def weights(
    log_ratios: Float[Tensor, "responses tokens"], counted: Bool[Tensor, "responses tokens"], mode: Correction, cap: float
) -> Float[Tensor, "responses tokens"]:
    """What TRL multiplies each token's loss by, given log w of each token in nats; 0 for tokens that do not count."""
    if mode == "none":
        return counted.to(log_ratios.dtype)
    log_ratios = log_ratios * counted
    ratios = (log_ratios.sum(dim=1, keepdim=True) if mode.startswith("sequence") else log_ratios).exp()
    ratios = ratios.clamp(max=cap) if mode.endswith("truncate") else ratios.masked_fill(ratios > cap, 0.0)
    return ratios * counted


def effective_share(log_weights: Float[Tensor, " samples"]) -> float:
    """Effective sample size over sample size, (sum w)^2 / (n sum w^2): between 1 / n, where one sample has all weight, and 1."""
    log_weights = log_weights.double()
    log_share = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return float(log_share.exp()) / len(log_weights)


def describe(
    log_ratios: Float[Tensor, "responses tokens"],
    counted: Bool[Tensor, "responses tokens"],
    mode: Correction,
    cap: float,
    *,
    sum_over_ranks: Callable[[list[float]], list[float]],
    gather: Callable[[list[Any]], list[Any]],
) -> dict[str, float]:
    """The ratios of a batch before anything is capped, over all ranks; quantiles are this rank's. Empty if nothing counts.

    `kept_weight` is the mean over tokens of what their loss is multiplied by, also of the shorter and the longer half of the responses:
    where these differ, the correction itself prefers a length.
    """
    log_ratios = log_ratios.double()
    applied = weights(log_ratios, counted, mode, cap)
    of_tokens = log_ratios[counted]
    per_response = torch.stack([counted.sum(dim=1), (log_ratios * counted).sum(dim=1), applied.sum(dim=1)], dim=1)
    responses = torch.tensor(gather(per_response[counted.any(dim=1)].tolist()), dtype=torch.float64).reshape(-1, 3)
    if not len(responses):
        return {}
    lengths, log_weights, kept = responses.T
    ratios = of_tokens.exp()
    tokens, total, squares, ratio_total, ratio_squares, above = sum_over_ranks(
        [
            len(of_tokens),
            *torch.stack(
                [of_tokens.sum(), of_tokens.square().sum(), ratios.sum(), ratios.square().sum(), (ratios > cap).sum()]
            ).tolist(),
        ]
    )
    mean = total / tokens
    of_sequences = mode.startswith("sequence")
    by_length = lengths.argsort(stable=True)
    shorter, longer = by_length[: (len(by_length) + 1) // 2], by_length[len(by_length) // 2 :]
    return {
        "token_log_ratio_mean": mean,
        "token_log_ratio_sd": max(0.0, squares / tokens - mean**2) ** 0.5,
        **{f"token_log_ratio_{name}": value for name, value in zip(QUANTILES, _quantiles(of_tokens), strict=True)},
        "token_ess": ratio_total**2 / (tokens * ratio_squares),
        "response_log_ratio_mean": float(log_weights.mean()),
        "response_log_ratio_sd": float(log_weights.std(correction=0)),
        "response_ess": effective_share(log_weights),
        "above_cap": float((log_weights.exp() > cap).double().mean()) if of_sequences else above / tokens,
        "kept_weight": float(kept.sum() / lengths.sum()),
        "kept_weight_shorter": float(kept[shorter].sum() / lengths[shorter].sum()),
        "kept_weight_longer": float(kept[longer].sum() / lengths[longer].sum()),
    }


def _quantiles(values: Float[Tensor, " tokens"]) -> list[float]:
    at = list(QUANTILES.values())
    return np.quantile(values.cpu().numpy(), at).tolist() if len(values) else [0.0] * len(at)
