"""The mean over evaluation sets of the means within them: the sets are fixed, the problems of each are a sample.

Every set counts alike, so a problem of a small set weighs more than one of a large set. Instead of carrying weights, `averaged` gives
each problem a value whose plain mean is the mean over sets, and whose plain variance estimates that mean's, as in stratified sampling
(Cochran, Sampling Techniques, 1977, section 5.4). The values are linear in the problems' own, so differences between settings, gains
and slopes are the same before and after. What is not linear, such as whether a problem was solved at all, is computed set by set first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def averaged(of_sets: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One value per problem of all sets, (..., problems of all sets), from the values of each, (..., problems of the set).

    With S sets, N problems, and n of them in a problem's set: M + sqrt(N (N - 1) / (n (n - 1))) / S x (value - the set's mean), where M
    is the mean over sets. Of a single set, the values themselves.
    """
    if len(of_sets) == 1:
        return of_sets[0]
    sizes = [values.shape[-1] for values in of_sets]
    means = [values.mean(axis=-1, keepdims=True) for values in of_sets]
    mean, whole = np.mean(means, axis=0), sum(sizes)
    weights = [math.sqrt(whole * (whole - 1) / (size * max(1, size - 1))) / len(sizes) for size in sizes]
    parts = zip(of_sets, means, weights, strict=True)
    return np.concatenate([mean + weight * (values - of_set) for values, of_set, weight in parts], axis=-1)


def freedom(by_problem: NDArray[np.float64], sizes: Sequence[int]) -> float:
    """Degrees of freedom of the variance over problems of values of `averaged`, (problems,), by Satterthwaite (1946).

    `sizes` are the problems of each set; none for a single set. A few problems of one set may decide how well the variance is known.
    """
    if not sizes:
        return len(by_problem) - 1
    squares = [float(((part - part.mean()) ** 2).sum()) for part in np.split(by_problem, np.cumsum(sizes)[:-1])]
    known = sum(square**2 / max(1, size - 1) for square, size in zip(squares, sizes, strict=True))
    return sum(squares) ** 2 / known if known > 0 else len(by_problem) - len(sizes)


def as_telling_as(sizes: Sequence[int]) -> float:
    """How many problems of a single set would give as exact a mean, if problems vary alike: S^2 / (1/n + 1/n' + ...)."""
    return len(sizes) ** 2 / sum(1 / size for size in sizes)
