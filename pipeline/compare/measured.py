"""Settings as measured so far: before RL, after it, and what RL gained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Floats, Interval, bayesian_gain, mean_interval, perplexity
from pipeline.compare.settings import Setting, planned_settings
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell


@dataclass(frozen=True)
class Quantity:
    """What is compared: a metric of the evaluations, at one k, on one evaluation set or as the mean over all."""

    metric: str
    k: int
    of_set: str = ""
    """"": the mean over all sets, or the only one."""

    @property
    def name(self) -> str:
        """pass@8, cons@64, greedy."""
        stem, at, _ = self.metric.partition("@")
        return f"{stem}@{self.k}" if at else stem

    def of(self, evaluation: Evaluation) -> Floats:
        """One value per problem."""
        return evaluation.on(self.of_set).values(self.metric, self.k)

    def in_(self, evaluation: Evaluation) -> bool:
        if self.of_set and self.of_set not in evaluation.sets:
            return False
        return self.k in evaluation.on(self.of_set).metrics.get(self.metric, ())


@dataclass(frozen=True)
class MeasuredSetting:
    """A setting with the evaluations of its cells that were measured both before and after RL.

    While there are none, `after` is empty and `before` has all cells measured before RL.
    """

    planned: Setting
    before: list[Evaluation]
    after: list[Evaluation]
    """Of the same cells as `before`, in the same order."""

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def coordinates(self) -> dict[str, Any]:
        return self.planned.coordinates

    @property
    def prior(self) -> str:
        return self.planned.cells[0].recipe.prior.name

    @property
    def chance(self) -> float:
        """Pass@1 of guessing."""
        return self.planned.cells[0].recipe.chance

    @property
    def seeds(self) -> list[int]:
        return [evaluation.plan.cell.recipe.seed for evaluation in self.before]

    @property
    def finished(self) -> bool:
        """Whether any cell was measured before and after RL."""
        return bool(self.after)

    def before_at(self, metric: str, k: int | None = None, of_set: str = "") -> Interval:
        return _pooled([one.on(of_set) for one in self.before], metric, k)

    def after_at(self, metric: str, k: int | None = None, of_set: str = "") -> Interval | None:
        return _pooled([one.on(of_set) for one in self.after], metric, k) if self.after else None

    def values(self, quantity: Quantity, *, less: float = 0.0) -> Floats | None:
        """After RL minus `less` x before, shaped (seeds, problems); None while no cell has both, or where they lack the metric.

        Raises `PriorlabError` if the problems before and after differ.
        """
        if not self.finished or not all(quantity.in_(e) for e in [*self.before, *self.after]):
            return None
        after = np.stack([quantity.of(e) for e in self.after])
        return after - less * self.base_values(quantity) if less else after

    def of_seeds(self, quantity: Quantity, seeds: Sequence[int], *, less: float = 0.0) -> Floats:
        """`values` of these seeds, where there are any."""
        values = self.values(quantity, less=less)
        assert values is not None
        return values[[self.seeds.index(seed) for seed in seeds]]

    def base_values(self, quantity: Quantity) -> Floats:
        """Before RL, shaped (seeds, problems). Raises `PriorlabError` if the problems after RL differ."""
        for before, after in zip(self.before, self.after, strict=True):
            if before.problems != after.problems:
                raise PriorlabError(f"cell {before.plan.cell.id} was measured on different problems before and after RL")
        return np.stack([quantity.of(e) for e in self.before])

    def bayesian_gain(self) -> Interval | None:
        """Gain in pass@1 with a credible interval for exactly these problems; None while no cell has both measurements."""
        if not self.finished:
            return None
        names = list(self.before[0].sets) or [""]
        before, after = (
            [np.stack([np.round(e.on(name).values("avg@n", e.n) * e.n) for e in side]) for name in names]
            for side in (self.before, self.after)
        )
        return bayesian_gain(before, after, self.before[0].n)


def _pooled(evaluations: list[Evaluation], metric: str, k: int | None) -> Interval:
    if metric == "perplexity":
        return perplexity(np.stack([e.values("cross_entropy") for e in evaluations]))
    return mean_interval(np.stack([e.values(metric, k) for e in evaluations]), () if k is None else evaluations[0].sizes)


def measured_settings(cells: Sequence[Cell], evaluations: Sequence[Evaluation]) -> list[MeasuredSetting]:
    """Settings with a cell evaluated before RL, in the order of the sweep's cells; evaluations that are not finite are left out."""
    sound = [e for e in evaluations if not e.not_finite]
    before = {e.plan.cell.id: e for e in sound if e.after == e.plan.base and not e.milestone}
    after = {e.plan.cell.id: e for e in sound if e.after == "rl"}
    found = []
    for setting in planned_settings(cells):
        begun = [cell.id for cell in setting.cells if cell.id in before]
        both = [cell for cell in begun if cell in after]
        if begun:
            found.append(MeasuredSetting(setting, [before[cell] for cell in both or begun], [after[cell] for cell in both]))
    return found


def shown_ks(evaluations: Sequence[Evaluation]) -> list[int]:
    """The table's k: those of 1, 8 and the number of samples that every evaluation has."""
    common = set.intersection(*(set(e.metrics["pass@k"]) for e in evaluations)) if evaluations else set()
    return sorted(common & {1, 8, max(common)}) if common else []


def quantities(evaluations: Sequence[Evaluation], ks: Sequence[int]) -> list[Quantity]:
    """What settings are compared by: pass@k at `ks`, greedy decoding, and the majority vote of all samples."""
    votes = [Quantity("greedy", 1), *(Quantity("cons@n", n) for n in dict.fromkeys(e.n for e in evaluations))]
    return [*(Quantity("pass@k", k) for k in ks), *(vote for vote in votes if all(vote.in_(e) for e in evaluations))]


def on_each_set(shown: Sequence[Quantity], evaluations: Sequence[Evaluation]) -> list[Quantity]:
    """The same quantities on each evaluation set that all evaluations have, set by set; none with a single set."""
    names = [name for name in evaluations[0].sets if all(name in e.sets for e in evaluations)] if evaluations else []
    return [replace(quantity, of_set=name) for name in names for quantity in shown]


def none_of(correct: Floats, samples: int, size: int) -> Floats:
    """The chance that none of `size` samples drawn without replacement is among the `correct` ones; like `correct` in shape."""
    draws = np.arange(size)
    return np.prod(np.clip((samples - correct)[..., None] - draws, 0, None) / (samples - draws), axis=-1)
