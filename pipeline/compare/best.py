"""Each setting at its best: at the sampling temperature that suits it, or at its own learning rate.

A prior that sharpens the distribution may do no more than a lower temperature would, and one rate for all may suit one prior better.
What is best is never chosen by the values that are then compared: a temperature for one half of the problems by the other half, a
learning rate by the validation at the end of RL.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.compare.evaluations import Evaluation, stage_rows
from pipeline.compare.intervals import Floats
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.settings import Setting
from pipeline.store.folders import Home

RATE = "rl.optimizer.learning_rate"
_VALIDATED = "validation/pass@1"


def temperatures(setting: MeasuredSetting) -> list[float]:
    """Those that all its evaluations were sampled at, lowest first; none without `evaluate.temperatures`."""
    every = [set(evaluation.temperatures) for evaluation in [*setting.before, *setting.after]]
    return sorted(set.intersection(*every)) if every else []


def at_best_temperature(setting: MeasuredSetting, shown: Sequence[Quantity]) -> MeasuredSetting | None:
    """The setting as if every problem had been sampled after RL at the temperature that is best on the other half of the problems.

    The halves alternate; each quantity has its own best. None without several temperatures. Greedy decoding has none, and is left out.
    """
    found = temperatures(setting)
    if not setting.finished or len(found) < 2:
        return None
    metrics: list[dict[str, dict[int, Floats]]] = [{} for _ in setting.after]
    for quantity in shown:
        if not all(quantity.in_(one.temperatures[at]) for one in setting.after for at in found):
            continue
        values = np.array([[quantity.of(one.temperatures[at]) for one in setting.after] for at in found])
        best = best_of_other_half(values)
        for kept, of_seed in zip(metrics, best, strict=True):
            kept.setdefault(quantity.metric, {})[quantity.k] = of_seed
    return replace(setting, after=[replace(one, metrics=kept) for one, kept in zip(setting.after, metrics, strict=True)])


def best_of_other_half(values: Floats) -> Floats:
    """From values shaped (choices, seeds, problems): of each problem, those of the choice with the highest mean on the other half."""
    even = np.arange(values.shape[2]) % 2 == 0
    chosen = [int(values[:, :, half].mean(axis=(1, 2)).argmax()) for half in (~even, even)]
    return np.where(even, values[chosen[0]], values[chosen[1]])


@dataclass(frozen=True)
class BestRate:
    """A setting without its learning rate, at the rate that validated best."""

    setting: MeasuredSetting
    rate: float
    validated: float
    """Pass@1 on the validation problems at the last validation, averaged over seeds."""


def best_rates(
    planned: Sequence[Setting], compared: Sequence[MeasuredSetting], home: Home, left_out: Collection[str] = ()
) -> list[BestRate]:
    """Of the settings that differ only in RL's learning rate, the one that validated best, once all their cells are finished.

    Rates with a cell among `left_out`, whose measurements are not finite, are skipped. None without that axis or without
    validation.
    """
    measured = {setting.name: setting for setting in compared if len(setting.after) == len(setting.planned.cells)}
    rates: dict[str, list[BestRate | None]] = {}
    for setting in planned:
        if RATE not in setting.coordinates:
            return []
        if any(cell.id in left_out for cell in setting.cells):
            continue
        renamed = setting.without(RATE)
        rates.setdefault(renamed.name, []).append(_validated(measured.get(setting.name), renamed, home))
    complete = [[one for one in of_setting if one is not None] for of_setting in rates.values() if None not in of_setting]
    return [max(of_setting, key=lambda one: one.validated) for of_setting in complete]


def _validated(measured: MeasuredSetting | None, renamed: Setting, home: Home) -> BestRate | None:
    if measured is None:
        return None
    last = [_last_validation(evaluation, home) for evaluation in measured.before]
    known = [one for one in last if one is not None]
    if len(known) < len(last):
        return None
    return BestRate(replace(measured, planned=renamed), float(measured.coordinates[RATE]), float(np.mean(known)))


def _last_validation(evaluation: Evaluation, home: Home) -> float | None:
    rows = [row[_VALIDATED] for row in stage_rows(evaluation.plan, "rl", home) if _VALIDATED in row]
    return rows[-1] if rows else None
