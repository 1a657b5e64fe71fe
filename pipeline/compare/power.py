"""How small a difference between two settings a sweep can resolve, estimated before it runs.

The error of a paired difference of gains in pass@1 has two parts. Over problems: their spread, and the noise of n samples each, before
and after, in both settings. Over seeds: how much two training runs of one setting differ. Sweeps on Countdown showed the first spread,
the second is assumed; other tasks differ, so use these numbers for planning only. A finished sweep has its own.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

from pipeline.compare.intervals import CONFIDENCE, t_quantile
from pipeline.compare.settings import pairs, planned_settings
from pipeline.experiment.compose import Cell

PROBLEM_SPREAD = 0.3
"""Standard deviation over problems of a difference of gains, without sampling noise (Countdown, three numbers: .31)."""
SEED_SPREAD = 0.03
"""Standard deviation over seeds of a difference of gains on the same problems: an assumption."""
_SAMPLING = 4 * 0.12
"""Four measured rates per problem, each with a variance of p (1 - p) / n, about .12 / n."""
_POWER = 0.8
_MOST_SEEDS, _MOST_PROBLEMS = 100, 1_000_000
"""More is not useful advice."""


@dataclass(frozen=True)
class Power:
    """A sweep's power to show one difference in pass@1 among `comparisons`."""

    problems: int
    samples: int
    seeds: int
    comparisons: int

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return math.sqrt(self._of_problems + self._of_seeds)

    @property
    def detectable(self) -> float:
        """The difference that four in five sweeps would show: the interval's half width plus the margin for that power."""
        freedom = self._freedom
        return (t_quantile((1 - CONFIDENCE) / (2 * self.comparisons), freedom) + t_quantile(1 - _POWER, freedom)) * self.error

    def seeds_for(self, difference: float) -> int | None:
        """Seeds needed to show `difference` in four of five sweeps of these problems; None if no number of seeds suffices."""
        counts = range(2, _MOST_SEEDS + 1)  # one seed says nothing about their spread
        return next((count for count in counts if replace(self, seeds=count).detectable <= difference), None)

    def problems_for(self, difference: float) -> int | None:
        """Problems needed to show `difference` in four of five sweeps of these seeds; None if no number of problems suffices."""
        counts = range(2, _MOST_PROBLEMS + 1)
        at = bisect_left(counts, True, key=lambda count: replace(self, problems=count).detectable <= difference)
        return None if at == len(counts) else counts[at]

    @property
    def _of_problems(self) -> float:
        return (PROBLEM_SPREAD**2 + _SAMPLING / self.samples) / self.problems

    @property
    def _of_seeds(self) -> float:
        return SEED_SPREAD**2 / self.seeds

    @property
    def _freedom(self) -> float:
        """Degrees of the error, as in a finished sweep's interval (Satterthwaite, 1946); with one seed, of problems only."""
        of_problems = max(1, self.problems - 1)
        if self.seeds == 1:
            return of_problems
        return self.error**4 / (self._of_problems**2 / of_problems + self._of_seeds**2 / (self.seeds - 1))


def power_of(cells: list[Cell]) -> Power | None:
    """For a sweep's axis with the most differences; None without RL or without anything to compare."""
    along = pairs(planned_settings(cells))
    if not along or any(cell.recipe.rl is None for cell in cells):
        return None
    protocol = cells[0].recipe.evaluate
    seeds = len({cell.recipe.seed for cell in cells})
    shown = {k for k in (1, 8, protocol.samples) if k <= protocol.samples}
    return Power(protocol.problems, protocol.samples, seeds, max(map(len, along.values())) * len(shown))


def in_words(found: Power, aim: float) -> str:
    """`found` as a sentence, with what it would take to show a difference of `aim`."""
    size = f"{found.problems} problems x {found.samples} samples x {found.seeds} seed{'s' if found.seeds > 1 else ''}"
    jointly = f" ({found.comparisons} compared jointly)" if found.comparisons > 1 else ""
    said = (
        f"Power of {size}: differences of gains in pass@1 have a standard error of about {found.error:.3f}, so a difference of "
        f"{found.detectable:.2f} would show in four of five sweeps{jointly}."
    )
    if found.detectable > aim:
        seeds, problems = found.seeds_for(aim), found.problems_for(aim)
        ways = [f"{seeds} seeds" if seeds else "", f"{problems:,} problems" if problems else ""]
        needed = " or ".join(way for way in ways if way) or "both more seeds and more problems"
        said += f" Showing {aim:g} takes {needed}."
    return f"{said} Assumed spreads: {PROBLEM_SPREAD:g} over problems (Countdown's), {SEED_SPREAD:g} over seeds (a guess)."
