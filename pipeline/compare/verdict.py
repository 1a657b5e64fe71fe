"""What a comparison shows, in sentences that follow from its intervals and the configuration alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence, Set

from pipeline.compare.contrasts import Difference, Kind
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.format import p_value, share, signed, with_interval
from pipeline.compare.intervals import JointInterval
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.predictors import MEASUREMENTS, Predictor
from pipeline.compare.settings import DECLARED, Setting, pairs

_NAMED = 4
"""Differences, and settings, that are named; the rest are counted."""
_WORDS: dict[Kind, tuple[str, str, str]] = {
    "level": ("ends higher than", "ends lower than", "to end higher or lower than {} after RL"),
    "gain": ("gained more than", "gained less than", "to gain more or less than {}"),
    "best": (
        "ends higher, both at their best temperature, than",
        "ends lower, both at their best temperature, than",
        "to end higher or lower than {} with each at its best temperature",
    ),
    "adjusted": ("ends higher, given the same base, than", "ends lower, given the same base, than", ""),
    "declared": ("ends higher than", "ends lower than", "to end higher or lower than {} after RL"),
}


def verdict(
    of_sweep: Sequence[Setting],
    compared: Sequence[MeasuredSetting],
    gains: Mapping[tuple[str, Quantity], JointInterval],
    between: Mapping[Kind, Sequence[Difference]],
    foretold: Sequence[Predictor],
    ks: Sequence[int],
    bad: Sequence[Evaluation],
) -> list[str]:
    """Sentences: what RL gained, where settings end and what they gain compared, what the data cannot tell, what predicts the level.

    `bad` are the evaluations with measurements that are not finite, which `compared` leaves out.
    """
    finished = [setting for setting in compared if setting.finished]
    if not finished or not ks:
        return ["No setting has been measured both before and after RL yet.", *not_finite(bad), *_guessing(compared)]
    several = {setting.name for setting in finished if len(setting.seeds) > 1}
    of_settings = {at: interval for at, interval in gains.items() if not several or at[0] in several}
    what = "setting" if several else "training run"
    sentences = [_gained(of_settings, Quantity("pass@k", k), what) for k in dict.fromkeys([ks[0], ks[-1]])]
    if several and len(several) < len(finished):
        alone = _some([setting.name for setting in finished if setting.name not in several])
        sentences.append(f"Not counted, since one finished seed says nothing about a setting: {alone}.")
    sentences += _along("declared", DECLARED, [one for one in between["declared"] if one.seeds > 1])
    levels = between["level"]
    for axis in dict.fromkeys(one.axis for one in levels):
        for kind, of_kind in between.items():
            sentences += _along(kind, axis, [one for one in of_kind if one.axis == axis and one.seeds > 1])
    sentences += _few_seeds(levels)
    missing = _missing(of_sweep, finished, levels, {evaluation.plan.cell.id for evaluation in bad if not evaluation.milestone})
    return sentences + not_finite(bad) + missing + _guessing(compared) + _foretelling(foretold)


def _gained(gains: Mapping[tuple[str, Quantity], JointInterval], quantity: Quantity, what: str) -> str:
    intervals = [interval for (_, other), interval in gains.items() if other == quantity]
    up, down = ([one for one in intervals if one.shown and one.value * sign > 0] for sign in (1, -1))
    parts = [f"raised {quantity.name} in {len(up)}"] if up else []
    parts += [f"lowered {'it' if up else quantity.name} in {len(down)}"] if down else []
    settings = f"{len(intervals)} {what}{'s' if len(intervals) != 1 else ''}"
    told = [interval for interval in intervals if not math.isnan(interval.low)]
    if not told:
        return f"RL's change in {quantity.name} has no interval in any of {settings}: too few problems, or the same on every problem."
    untold = len(intervals) - len(told)
    without = f"; {untold} of them {'has' if untold == 1 else 'have'} no interval" if untold else ""
    if not parts and len(intervals) == 1:
        return f"RL shows no change in {quantity.name} in the one {what}."
    if not parts:
        return f"RL shows no change in {quantity.name} in any of {settings}{without}."
    values = [interval.value for interval in intervals]
    unclear = len(told) - len(up) - len(down)
    rest = f", and shows no change in {unclear}" if unclear else ""
    reach = f"{signed(min(values))} to {signed(max(values))}" if len(values) > 1 else signed(values[0])
    return f"RL {' and '.join(parts)} of {settings}{rest}{without} (change: {reach})."


def _along(kind: Kind, axis: str, between: Sequence[Difference]) -> list[str]:
    """`between` rest on two seeds or more: one seed says nothing about a setting."""
    if not between:
        return []
    higher, lower, either = _WORDS[kind]
    shown = [one for one in between if one.interval.shown]
    told = [one for one in between if not math.isnan(one.interval.low)]
    if not told:
        return [f"Along {axis}, differences have no intervals: too few problems, or the same on every problem."] if either else []
    jointly = f"all {len(told)} intervals, which hold jointly, include 0" if len(told) > 1 else "the one interval includes 0"
    if shown:
        named = [
            f"{one.setting} {higher if one.interval.value > 0 else lower} {one.reference} in {one.quantity.name}: "
            f"{with_interval(one.interval.value, one.interval.low, one.interval.high)}"
            for one in sorted(shown, key=lambda one: -abs(one.interval.value))[:_NAMED]
        ]
        more = f", and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
        scope = f" All {len(told)} intervals hold jointly." if len(told) > 1 else ""
        said = f"Along {axis}, {'; '.join(named)}{more}.{scope}"
    elif either:
        references = {one.reference for one in between}
        which = {"prior": "prior", DECLARED: "setting of a declared contrast"}.get(axis, f"value of {axis}")
        said = f"No {which} is shown {either.format('its reference' if len(references) > 1 else references.pop())}: {jointly}."
    else:
        return []
    return [f"{said} {_power(told)}"]


def _power(told: Sequence[Difference]) -> str:
    """What a difference in the first quantity must be to be seen, as the median over differences."""
    first = told[0].quantity
    size = statistics.median_high(one.interval.detectable for one in told if one.quantity == first)
    if size >= 1:
        return f"So few seeds cannot show a difference in {first.name}."
    return f"Four in five such sweeps would show a true difference of {share(size)} in {first.name}."


def _few_seeds(levels: Sequence[Difference]) -> list[str]:
    alone = list(dict.fromkeys(one.setting for one in levels if one.seeds == 1))
    if not alone:
        return []
    every = all(one.seeds == 1 for one in levels)
    which = "With one seed per setting, differences" if every else f"Differences that rest on one seed ({_some(alone)})"
    return [f"{which} are between single training runs and say nothing about settings. Add seeds (axes.seed=[0,1,2,3,4])."]


def not_finite(bad: Sequence[Evaluation]) -> list[str]:
    """A sentence that names the evaluations and what is NaN or infinite in them; none if there are none."""
    named = [f"{one.name} ({', '.join(one.not_finite)})" for one in bad]
    return [f"Not finite, so left out: {_some(named)}."] if bad else []


def _missing(
    of_sweep: Sequence[Setting], finished: Sequence[MeasuredSetting], between: Sequence[Difference], bad: Set[str]
) -> list[str]:
    """`bad`: the cells with measurements that are not finite, which are not unfinished."""
    sentences = []
    names = {setting.name for setting in finished}
    waiting_for = {setting.name: [cell for cell in setting.cells if cell.id not in bad] for setting in of_sweep}
    unfinished = [name for name, cells in waiting_for.items() if cells and name not in names]
    if unfinished:
        sentences.append(f"Unfinished, so left out above: {len(unfinished)} of {len(of_sweep)} settings.")
    short = [
        f"{setting.name} ({', '.join(map(str, seeds))})"
        for setting in finished
        if (seeds := [cell.recipe.seed for cell in waiting_for[setting.name] if cell.recipe.seed not in setting.seeds])
    ]
    if short:
        sentences.append(f"Unfinished seeds are left out: {_some(short)}.")
    told = {(one.axis, one.setting) for one in between}
    for axis, along in pairs(of_sweep).items():
        waiting = [(one.name, other.name) for one, other in along if one.name in names and (axis, one.name) not in told]
        absent = list(dict.fromkeys(reference for _, reference in waiting if reference not in names))
        apart = [f"{one} with {reference}" for one, reference in waiting if reference in names]
        if absent:
            why = "unfinished" if set(absent) & set(unfinished) else "not finite"
            sentences.append(f"Along {axis}, nothing is compared with {_some(absent)} yet ({why}).")
        if apart:
            sentences.append(f"Along {axis}, {_some(apart)} cannot be compared: they share no seeds, or have different problems.")
    return sentences


def _guessing(compared: Sequence[MeasuredSetting]) -> list[str]:
    levels = sorted({setting.chance for setting in compared} - {0.0})
    if not levels:
        return []
    where = {level: _some([setting.name for setting in compared if setting.chance == level]) for level in levels}
    alike = all(setting.chance == levels[0] for setting in compared)
    scores = [f"{share(level)}{'' if alike else f' ({where[level]})'}" for level in levels]
    return [f"Guessing scores {', '.join(scores)} in pass@1: the floor, not 0."]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _foretelling(foretold: Sequence[Predictor]) -> list[str]:
    if not foretold:
        return []
    bases, shown = foretold[0].bases, [one for one in foretold if one.shown]
    if not shown:
        best = foretold[0]
        return [
            f"No measurement of the base model is shown to correlate with pass@1 after RL over {bases} base settings; the strongest is "
            f"{MEASUREMENTS[best.measurement]} (rank correlation {best.correlation:+.2f}, {p_value(best.p)})."
        ]
    named = [f"{MEASUREMENTS[one.measurement]} ({one.correlation:+.2f}, {p_value(one.p)})" for one in shown]
    return [
        f"Over {bases} base settings, pass@1 after RL correlates with the base model's {', '.join(named)}: look there before "
        "spending RL compute. Correlation is not causation."
    ]
