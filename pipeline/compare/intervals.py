"""Intervals for means over problems and seeds, one at a time or jointly for many comparisons.

Values are shaped (seeds, problems): every seed answers the same problems, and both are random samples. The mean has the variance of a
two-way crossed layout, (MS_seeds + MS_problems - MS_rest) / (seeds x problems), with no component below 0 (Searle, Casella and
McCulloch, 1992); its t interval uses Satterthwaite's (1946) degrees of freedom for that sum. With one seed this is the t interval over
problems. docs/comparison.md has the coverage in simulations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_FEWEST = 5
"""With fewer problems (or blocks, or steps) there is no interval: their spread says too little about the population's."""
_SAME = 1e-9
"""Smaller differences are rounding."""
_DRAWS = 4000
_DRAWN_AT_ONCE = 250
_SEED = 20251222

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """`low` and `high` are NaN where the data say nothing about the spread: few values, or all equal."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether there is an interval and it excludes 0."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has neither NaN nor infinity (the end of a perplexity's interval may overflow)."""
        return {name: number if math.isfinite(number) else None for name, number in self.__dict__.items()}


@dataclass(frozen=True)
class Contrast(Interval):
    """One of a family of differences, whose intervals hold jointly with 95%."""

    superiority: float
    """The probability that the difference is positive, from its interval's t distribution."""


@dataclass(frozen=True)
class _Mean:
    value: float
    error: float
    freedom: float

    def interval(self, level: float) -> Interval:
        half = t_quantile(level / 2, self.freedom) * self.error
        return Interval(self.value, self.value - half, self.value + half)


def mean_interval(values: Floats) -> Interval:
    """Mean of `values`, shaped (problems,) or (seeds, problems), with its 95% interval."""
    return _mean(np.atleast_2d(values)).interval(1 - CONFIDENCE)


def perplexity(block_cross_entropy: Floats) -> Interval:
    interval = mean_interval(block_cross_entropy)
    with np.errstate(over="ignore"):  # infinity is right, past 709 nats
        return Interval(*np.exp([interval.value, interval.low, interval.high]).tolist())


def contrasts(differences: Sequence[Floats]) -> list[Contrast]:
    """Joint intervals for all `differences`, each shaped (seeds, problems).

    Each is a t interval, at the level at which all intervals hold in 95% of families (the single-step minP method of Westfall and
    Young, 1993). This corrects for the number of comparisons, and less so the more they correlate.
    """
    means = [_mean(values) for values in differences]
    level = _level_for_all([values for values, mean in zip(differences, means, strict=True) if mean.error > 0])
    return [Contrast(**mean.interval(level).__dict__, superiority=_superiority(mean)) for mean in means]


def t_quantile(tail: float, freedom: float) -> float:
    """The value that Student's t with `freedom` degrees exceeds with probability `tail`."""
    from scipy.special import stdtrit  # takes a third of a second, wasted unless something is compared

    return float(-stdtrit(freedom, tail))


def _superiority(mean: _Mean) -> float:
    from scipy.special import stdtr

    return float(stdtr(mean.freedom, mean.value / mean.error))


def bayesian_mean(correct: Floats, n: int) -> tuple[float, float]:
    """Posterior mean and standard deviation of the success rate on exactly these problems, from `correct` of n samples per problem.

    Each problem's rate has the posterior Beta(1 + c, 1 + n - c) under a uniform prior (arXiv 2510.04265); the mean over problems is
    treated as normal. It predicts more samples of the same problems; the other intervals generalize to other problems.
    """
    a, b = 1 + correct, 1 + n - correct
    variance = a * b / ((n + 2) ** 2 * (n + 3))
    return float((a / (n + 2)).mean()), float(np.sqrt(variance.sum()) / correct.size)


def bayesian_gain(before: Floats, after: Floats, n: int) -> Interval:
    """Gain in pass@1 with the 95% credible interval of `bayesian_mean`; counts shaped (seeds, problems), n samples before and after."""
    (start, start_error), (end, end_error) = bayesian_mean(before, n), bayesian_mean(after, n)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * float(np.hypot(start_error, end_error))
    return Interval(end - start, end - start - half, end - start + half)


def _mean(values: Floats) -> _Mean:
    """Mean, its standard error, and the error's degrees of freedom; error and freedom are NaN where there is no interval."""
    value, (seeds, problems) = float(values.mean()), values.shape
    if problems < _FEWEST or np.ptp(values) < _SAME:
        return _Mean(value, math.nan, math.nan)
    by_seed, by_problem = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    squares = [problems * ((by_seed - value) ** 2).sum(), seeds * ((by_problem - value) ** 2).sum()]
    squares.append(((values - by_seed - by_problem + value) ** 2).sum())
    freedoms = [seeds - 1, problems - 1, (seeds - 1) * (problems - 1)]
    of_seeds, of_problems, of_rest = parts = [square / max(1, freedom) for square, freedom in zip(squares, freedoms, strict=True)]
    variance = of_rest + max(0.0, of_seeds - of_rest) + max(0.0, of_problems - of_rest)
    freedom = variance**2 / sum(part**2 / max(1, freedom) for part, freedom in zip(parts, freedoms, strict=True))
    return _Mean(value, math.sqrt(variance / values.size), freedom)


def _level_for_all(sets: Sequence[Floats]) -> float:
    """The level of each interval at which all hold jointly with 95%, from draws of their correlated means.

    Means over the same problems correlate. Seed effects are drawn independently, which is conservative: judged by two seeds, any two
    settings would correlate perfectly, positively or negatively.
    """
    alone, count = 1 - CONFIDENCE, len(sets)
    if count < 2:
        return alone
    problems = np.zeros((max(values.shape[1] for values in sets), count))
    seeds = np.zeros(count)
    for index, values in enumerate(sets):
        means = values.mean(axis=0)
        problems[: len(means), index] = (means - means.mean()) / len(means)
        seeds[index] = values.mean(axis=1).std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    spread = np.maximum(np.sqrt((problems**2).sum(axis=0) + seeds**2), _SAME)
    rng = np.random.default_rng(_SEED)
    largest = np.empty(_DRAWS)
    for start in range(0, _DRAWS, _DRAWN_AT_ONCE):
        drawn = rng.standard_normal((_DRAWN_AT_ONCE, len(problems))) @ problems + rng.standard_normal((_DRAWN_AT_ONCE, count)) * seeds
        largest[start : start + _DRAWN_AT_ONCE] = np.abs(drawn / spread).max(axis=1)
    found = 2 * NormalDist().cdf(-float(np.quantile(largest, CONFIDENCE)))
    return min(max(found, alone / count), alone)  # between Bonferroni's level and a single interval's
