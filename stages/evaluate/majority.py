"""maj@k: the chance that the most frequent answer of k of the n samples is correct, exactly, over all subsets of size k.

Which answer wins depends on how often each one was drawn: a multivariate hypergeometric, that is, independent binomials given that
they sum to k. So for each number of votes that may win, a sum goes answer by answer over how many samples are drawn so far. An answer
either falls short of these votes or reaches them and shares the victory. The factor y marks each answer that reaches them: with t ties
a correct winner counts 1 / (1 + t), the integral of y^t from 0 to 1, which Gauss-Legendre nodes give exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """For one problem, the mean over its subsets of k samples. Unreadable answers (None) do not vote; ties are broken at random.

    Raises `ValueError` if k is not between 1 and the number of samples.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} needs at least {k} samples per problem and k >= 1; there are {n}")
    given = Counter(answer for answer in answers if answer is not None)
    right = Counter(answer for answer, good in zip(answers, correct, strict=True) if good and answer is not None)
    sizes, rates = np.array([*given.values()]), np.array([right[answer] / given[answer] for answer in given])
    drawn, share = np.arange(k + 1), k / n  # any share gives the same; this one keeps the numbers near 1
    chances = {size: binom.pmf(drawn, size, share) for size in given.values()}
    won = 0.0
    for votes in range(1, min(k, max((given[answer] for answer in right), default=0)) + 1):
        able = sizes >= votes
        nodes, weights = np.polynomial.legendre.leggauss(int(able.sum()) // 2 + 1)
        y = (nodes[:, None] + 1) / 2
        # Whether one of the winners is counted as correct yet (no, yes) x nodes x samples drawn so far.
        state = np.zeros((2, len(nodes), k + 1))
        state[0] = binom.pmf(drawn, n - sizes[able].sum(), share)  # unreadable, or too rare to win
        for size, rate in zip(sizes[able].tolist(), rates[able], strict=True):
            winning = np.zeros_like(state)
            winning[..., votes:] = chances[size][votes] * state[..., : k + 1 - votes]
            after = y * winning
            after[1] += rate * winning[0]
            for fewer in range(votes):
                after[..., fewer:] += chances[size][fewer] * state[..., : k + 1 - fewer]
            state = after
        won += float(weights / 2 @ state[1, :, k])
    return won / float(binom.pmf(k, n, share))
