"""What a comparison shows, in sentences that follow from its intervals and the configuration alone."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.format import share, signed, with_interval
from pipeline.compare.measured import Difference, MeasuredSetting
from pipeline.compare.predictors import MEASUREMENTS, Predictor
from pipeline.compare.settings import Setting, pairs

_NAMED = 4
"""Differences, and settings, that are named; the rest are counted."""


def verdict(
    of_sweep: Sequence[Setting],
    compared: Sequence[MeasuredSetting],
    between: Sequence[Difference],
    foretold: Sequence[Predictor],
    ks: Sequence[int],
    bad: Sequence[Evaluation],
) -> list[str]:
    """Sentences: what RL gained, which settings differ in it, what the data cannot tell, and what correlates with the gain.

    `bad` are the evaluations with measurements that are not finite, which `compared` leaves out.
    """
    finished = [setting for setting in compared if setting.finished]
    if not finished or not ks:
        return ["No setting has been measured both before and after RL yet.", *not_finite(bad), *_guessing(compared)]
    sentences = [_gained(finished, ks[0])]
    if len(ks) > 1:
        sentences.append(_gained(finished, ks[-1]))
    for axis in dict.fromkeys(one.axis for one in between):
        sentences += _along(axis, [one for one in between if one.axis == axis])
    sentences += _few_seeds([one.seeds for one in between] or [len(setting.seeds) for setting in finished])
    missing = _missing(of_sweep, finished, between, {evaluation.plan.cell.id for evaluation in bad if not evaluation.milestone})
    return sentences + not_finite(bad) + missing + _guessing(compared) + _foretelling(foretold)


def _gained(finished: Sequence[MeasuredSetting], k: int) -> str:
    intervals = {setting.name: interval for setting in finished if (interval := setting.gain_at("pass@k", k)) is not None}
    up = [name for name, interval in intervals.items() if interval.shown and interval.value > 0]
    down = [name for name, interval in intervals.items() if interval.shown and interval.value < 0]
    parts = [f"raised pass@{k} in {len(up)}"] if up else []
    parts += [f"lowered {'it' if up else f'pass@{k}'} in {len(down)}"] if down else []
    if not parts:
        return f"RL shows no change in pass@{k} in any of {_settings(len(intervals))}."
    values = [interval.value for interval in intervals.values()]
    unclear = len(intervals) - len(up) - len(down)
    rest = f", and shows no change in {unclear}" if unclear else ""
    reach = f"{signed(min(values))} to {signed(max(values))}" if len(values) > 1 else signed(values[0])
    return f"RL {' and '.join(parts)} of {_settings(len(intervals))}{rest} (change: {reach})."


def _settings(count: int) -> str:
    return f"{count} setting{'s' if count != 1 else ''}"


def _along(axis: str, between: Sequence[Difference]) -> list[str]:
    shown = [one for one in between if one.gain.shown]
    told = [one for one in between if not math.isnan(one.gain.low)]
    if not told:
        return [f"Along {axis}, differences have no intervals: too few problems, or the same difference on every problem."]
    first_k = min(one.k for one in told)
    half_widths = sorted((one.gain.high - one.gain.low) / 2 for one in told if one.k == first_k)
    smallest = half_widths[len(half_widths) // 2]
    if smallest < 1:
        resolution = f"At pass@{first_k} this sweep cannot resolve differences below about {share(smallest)}."
    else:
        resolution = f"At pass@{first_k} so few seeds cannot resolve any difference."

    if not shown:
        references = {one.reference for one in between}
        which = "prior" if axis == "prior" else f"value of {axis}"
        other = "its reference" if len(references) > 1 else next(iter(references))
        scope = f"all {len(told)} intervals, which hold jointly, include 0" if len(told) > 1 else "the one interval includes 0"
        return [f"No {which} is shown to gain more or less than {other}: {scope}. {resolution}"]
    named = [
        f"{one.setting} gained {'more' if one.gain.value > 0 else 'less'} than {one.reference} in pass@{one.k}: "
        f"{with_interval(one.gain.value, one.gain.low, one.gain.high)}"
        for one in sorted(shown, key=lambda one: -abs(one.gain.value))[:_NAMED]
    ]
    more = f", and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    scope = f" All {len(told)} intervals hold jointly." if len(told) > 1 else ""
    return [f"Along {axis}, {'; '.join(named)}{more}.{scope} {resolution}"]


def _few_seeds(counts: Sequence[int]) -> list[str]:
    """`counts`: the seeds behind each difference, or behind each gain where nothing is compared."""
    if min(counts) > 1:
        return []
    which = "With one seed per setting" if max(counts) == 1 else "Where a difference rests on one seed"
    return [
        f"{which}, intervals cover the choice of problems but not the luck of a training run, which may explain any difference. Add "
        "seeds (axes.seed=[0,1,2]) before relying on one."
    ]


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
            f"No measurement of the base model is shown to correlate with the gain over {bases} base settings; the strongest is "
            f"{MEASUREMENTS[best.measurement]} (rank correlation {best.correlation:+.2f}, p = {share(best.p)})."
        ]
    named = [f"{MEASUREMENTS[one.measurement]} ({one.correlation:+.2f}, p = {share(one.p)})" for one in shown]
    return [
        f"Over {bases} base settings, the gain in pass@1 correlates with the base model's {', '.join(named)}: look there before "
        "spending RL compute. Correlation is not causation."
    ]
