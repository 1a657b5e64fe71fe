"""Where RL starts: what it gains against tokens of pre-training, and settings compared where their bases are alike.

At equal tokens, one prior may have come further than another. So where RL ends is also compared at the same pass@1 of the base, and at
the same entropy: the reference is interpolated linearly between the two of its starts that enclose the setting's base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from pipeline.compare.intervals import Floats, JointInterval, Sample, joint_intervals, mean_interval
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.settings import Setting, pairs

START = "rl.start"
Matched = Literal["pass@1", "entropy"]
_PASS_1 = Quantity("pass@k", 1)


@dataclass(frozen=True)
class Curve:
    """A setting without its start, and what was measured from each start, in order of tokens."""

    planned: Setting
    starts: list[MeasuredSetting]

    @property
    def name(self) -> str:
        return self.planned.name


@dataclass(frozen=True)
class AtEqualBase:
    """How much higher a setting ends than its reference would from a base that has come as far."""

    axis: str
    setting: str
    start: float
    reference: str
    matched: Matched
    at: float
    """What both bases have: pass@1, or entropy in nats."""
    reference_tokens: float
    """Of pre-training, where the reference's base has it."""
    quantity: Quantity
    family: int
    """How many of these along the axis, matched alike, have intervals that hold jointly."""
    seeds: int
    interval: JointInterval

    def as_dict(self) -> dict[str, Any]:
        named = {"axis": self.axis, "setting": self.setting, "start": self.start, "reference": self.reference, "matched": self.matched}
        told = {"at": self.at, "reference_tokens": self.reference_tokens, "metric": self.quantity.name, "k": self.quantity.k}
        return named | told | {"family": self.family, "seeds": self.seeds} | self.interval.as_dict() | {"shown": self.interval.shown}


def curves(compared: Sequence[MeasuredSetting]) -> list[Curve]:
    """The finished settings by all but their start; none without an axis of starts, or with a single one."""
    found: dict[str, Curve] = {}
    for setting in compared:
        if START not in setting.coordinates or not setting.finished:
            continue
        planned = setting.planned.without(START)
        found.setdefault(planned.name, Curve(planned, [])).starts.append(setting)
    several = [curve for curve in found.values() if len(curve.starts) > 1]
    return [replace(curve, starts=sorted(curve.starts, key=tokens)) for curve in several]


def start_of(setting: MeasuredSetting) -> float:
    return float(setting.coordinates[START])


def tokens(setting: MeasuredSetting) -> int:
    """Pre-training tokens that the base was trained on."""
    return setting.before[0].tokens


def at_equal_bases(found: Sequence[Curve], matched: Matched, shown: Sequence[Quantity]) -> list[AtEqualBase]:
    """Each start of each setting against its reference, where the reference has starts on both sides of it.

    Two starts of the reference are left out if their bases are not shown to differ, given the error over problems (or blocks): they
    cannot tell what lies between them. Where the bases are only just shown to differ, about 8% of 95% intervals from one seed miss.
    """
    by_name = {curve.name: curve for curve in found}
    every: list[AtEqualBase] = []
    for axis, along in pairs([curve.planned for curve in found]).items():
        kept: list[tuple[AtEqualBase, Sample]] = []
        for one, other in along:
            for setting in by_name[one.name].starts:
                kept += _against(axis, setting, one.name, by_name[other.name], matched, shown)
        intervals = joint_intervals([sample for _, sample in kept])
        every += [replace(one, family=len(kept), interval=interval) for (one, _), interval in zip(kept, intervals, strict=True)]
    return every


_NOT_YET = JointInterval(np.nan, np.nan, np.nan, np.nan, np.nan)


def _against(
    axis: str, setting: MeasuredSetting, name: str, reference: Curve, matched: Matched, shown: Sequence[Quantity]
) -> list[tuple[AtEqualBase, Sample]]:
    for early, late in pairwise(reference.starts):
        three = (setting, early, late)
        seeds = [seed for seed in setting.seeds if all(seed in one.seeds for one in three)]
        if not seeds or any(one.before[0].problems != setting.before[0].problems for one in three):
            continue
        bases = [_bases(one, matched, seeds) for one in three]
        own, first, last = (float(base.mean()) for base in bases)
        sizes = setting.before[0].sizes
        apart = mean_interval((bases[2] - bases[1]).mean(axis=0), sizes if matched == "pass@1" else ())
        if not apart.shown or not min(first, last) <= own <= max(first, last):
            continue
        share = (own - first) / (last - first)
        at = tokens(early) + share * (tokens(late) - tokens(early))
        told = AtEqualBase(axis, name, start_of(setting), reference.name, matched, own, at, _PASS_1, 0, len(seeds), _NOT_YET)
        found = []
        for quantity in shown:
            if all(one.values(quantity) is not None for one in three):
                ends = [one.of_seeds(quantity, seeds) for one in three]
                found.append((replace(told, quantity=quantity), Sample(_difference(ends, bases, matched, share), sets=sizes)))
        return found
    return []


def _bases(setting: MeasuredSetting, matched: Matched, seeds: Sequence[int]) -> Floats:
    """What is matched, of each seed's base: shaped (seeds, problems), or (seeds, blocks) for entropy."""
    bases = [setting.before[setting.seeds.index(seed)] for seed in seeds]
    return np.stack([_PASS_1.of(one) if matched == "pass@1" else one.values("entropy") for one in bases])


def _difference(ends: Sequence[Floats], bases: Sequence[Floats], matched: Matched, share: float) -> Floats:
    """The setting's end minus the reference's `share` of the way from its early start to its late one, (seeds, problems).

    Pass@1 of the bases is measured on the same problems, so where they match errs, too: by the delta method, the slope of the
    reference's end times what is left of the bases' difference on each problem, which is 0 on average. Entropy is taken as known.
    """

    def mixed(of: Sequence[Floats]) -> Floats:
        own, early, late = of
        return own - (1 - share) * early - share * late

    if matched == "entropy":
        return mixed(ends)
    slope = (ends[2].mean() - ends[1].mean()) / (bases[2].mean() - bases[1].mean())
    return mixed(ends) - slope * mixed(bases)
