"""Settings as measured so far: what RL gained in each, and the differences between them along each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Contrast, Floats, Interval, bayesian_gain, contrasts, mean_interval, perplexity
from pipeline.compare.settings import Setting, pairs, planned_settings
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell


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
        return self.planned.cells[0].recipe.task.chance

    @property
    def seeds(self) -> list[int]:
        return [evaluation.plan.cell.recipe.seed for evaluation in self.before]

    @property
    def finished(self) -> bool:
        """Whether any cell was measured before and after RL."""
        return bool(self.after)

    def before_at(self, metric: str, k: int | None = None) -> Interval:
        return _pooled(self.before, metric, k)

    def after_at(self, metric: str, k: int | None = None) -> Interval | None:
        return _pooled(self.after, metric, k) if self.after else None

    def gains(self, metric: str, k: int) -> Floats | None:
        """After minus before, shaped (seeds, problems), paired per problem and cell; None while no cell has both.

        Raises `PriorlabError` if the problems before and after differ.
        """
        differences = []
        for before, after in zip(self.before, self.after, strict=False):  # before RL alone, there is no after
            if before.problems != after.problems:
                raise PriorlabError(f"cell {before.plan.cell.id} was measured on different problems before and after RL")
            differences.append(after.values(metric, k) - before.values(metric, k))
        return np.stack(differences) if differences else None

    def gain_at(self, metric: str, k: int) -> Interval | None:
        gains = self.gains(metric, k)
        return None if gains is None else mean_interval(gains)

    def bayesian_gain(self) -> Interval | None:
        """Gain in pass@1 with a credible interval for exactly these problems; None while no cell has both measurements."""
        if not self.finished:
            return None
        n = self.before[0].n
        before, after = (np.stack([np.round(e.values("avg@n", e.n) * e.n) for e in side]) for side in (self.before, self.after))
        return bayesian_gain(before, after, n)


def _pooled(evaluations: list[Evaluation], metric: str, k: int | None) -> Interval:
    if metric == "perplexity":
        return perplexity(np.stack([e.values("cross_entropy") for e in evaluations]))
    return mean_interval(np.stack([e.values(metric, k) for e in evaluations]))


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


@dataclass(frozen=True)
class Difference:
    """How much more one value of an axis gains than the axis's reference, all else equal."""

    axis: str
    setting: str
    reference: str
    k: int
    family: int
    """How many differences, along this axis and over all shown k, have intervals that hold jointly."""
    seeds: int
    """How many seeds both have, which are paired."""
    gain: Contrast

    def as_dict(self) -> dict[str, Any]:
        named = {"axis": self.axis, "arm": self.setting, "reference": self.reference, "k": self.k}
        return named | {"family": self.family, "seeds": self.seeds} | self.gain.as_dict() | {"shown": self.gain.shown}


def differences(compared: Sequence[MeasuredSetting], cells: Sequence[Cell], ks: Sequence[int]) -> list[Difference]:
    """Differences of gains in pass@k, paired per problem and seed, along each axis; one family of intervals per axis.

    Only settings measured on the same problems with the same seeds are compared; seeds that either lacks are left out.
    """
    by_name = {setting.name: setting for setting in compared}
    found = []
    for axis, along in pairs(planned_settings(cells)).items():
        measured = [(by_name[one.name], by_name[other.name]) for one, other in along if {one.name, other.name} <= by_name.keys()]
        found += compare_pairs(axis, measured, ks)
    return found


def compare_pairs(axis: str, along: Sequence[tuple[MeasuredSetting, MeasuredSetting]], ks: Sequence[int]) -> list[Difference]:
    """Each setting's gains minus its reference's, at each k, where the two can be paired; the intervals hold jointly."""
    paired = [
        (setting.name, reference.name, k, values)
        for setting, reference in along
        for k in ks
        if (values := _paired_difference(setting, reference, k)) is not None
    ]
    intervals = contrasts([values for *_, values in paired])
    return [
        Difference(axis, setting, reference, k, len(paired), len(values), gain)
        for (setting, reference, k, values), gain in zip(paired, intervals, strict=True)
    ]


def _paired_difference(setting: MeasuredSetting, reference: MeasuredSetting, k: int) -> Floats | None:
    """`setting`'s gain minus `reference`'s, shaped (seeds, problems), over the seeds that both have; None if nothing pairs."""
    ours, theirs = setting.gains("pass@k", k), reference.gains("pass@k", k)
    if ours is None or theirs is None or setting.before[0].problems != reference.before[0].problems:
        return None
    shared = [seed for seed in setting.seeds if seed in reference.seeds]
    if not shared:
        return None
    return ours[[setting.seeds.index(seed) for seed in shared]] - theirs[[reference.seeds.index(seed) for seed in shared]]
