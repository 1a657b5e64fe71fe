"""Metrics of repeated sampling, as one value per problem whose mean is the metric; numpy only.

pass@k is the unbiased estimator of Chen et al. (arXiv 2107.03374): the chance that k of the n samples, drawn without replacement,
contain a correct one. `problem_metrics` in `run.py` says which of them an evaluation reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pass_at_k(correct: NDArray[np.integer], n: int, k: int) -> NDArray[np.float64]:
    """1 - C(n-c, k) / C(n, k) per problem, for c = `correct` of n samples; raises `ValueError` if k > n."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples per problem and k >= 1; there are {n}")
    correct = np.asarray(correct, dtype=np.int64)
    if correct.size and not (correct.min() >= 0 and correct.max() <= n):
        raise ValueError(f"counts of correct samples must lie between 0 and n = {n}")
    # C(n-c, k) / C(n, k) = prod over i in 0..k-1 of (n-c-i) / (n-i); a factor is 0 if fewer than k are wrong.
    draws = np.arange(k)
    wrong = np.clip(n - correct[:, None] - draws, 0, None)
    return 1.0 - np.prod(wrong / (n - draws), axis=1)


def pass_hat_k(correct: NDArray[np.integer], n: int, k: int) -> NDArray[np.float64]:
    """pass^k per problem: the chance that k of the n samples, drawn without replacement, are all correct (arXiv 2406.12045)."""
    return 1.0 - pass_at_k(n - np.asarray(correct), n, k)


def doubling_ks(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    ks = [1 << power for power in range(n.bit_length()) if 1 << power <= n]
    return ks if ks[-1] == n else [*ks, n]


def consensus(answers: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """Whether the most frequent answer is correct. Unreadable answers do not vote; ties go to the one sampled first."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]  # Counter keeps first-seen order among equals
    return correct[list(answers).index(winner)]


def ratio_values(values: NDArray[np.float64], weights: NDArray[np.float64], *, if_no_weight: float) -> NDArray[np.float64]:
    """One value per problem whose mean is R = sum(weights x values) / sum(weights), and whose spread is R's.

    They are R plus R's influence values (the delta method), so intervals and paired differences work as for any other metric; a
    single one may lie outside the range of `values`. `if_no_weight` replaces R where all weights are 0.
    """
    if not weights.any():
        return np.full(len(values), if_no_weight)
    ratio = float(weights @ values / weights.sum())
    return ratio + weights * (values - ratio) / weights.mean()


def potential_at_k(correct: NDArray[np.integer], n: int, k: int) -> NDArray[np.float64]:
    """What k samples find where one fails: sum pass@k (1 - pass@1) / sum (1 - pass@1) (arXiv 2505.23433); 1 if one never fails."""
    return ratio_values(pass_at_k(correct, n, k), 1 - pass_at_k(correct, n, 1), if_no_weight=1.0)


def distinct_share(answers: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Distinct share of each problem's correct answers, averaged over the problems with any; 0 if there are none."""
    shares = np.array([len(set(found)) / max(1, len(found)) for found in answers])
    return ratio_values(shares, np.array([float(bool(found)) for found in answers]), if_no_weight=0.0)


def distinct_answers(answers: Sequence[str | None]) -> float:
    """The effective number of one problem's answers: exp of the entropy of their shares. Unreadable ones count as one answer."""
    shares = np.array([*Counter(answers).values()]) / len(answers)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def samples_to_correct(correct: NDArray[np.integer], n: int) -> NDArray[np.float64]:
    """Expected position of the first correct one of n samples in random order; n + 1 where none is correct."""
    return (n + 1) / (np.asarray(correct, dtype=np.float64) + 1)
