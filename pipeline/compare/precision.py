"""How small a difference between two settings a sweep can show, before it runs.

The error of a paired difference of gains in pass@1 has two parts. Over problems: their own spread, and the noise of n samples each,
before and after, in both settings. Over seeds: what two trainings of one setting differ by. The first spread is what sweeps on
Countdown showed, the second is assumed; other tasks differ, so these are numbers to plan with. A finished sweep has its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from pipeline.compose import Cell

PROBLEM_SPREAD = 0.3
"""Standard deviation over problems of a difference of gains, without the noise of sampling (Countdown, three numbers: .31)."""
SEED_SPREAD = 0.03
"""Standard deviation over seeds of a difference of gains on the same problems: an assumption."""
_SAMPLING = 4 * 0.12
"""Four measured rates per problem, each with a variance of p (1 - p) / n, about .12 / n."""
_POWER = 0.8
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Precision:
    """What a sweep of so many problems, samples and seeds can tell of one difference among `comparisons`, in pass@1."""

    problems: int
    samples: int
    seeds: int
    comparisons: int

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return math.sqrt(self._problem_variance / self.problems + SEED_SPREAD**2 / self.seeds)

    @property
    def detectable(self) -> float:
        """The difference that four sweeps of five would show."""
        return self._errors_needed * self.error

    def seeds_for(self, difference: float) -> int | None:
        """Seeds needed to show `difference` four times of five with as many problems; None if no number of seeds is enough."""
        left = (difference / self._errors_needed) ** 2 - self._problem_variance / self.problems
        return None if left <= 0 else math.ceil(SEED_SPREAD**2 / left)

    def problems_for(self, difference: float) -> int | None:
        """Problems needed to show `difference` four times of five with as many seeds; None if no number of problems is enough."""
        left = (difference / self._errors_needed) ** 2 - SEED_SPREAD**2 / self.seeds
        return None if left <= 0 else math.ceil(self._problem_variance / left)

    @property
    def _problem_variance(self) -> float:
        return PROBLEM_SPREAD**2 + _SAMPLING / self.samples

    @property
    def _errors_needed(self) -> float:
        normal = NormalDist()
        return normal.inv_cdf(1 - (1 - _CONFIDENCE) / (2 * self.comparisons)) + normal.inv_cdf(_POWER)


def precision(cells: list[Cell]) -> Precision | None:
    """Of a sweep's settings compared with one reference; None where there is no RL or nothing to compare."""
    settings = {str({path: value for path, value in cell.coordinates.items() if path != "seed"}) for cell in cells}
    if len(settings) < 2 or any(cell.recipe.rl is None for cell in cells):
        return None
    protocol = cells[0].recipe.evaluate
    seeds = len({cell.recipe.seed for cell in cells})
    return Precision(protocol.problems, protocol.samples, seeds, len(settings) - 1)


def in_words(found: Precision, aim: float) -> str:
    """`found` as a sentence, with what it would take to show a difference of `aim`."""
    seeds, problems = found.seeds_for(aim), found.problems_for(aim)
    ways = [f"{seeds} seeds" if seeds else "", f"{problems:,} problems" if problems else ""]
    needed = " or ".join(way for way in ways if way) or "more of both seeds and problems"
    size = f"{found.problems} problems x {found.samples} samples x {found.seeds} seed{'s' if found.seeds > 1 else ''}"
    said = (
        f"{size}: a difference of gains in pass@1 has a standard error of about {found.error:.3f}, so four sweeps of five would "
        f"show one of {found.detectable:.2f} ({found.comparisons} compared at once)"
    )
    return said if found.detectable <= aim else f"{said}; to show {aim:g} takes {needed}"
