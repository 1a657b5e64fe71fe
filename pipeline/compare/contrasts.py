"""Settings against their references, paired per problem and seed: where RL ends, what it gained, and where it ends given its start.

The paper claims that RL ends higher from a precise prior, so levels come first. All are after RL minus a multiple of before: 0
for the level, 1 for the gain, and for the level given the base the slope of after on before over seeds (analysis of covariance).
`best` are levels of settings at their own best temperature or learning rate (`pipeline.compare.best`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.compare.intervals import Floats, JointInterval, Sample, Spread, joint_intervals
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.pooling import pooled_spread, residuals
from pipeline.compare.settings import pairs, planned_settings
from pipeline.experiment.compose import Cell

Kind = Literal["level", "gain", "adjusted", "best"]
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
            "arm": self.setting,
            "reference": self.reference,
            "metric": self.quantity.name,
            "k": self.quantity.k,
        }
        return named | {"family": self.family, "seeds": self.seeds} | self.interval.as_dict() | {"shown": self.interval.shown}


def differences(
    kind: Kind, compared: Sequence[MeasuredSetting], cells: Sequence[Cell], shown: Sequence[Quantity], *, pooled: bool = True
) -> list[Difference]:
    """Along each axis of the sweep, one family of differences whose intervals hold jointly.

    Only settings measured on the same problems with the same seeds are compared; seeds that either lacks are left out. `pooled` as in
    `compare_pairs`.
    """
    by_name = {setting.name: setting for setting in compared}
    found = []
    for axis, along in pairs(planned_settings(cells)).items():
        measured = [(by_name[one.name], by_name[other.name]) for one, other in along if {one.name, other.name} <= by_name.keys()]
        found += compare_pairs(kind, axis, measured, shown, pooled=pooled)
    return found


def compare_pairs(
    kind: Kind, axis: str, along: Sequence[tuple[MeasuredSetting, MeasuredSetting]], shown: Sequence[Quantity], *, pooled: bool = True
) -> list[Difference]:
    """Each setting minus its reference, by each quantity, where the two can be paired; the intervals hold jointly.

    `pooled`: how much seeds differ is estimated over all settings with one reference, unless they differ in it.
    """
    found: list[tuple[MeasuredSetting, MeasuredSetting, Quantity, Sample]] = []
    references = {reference.name: reference for _, reference in along}
    for name, reference in references.items():
        settings = [setting for setting, other in along if other.name == name and _seeds(setting, reference)]
        for quantity in shown:
            found += [
                (setting, reference, quantity, sample) for setting, sample in _samples(kind, settings, reference, quantity, pooled)
            ]
    order = {(setting.name, reference.name): at for at, (setting, reference) in enumerate(along)}
    found.sort(key=lambda one: order[one[0].name, one[1].name])
    intervals = joint_intervals([sample for *_, sample in found])
    return [
        Difference(kind, axis, setting.name, reference.name, quantity, len(found), len(sample.values), interval)
        for (setting, reference, quantity, sample), interval in zip(found, intervals, strict=True)
    ]


def paired_levels(setting: MeasuredSetting, reference: MeasuredSetting, quantity: Quantity) -> Floats:
    """`setting` minus `reference` after RL, shaped (seeds, problems), over the seeds that both have."""
    seeds = _seeds(setting, reference)
    return _values(setting, quantity, 0, seeds) - _values(reference, quantity, 0, seeds)


def _seeds(setting: MeasuredSetting, reference: MeasuredSetting) -> list[int]:
    """Those that both have finished, on the same problems."""
    if not (setting.finished and reference.finished) or setting.before[0].problems != reference.before[0].problems:
        return []
    return [seed for seed in setting.seeds if seed in reference.seeds]


def _samples(
    kind: Kind, settings: Sequence[MeasuredSetting], reference: MeasuredSetting, quantity: Quantity, pooled: bool
) -> list[tuple[MeasuredSetting, Sample]]:
    settings = [setting for setting in settings if setting.values(quantity) is not None]
    if not settings or reference.values(quantity) is None:
        return []
    group = [*settings, reference]
    fitted = _fitted(group, quantity) if kind == "adjusted" else None
    if kind == "adjusted" and fitted is None:
        return []
    less = 1.0 if kind == "gain" else 0.0 if fitted is None else fitted.slope
    spread = pooled_spread(_means(group, quantity, less), len(reference.before[0].problems)) if pooled else None
    found = []
    for setting in settings:
        seeds = _seeds(setting, reference)
        values = _values(setting, quantity, less, seeds) - _values(reference, quantity, less, seeds)
        error = None if fitted is None else fitted.error(setting, reference, quantity)
        found.append((setting, Sample(values, None if spread is None else (spread.difference,), error)))
    return found


def _values(setting: MeasuredSetting, quantity: Quantity, less: float, seeds: Sequence[int]) -> Floats:
    """After RL minus `less` x before, shaped (seeds, problems)."""
    values = setting.values(quantity, less=less)
    assert values is not None
    return values[[setting.seeds.index(seed) for seed in seeds]]


def _means(group: Sequence[MeasuredSetting], quantity: Quantity, less: float) -> Floats:
    """Of each setting and seed, shaped (settings, seeds); NaN where a run is missing."""
    seeds = sorted({seed for setting in group for seed in setting.seeds})
    means = np.full((len(group), len(seeds)), np.nan)
    for row, setting in enumerate(group):
        means[row, [seeds.index(seed) for seed in setting.seeds]] = _values(setting, quantity, less, setting.seeds).mean(axis=1)
    return means


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


def _fitted(group: Sequence[MeasuredSetting], quantity: Quantity) -> _Slope | None:
    """None with too few settings and seeds, or where bases do not vary over seeds."""
    ends = _means(group, quantity, 0)
    (after, freedom), (before, _) = residuals(ends), residuals(ends - _means(group, quantity, 1))
    spread = float((before**2).sum())
    if freedom - 1 < _FEWEST_FOR_SLOPE or spread == 0:
        return None
    slope = float((before * after).sum()) / spread
    return _Slope(slope, float(((after - slope * before) ** 2).sum()) / (freedom - 1) / spread, freedom - 1)


def gains(
    compared: Sequence[MeasuredSetting], shown: Sequence[Quantity], *, pooled: bool = True
) -> dict[tuple[str, Quantity], JointInterval]:
    """What RL gained in each finished setting, by its name; one family of intervals over settings and quantities.

    `pooled` as in `compare_pairs`, over all settings.
    """
    found: list[tuple[str, Quantity, Sample]] = []
    for quantity in shown:
        values = [(setting, gained) for setting in compared if (gained := setting.values(quantity, less=1)) is not None]
        group, counts = [setting for setting, _ in values], {gained.shape[1] for _, gained in values}
        spread = pooled_spread(_means(group, quantity, 1), counts.pop()) if pooled and len(counts) == 1 else None
        parts = None if spread is None else (spread.shared, spread.own)
        found += [(setting.name, quantity, Sample(gained, parts)) for setting, gained in values]
    intervals = joint_intervals([sample for *_, sample in found])
    return {(name, quantity): interval for (name, quantity, _), interval in zip(found, intervals, strict=True)}
