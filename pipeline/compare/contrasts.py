"""Settings against their references, paired per problem and seed: where RL ends, what it gained, and where it ends given the base.

The paper claims that RL ends higher from a precise prior, so levels come first. All are after RL minus a multiple of before: 0
for the level, 1 for the gain, and for the level given the base the slope of after on before over seeds (analysis of covariance).
`best` are levels of settings at their own best temperature or learning rate (`pipeline.compare.best`), `declared` those that the sweep
asks for, whatever their axes' references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.compare.intervals import Floats, JointInterval, Sample, Spread, components, joint_intervals
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.pooling import pooled_spread, residuals
from pipeline.compare.settings import DECLARED, Setting, axis_between, declared_pairs, pairs, planned_settings
from pipeline.experiment.compose import Cell

Kind = Literal["level", "gain", "adjusted", "best", "declared"]
Pair = tuple[MeasuredSetting, MeasuredSetting]
"""A setting and its reference."""
_LEAST_RELIABILITY = 0.8
"""A slope is fitted only if at least this share of the bases' variance over seeds is not error of their means."""
_FEWEST_FOR_SLOPE = 4
"""Fewest residual degrees of freedom for which a slope over seeds is fitted."""


@dataclass(frozen=True)
class Difference:
    """How much higher one value of an axis is than the axis's reference, all else equal."""

    kind: Kind
    axis: str
    setting: str
    reference: str
    quantity: Quantity
    family: int
    """How many differences of this kind along this axis have intervals that hold jointly."""
    seeds: int
    """How many seeds both have, which are paired."""
    interval: JointInterval

    def as_dict(self) -> dict[str, Any]:
        named = {
            "axis": self.axis,
            "setting": self.setting,
            "reference": self.reference,
            "metric": self.quantity.name,
            "k": self.quantity.k,
        }
        named |= {"set": self.quantity.of_set} if self.quantity.of_set else {}
        return named | {"family": self.family, "seeds": self.seeds} | self.interval.as_dict() | {"shown": self.interval.shown}


def differences(
    kind: Kind, compared: Sequence[MeasuredSetting], cells: Sequence[Cell], shown: Sequence[Quantity], *, pooled: bool = True
) -> list[Difference]:
    """Along each axis of the sweep, one family of differences whose intervals hold jointly.

    Only settings measured on the same problems with the same seeds are compared; seeds that either lacks are left out. `pooled` as in
    `compare_pairs`.
    """
    found = []
    for axis, along in pairs(planned_settings(cells)).items():
        found += compare_pairs(kind, axis, measured_pairs(along, compared), shown, pooled=pooled)
    return found


def declared_differences(
    compared: Sequence[MeasuredSetting], cells: Sequence[Cell], contrasts: Sequence[tuple[str, str]], *, pooled: bool = True
) -> list[Difference]:
    """Levels of pass@1 in the contrasts that the sweep declares, a family by themselves; `pooled` as in `compare_pairs`.

    How much seeds differ is estimated over all settings along the axis that a contrast is along. Settings that differ in several have
    the whole sweep. Raises `PriorlabError` if a contrast names no setting of the sweep.
    """
    planned = planned_settings(cells)
    declared = measured_pairs(declared_pairs(planned, contrasts), compared)
    along = {axis: measured_pairs(on_axis, compared) for axis, on_axis in pairs(planned).items()}
    every = [pair for on_axis in along.values() for pair in on_axis]
    by_axis: dict[str | None, list[Pair]] = {}
    for setting, reference in declared:
        by_axis.setdefault(axis_between(setting.planned, reference.planned), []).append((setting, reference))
    found = []
    for axis, of_axis in by_axis.items():
        over = [*of_axis, *along.get(axis or "", every)] if pooled else None
        found += _sampled("declared", of_axis, [Quantity("pass@k", 1)], over)
    return _jointly("declared", DECLARED, declared, found)


def measured_pairs(planned: Sequence[tuple[Setting, Setting]], compared: Sequence[MeasuredSetting]) -> list[Pair]:
    """The pairs both of which have been measured."""
    by_name = {setting.name: setting for setting in compared}
    return [(by_name[one.name], by_name[other.name]) for one, other in planned if {one.name, other.name} <= by_name.keys()]


def compare_pairs(kind: Kind, axis: str, along: Sequence[Pair], shown: Sequence[Quantity], *, pooled: bool = True) -> list[Difference]:
    """Each setting minus its reference, by each quantity, where the two can be paired; the intervals hold jointly.

    `pooled`: how much seeds differ is estimated over all settings on the same problems, unless they differ in it.
    """
    return _jointly(kind, axis, along, _sampled(kind, along, shown, along if pooled else None))


def _sampled(
    kind: Kind, along: Sequence[Pair], shown: Sequence[Quantity], over: Sequence[Pair] | None
) -> list[tuple[Pair, Quantity, Sample]]:
    """The values of each pair that can be compared; `over`: the pairs over whose settings the spread over seeds is estimated."""
    found = []
    for quantity in shown:
        here = _on_the_same_problems(along, quantity)
        wider = {} if over is None else here if over is along else _on_the_same_problems(over, quantity)
        for problems, pairs_ in here.items():
            found += [(pair, quantity, sample) for pair, sample in _samples(kind, pairs_, quantity, wider.get(problems))]
    return found


def _jointly(kind: Kind, axis: str, along: Sequence[Pair], found: Sequence[tuple[Pair, Quantity, Sample]]) -> list[Difference]:
    """Differences in the order of `along`."""
    order = {(id(setting), id(reference)): at for at, (setting, reference) in enumerate(along)}
    found = sorted(found, key=lambda one: order[id(one[0][0]), id(one[0][1])])
    intervals = joint_intervals([sample for *_, sample in found])
    return [
        Difference(kind, axis, setting.name, reference.name, quantity, len(found), len(sample.values), interval)
        for ((setting, reference), quantity, sample), interval in zip(found, intervals, strict=True)
    ]


def paired_levels(setting: MeasuredSetting, reference: MeasuredSetting, quantity: Quantity) -> Floats:
    """`setting` minus `reference` after RL, shaped (seeds, problems), over the seeds that both have."""
    seeds = _seeds(setting, reference)
    return setting.of_seeds(quantity, seeds) - reference.of_seeds(quantity, seeds)


def level_spread(along: Sequence[Pair], quantity: Quantity) -> Spread | None:
    """The pooled mean square over seeds of differences after RL; None where there is nothing to pool, or settings differ in it."""
    return _pooled(along, quantity, 0)


def _pooled(over: Sequence[Pair], quantity: Quantity, less: float, slope: _Slope | None = None) -> Spread | None:
    """`level_spread` of what is left of levels after `less` x the values before RL; `slope`: where that was fitted."""
    groups = _linked(over)
    spread = pooled_spread(_means(groups, quantity, less), len(_problems(over[0][0], quantity)))
    if spread is None:
        return None
    square, freedom = spread.difference.square, spread.difference.freedom / _repeated(groups)
    if slope is not None:  # fitted to these residuals, which cost it one degree of freedom
        left = slope.freedom / (slope.freedom + 1)
        square, freedom = square / left, freedom * left
    return Spread(square, freedom)


def _repeated(groups: Sequence[Sequence[MeasuredSetting]]) -> int:
    """How many groups look at the same pre-trained models, at most.

    Where each of four learning rates has its own comparison of priors, a model that was lucky in pre-training is lucky in all four:
    they tell of luck together what one does, if all luck is of pre-training. That is assumed, since part of it is.
    """
    trained = [{one.plan.chain["pretrain"].fingerprint for setting in group for one in setting.before} for group in groups]
    counts = Counter(fingerprint for group in trained for fingerprint in group)
    return max(counts.values(), default=1)


def _on_the_same_problems(along: Sequence[Pair], quantity: Quantity) -> dict[tuple[str, ...], list[Pair]]:
    """The pairs that have the quantity and a seed in common, by their problems."""
    found: dict[tuple[str, ...], list[Pair]] = {}
    for setting, reference in along:
        measured = all(one.values(quantity) is not None for one in (setting, reference))
        if measured and _seeds(setting, reference):
            found.setdefault(_problems(setting, quantity), []).append((setting, reference))
    return found


def _problems(setting: MeasuredSetting, quantity: Quantity) -> tuple[str, ...]:
    """Those that the quantity is a mean over."""
    return tuple(setting.before[0].on(quantity.of_set).problems)


def _sample(
    values: Floats, setting: MeasuredSetting, quantity: Quantity, seeds: tuple[Spread, ...] | None, fitted: Spread | None = None
) -> Sample:
    return Sample(values, seeds, fitted, sets=setting.before[0].on(quantity.of_set).sizes, of=quantity.of_set)


def _seeds(setting: MeasuredSetting, reference: MeasuredSetting) -> list[int]:
    """Those that both have finished, on the same problems."""
    if not (setting.finished and reference.finished) or setting.before[0].problems != reference.before[0].problems:
        return []
    return [seed for seed in setting.seeds if seed in reference.seeds]


def _samples(kind: Kind, along: Sequence[Pair], quantity: Quantity, over: Sequence[Pair] | None) -> list[tuple[Pair, Sample]]:
    """`over`: the pairs over whose settings the spread is pooled; None to estimate each difference's from its own values."""
    fitted = _fitted(along, quantity) if kind == "adjusted" else None
    if kind == "adjusted" and fitted is None:
        return []
    less = 1.0 if kind == "gain" else 0.0 if fitted is None else fitted.slope
    spread = _pooled(over, quantity, less, fitted) if over else None
    found = []
    for setting, reference in along:
        seeds = _seeds(setting, reference)
        values = setting.of_seeds(quantity, seeds, less=less) - reference.of_seeds(quantity, seeds, less=less)
        error = None if fitted is None else fitted.error(setting, reference, quantity)
        seed_spread = None if spread is None else (spread,)
        found.append(((setting, reference), _sample(values, setting, quantity, seed_spread, error)))
    return found


def _means(groups: Sequence[Sequence[MeasuredSetting]], quantity: Quantity, less: float) -> Floats:
    """Of each setting and seed, shaped (settings, seeds); NaN where a run is missing.

    Each group of linked settings has its own columns, since what its seeds share cancels only there.
    """
    rows = [(group, setting) for group, settings in enumerate(groups) for setting in settings]
    columns = sorted({(group, seed) for group, setting in rows for seed in setting.seeds})
    place = {column: at for at, column in enumerate(columns)}
    means = np.full((len(rows), len(columns)), np.nan)
    for row, (group, setting) in enumerate(rows):
        means[row, [place[group, seed] for seed in setting.seeds]] = setting.of_seeds(quantity, setting.seeds, less=less).mean(axis=1)
    return means


def _linked(along: Sequence[Pair]) -> list[list[MeasuredSetting]]:
    """The settings, in groups that no pair connects."""
    group_of: dict[int, dict[int, MeasuredSetting]] = {}  # by identity: settings of two sweeps may have the same name
    for pair in along:
        first, second = (group_of.setdefault(id(one), {id(one): one}) for one in pair)
        if first is not second:
            large, small = (first, second) if len(first) >= len(second) else (second, first)
            large |= small
            group_of |= dict.fromkeys(small, large)
    return [list(group.values()) for group in {id(group): group for group in group_of.values()}.values()]


@dataclass(frozen=True)
class _Slope:
    """The slope of after RL on before, fitted over the seeds of all settings."""

    slope: float
    variance: float
    freedom: int

    def error(self, setting: MeasuredSetting, reference: MeasuredSetting, quantity: Quantity) -> Spread:
        """What the slope's error adds to the variance of a difference; it grows with the distance between the two starts."""
        apart = float(setting.base_values(quantity).mean() - reference.base_values(quantity).mean())
        return Spread(apart**2 * self.variance, self.freedom)


def _fitted(along: Sequence[Pair], quantity: Quantity) -> _Slope | None:
    """None with too few settings and seeds, or where bases vary over seeds hardly more than the error of a mean over problems.

    That error would flatten the slope, so that part of the difference between bases stayed in the adjusted difference. Where a slope
    is fitted, the little error that remains is divided out (the reliability of Fuller, 1987).
    """
    ends, gained = (_means(_linked(along), quantity, less) for less in (0, 1))
    (after, freedom), (before, _) = residuals(ends), residuals(ends - gained)
    if freedom - 1 < _FEWEST_FOR_SLOPE:
        return None
    settings = {id(one): one for pair in along for one in pair}.values()
    bases = [one.base_values(quantity) for one in settings if len(one.seeds) > 1]
    error = float(np.mean([components(base).rest / base.shape[1] for base in bases]))
    spread = float((before**2).sum())
    reliability = 1 - error * freedom / spread if spread > 0 else 0.0
    if reliability < _LEAST_RELIABILITY:
        return None
    slope = float((before * after).sum()) / spread / reliability
    left = float(((after - slope * before) ** 2).sum()) / (freedom - 1)
    return _Slope(slope, left / spread / reliability**2, freedom - 1)


def gains(
    compared: Sequence[MeasuredSetting], shown: Sequence[Quantity], *, pooled: bool = True
) -> dict[tuple[str, Quantity], JointInterval]:
    """What RL gained in each finished setting, by its name; one family of intervals over settings and quantities.

    `pooled` as in `compare_pairs`.
    """
    found: list[tuple[str, Quantity, Sample]] = []
    for quantity in shown:
        groups: dict[tuple[str, ...], list[MeasuredSetting]] = {}
        for setting in compared:
            if setting.values(quantity) is not None:
                groups.setdefault(_problems(setting, quantity), []).append(setting)
        for problems, group in groups.items():
            spread = pooled_spread(_means([group], quantity, 1), len(problems)) if pooled else None
            parts = None if spread is None else (spread.shared, spread.own)
            found += [(one.name, quantity, _sample(one.of_seeds(quantity, one.seeds, less=1), one, quantity, parts)) for one in group]
    intervals = joint_intervals([sample for *_, sample in found])
    return {(name, quantity): interval for (name, quantity, _), interval in zip(found, intervals, strict=True)}
