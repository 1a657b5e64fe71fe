"""Intervals for means over problems and seeds, one at a time or jointly for many comparisons.

Values are shaped (seeds, problems): every seed answers the same problems, and both are random samples. The mean's variance has a
component from problems, one from seeds, and a residual (Searle, Casella and McCulloch, 1992). How well each is known follows from its
degrees of freedom, so the interval comes from the mean's generalised pivot, in which every estimated component is drawn from what it
may truly be (Weerahandi, 1993). With one seed this is the t interval over problems. Coverage: `scripts/benchmarks/intervals.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.sets import freedom

CONFIDENCE = 0.95
POWER = 0.8
FEWEST_PROBLEMS = 5
"""With fewer problems (or blocks, or steps) no interval is given: so few values say too little about the population's variance."""
_SAME = 1e-9
"""Smaller differences are rounding."""
DRAWS = 4000
_BINNED = 10
"""Intervals are solved for with the means of this many draws of similar size, which is faster and just as exact."""
_MOST_DRAWN = 500
"""Larger families use Bonferroni's level, which is hardly stricter at that size."""
SEED = 20251222
_LEAST_FREEDOM, _MOST_FREEDOM = 0.2, 1e6
"""Beyond these Student's t cannot be told from the normal distribution, or its quantiles from infinity."""
_FAR = 10.0
"""Standard deviations that no draw of a normal distribution reaches."""

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
class JointInterval(Interval):
    """One of a family, all of whose intervals hold together with 95%."""

    superiority: float
    """The probability that this mean is positive, not corrected for the others; NaN with one seed, where it would ignore luck."""
    detectable: float
    """The true mean whose interval would exclude 0 in four of five such families."""


@dataclass(frozen=True)
class Spread:
    """A mean square over seeds: `square` estimates problems x the variance that seeds cause, with `freedom` degrees."""

    square: float
    freedom: float


@dataclass(frozen=True)
class Sample:
    """Values whose mean is wanted, shaped (seeds, problems)."""

    values: Floats
    seeds: tuple[Spread, ...] | None = None
    """Estimates of the spread over seeds, to be added up; None to estimate it from these values alone. Unused with one seed."""
    fitted: Spread | None = None
    """A further error of the mean, from a slope that was fitted: here `square` is its variance."""
    sets: tuple[int, ...] = ()
    """The sizes of the evaluation sets, where the values are those of `sets.averaged`."""
    of: str = ""
    """Which problems: means over the same ones correlate, and are shaped alike."""


def mean_interval(values: Floats, sets: tuple[int, ...] = ()) -> Interval:
    """Mean of `values`, shaped (problems,) or (seeds, problems), with its 95% interval; `sets` as in `Sample`."""
    return _Mean(Sample(np.atleast_2d(values), sets=sets), _Chance()).interval(1 - CONFIDENCE)


def perplexity(block_cross_entropy: Floats) -> Interval:
    """e to the mean cross-entropy and to the ends of its interval; in nats per token, shaped (blocks,) or (seeds, blocks)."""
    interval = mean_interval(block_cross_entropy)
    with np.errstate(over="ignore"):  # infinity is right, past 709 nats
        return Interval(*np.exp([interval.value, interval.low, interval.high]).tolist())


def joint_intervals(samples: Sequence[Sample]) -> list[JointInterval]:
    """Intervals for the means of all `samples`, at the level at which all of them hold in 95% of families.

    This is the single-step minP method of Westfall and Young (1993): it corrects for the number of comparisons, and less so the more
    they correlate.
    """
    chance = _Chance()
    means = [_Mean(sample, chance) for sample in samples]
    level = _level_for_all([mean for mean in means if mean.known])
    return [mean.jointly(level) for mean in means]


def bayesian_mean(correct: Floats, n: int) -> tuple[float, float]:
    """Posterior mean and standard deviation of the success rate on exactly these problems, from `correct` of n samples per problem.

    Each problem's rate has the posterior Beta(1 + c, 1 + n - c) under a uniform prior (arXiv 2510.04265); the mean over problems is
    treated as normal. It predicts more samples of the same problems; the other intervals generalize to other problems.
    """
    a, b = 1 + correct, 1 + n - correct
    variance = a * b / ((n + 2) ** 2 * (n + 3))
    return float((a / (n + 2)).mean()), float(np.sqrt(variance.sum()) / correct.size)


def bayesian_gain(before: Sequence[Floats], after: Sequence[Floats], n: int) -> Interval:
    """Gain in pass@1, averaged over evaluation sets, with the 95% credible interval of `bayesian_mean`.

    One array of counts per set, shaped (seeds, problems), of n samples before and after.
    """
    (start, start_error), (end, end_error) = (
        (float(np.mean(means)), math.hypot(*errors) / len(errors))
        for side in (before, after)
        for means, errors in [zip(*(bayesian_mean(counts, n) for counts in side), strict=True)]
    )
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.hypot(start_error, end_error)
    return Interval(end - start, end - start - half, end - start + half)


@dataclass(frozen=True)
class Components:
    """Mean squares of values shaped (seeds, problems); with one seed, that of problems alone."""

    seeds: Spread
    problems: Spread
    rest: float


def components(values: Floats, sets: tuple[int, ...] = ()) -> Components:
    """The two-way table of variances of `values`, shaped (seeds, problems); `sets` as in `Sample`."""
    value, (seeds, problems) = float(values.mean()), values.shape
    by_seed, by_problem = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    of_seeds, of_problems = seeds - 1, problems - 1
    return Components(
        Spread(float(problems * ((by_seed - value) ** 2).sum() / max(1, of_seeds)), of_seeds),
        Spread(float(seeds * ((by_problem - value) ** 2).sum() / max(1, of_problems)), freedom(by_problem[0], sets)),
        float(((values - by_seed - by_problem + value) ** 2).sum() / max(1, of_seeds * of_problems)),
    )


class _Chance:
    """Draws of true mean squares, shared by a family: estimates that come from the same data err together."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(SEED)
        self._order: dict[Hashable, NDArray[np.int64]] = {}

    def ratio(self, of: Hashable, freedom: float) -> Floats:
        """True over estimated variance, (draws,): quantiles of degrees / chi-squared in a random order, one for each `of`."""
        if of not in self._order:
            self._order[of] = self.rng.permutation(DRAWS)
        return _ratios(freedom)[self._order[of]]


@functools.lru_cache(maxsize=4096)
def _ratios(freedom: float) -> Floats:
    """Degrees / chi-squared at evenly spaced quantiles, (draws,)."""
    from scipy.special import chdtri

    return freedom / chdtri(freedom, (np.arange(DRAWS) + 0.5) / DRAWS)


@dataclass(frozen=True)
class Error:
    """The distribution of the error of a mean over problems and seeds; `seeds`, `fitted` and `of` as in `Sample`."""

    found: Components
    shape: tuple[int, int]
    """(seeds, problems)"""
    seeds: tuple[Spread, ...] | None = None
    fitted: Spread | None = None
    chance: _Chance = field(default_factory=_Chance)
    of: str = ""

    def variances(self) -> tuple[Floats, Floats]:
        """Variance due to problems, and variance due to seeds and a fitted slope; (draws,) each."""
        (seeds, problems), found = self.shape, self.found
        of_problems = found.problems.square * self.chance.ratio(("problems", problems, self.of), found.problems.freedom)
        size = seeds * problems
        if seeds == 1:
            return of_problems / size, np.zeros(DRAWS)
        spreads = (found.seeds,) if self.seeds is None else self.seeds
        of_seeds = sum((one.square * self.chance.ratio(one, one.freedom) for one in spreads), np.zeros(DRAWS))
        more = np.maximum(0, of_seeds - found.rest) / size
        if self.fitted is not None:
            more = more + self.fitted.square * self.chance.ratio(self.fitted, self.fitted.freedom)
        return np.maximum(found.rest, of_problems) / size, more

    def half_widths(self, *levels: float) -> list[float]:
        """Half the widths of the intervals that miss the true mean with these probabilities."""
        from scipy.optimize import brentq  # takes a third of a second, wasted unless something is compared
        from scipy.special import ndtr, stdtrit

        seeds, problems = self.shape
        if seeds == 1:
            error = math.sqrt(self.found.problems.square / problems)
            return [float(-stdtrit(self.found.problems.freedom, level / 2)) * error for level in levels]  # Student's t
        sizes = np.sort(np.sqrt(np.add(*self.variances()))).reshape(-1, _BINNED).mean(axis=1)
        largest = float(sizes.max())
        if largest == 0:
            return [0.0] * len(levels)

        def missed(half_width: float, level: float) -> float:
            return float(2 * ndtr(-half_width / (sizes / largest)).mean()) - level

        return [largest * brentq(missed, 0, _FAR, args=(level,)) for level in levels]

    def detectable(self, level: float, power: float = POWER) -> float:
        """The true mean whose interval at `level` excludes 0 with probability `power`, if the spreads are as they were found."""
        return self.detectable_by(self.half_widths(level)[0], level, power)

    def detectable_by(self, half_width: float, level: float, power: float = POWER) -> float:
        """`detectable`, where the interval at `level` is known.

        The next interval's width will be as uncertain as this one's, so the error over its width follows a noncentral t distribution,
        with the degrees of freedom that make Student's t interval as wide as this one. (Its quantiles are solved for here, since
        scipy's do not end where there are few degrees of freedom.)
        """
        from scipy.optimize import brentq
        from scipy.special import ndtr, stdtrit

        error = math.sqrt(sum(self._found_variances()))
        if error == 0:
            return 0.0
        bound = half_width / error

        def too_narrow(freedom: float) -> float:
            return math.log(bound / -float(stdtrit(freedom, level / 2)))

        ends = _LEAST_FREEDOM, _MOST_FREEDOM
        freedom = brentq(too_narrow, *ends) if too_narrow(ends[0]) < 0 < too_narrow(ends[1]) else _MOST_FREEDOM
        widths = bound / np.sqrt(_ratios(freedom)[_BINNED // 2 :: _BINNED])
        found: float = brentq(lambda mean: float(ndtr(mean - widths).mean()) - power, 0, float(widths.max()) + _FAR)
        return error * found

    def _found_variances(self) -> tuple[float, float]:
        """`variances`, with every mean square as it was found."""
        (seeds, problems), found = self.shape, self.found
        if seeds == 1:
            return found.problems.square / problems, 0.0
        of_seeds = sum(one.square for one in ((found.seeds,) if self.seeds is None else self.seeds))
        more = max(0.0, of_seeds - found.rest) / (seeds * problems) + (0.0 if self.fitted is None else self.fitted.square)
        return max(found.rest, found.problems.square) / (seeds * problems), more


class _Mean:
    """The mean of a sample, and its error."""

    def __init__(self, sample: Sample, chance: _Chance) -> None:
        values = sample.values
        self.value, (self.seeds, self.problems) = float(values.mean()), values.shape
        self.of = sample.of
        self.known = min(sample.sets, default=self.problems) >= FEWEST_PROBLEMS and float(np.ptp(values)) >= _SAME
        if self.known:
            self._chance = chance
            parts, shape = components(values, sample.sets), (self.seeds, self.problems)
            self._error = Error(parts, shape, sample.seeds, sample.fitted, chance, sample.of)
            by_problem = values.mean(axis=0) - self.value
            self.by_problem: Floats = by_problem / max(float(np.sqrt((by_problem**2).sum())), _SAME)
            """Each problem's share in the error over problems."""

    def interval(self, level: float) -> Interval:
        (half,) = self._error.half_widths(level) if self.known else (math.nan,)
        return Interval(self.value, self.value - half, self.value + half)

    def jointly(self, level: float) -> JointInterval:
        (half,) = self._error.half_widths(level) if self.known else (math.nan,)
        detectable = self._error.detectable_by(half, level) if self.known else math.nan
        return JointInterval(self.value, self.value - half, self.value + half, superiority=self._superiority(), detectable=detectable)

    def _superiority(self) -> float:
        if not self.known or self.seeds == 1:
            return math.nan
        from scipy.special import ndtr

        return float(ndtr(self.value / np.sqrt(np.add(*self._error.variances()))).mean())

    def drawn(self, at_problems: Floats) -> Floats:
        """Errors of the mean, (draws,); `at_problems` is what problems do to it, in standard deviations: means share problems."""
        of_problems, more = self._error.variances()
        return at_problems * np.sqrt(of_problems) + self._chance.rng.standard_normal(DRAWS) * np.sqrt(more)


def _level_for_all(means: Sequence[_Mean]) -> float:
    """The level of each interval at which all hold jointly with 95%, from draws of their errors.

    Means over the same problems correlate, those over different sets of problems do not. What seeds add is drawn independently, which
    is conservative: judged by two seeds, any two settings would correlate perfectly, positively or negatively.
    """
    alone, count = 1 - CONFIDENCE, len(means)
    if count < 2:
        return alone
    if count > _MOST_DRAWN:
        return alone / count
    most: dict[str, int] = {}
    for mean in means:
        most[mean.of] = max(most.get(mean.of, 0), mean.problems)
    first = dict(zip(most, np.cumsum([0, *most.values()])[:-1], strict=True))
    of_problems = np.zeros((sum(most.values()), count))
    for index, mean in enumerate(means):
        of_problems[first[mean.of] : first[mean.of] + mean.problems, index] = mean.by_problem
    shared = np.random.default_rng(SEED).standard_normal((DRAWS, len(of_problems))) @ of_problems
    least = np.full(DRAWS, np.inf)
    for index, mean in enumerate(means):
        errors = np.abs(mean.drawn(shared[:, index]))
        ranks = np.empty(DRAWS)
        ranks[np.argsort(-errors)] = np.arange(1, DRAWS + 1)
        least = np.minimum(least, ranks / DRAWS)
    # Ranks come in steps, and many draws of a large family share one: the level is the last step that at most 5% of draws reach.
    found = float(np.sort(least)[round(alone * DRAWS)]) - 1 / DRAWS
    return min(max(found, alone / count), alone)  # between Bonferroni's level and a single interval's
