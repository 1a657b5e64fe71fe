"""A sweep's findings, computed once, and as plain data for the terminal, the report, W&B and `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.compare.best import at_best_temperature, best_rates, temperatures
from pipeline.compare.budgets import equal_budgets
from pipeline.compare.contrasts import Difference, Kind, compare_pairs, differences, gains
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Interval, JointInterval, mean_interval
from pipeline.compare.measured import MeasuredSetting, Quantity, measured_settings, quantities, shown_ks
from pipeline.compare.power import measured_spreads
from pipeline.compare.predictors import Points, Predictor, cell_points, predictors
from pipeline.compare.problems import changed_problems
from pipeline.compare.settings import Setting, pairs, planned_settings
from pipeline.compare.verdict import verdict
from pipeline.experiment.compose import Cell
from pipeline.store.folders import Home

CONTRASTS: dict[str, Kind] = {"levels": "level", "differences": "gain", "adjusted": "adjusted", "best_temperature": "best"}
"""Key in a summary -> which differences between settings it holds."""


@dataclass(frozen=True)
class Findings:
    evaluations: list[Evaluation]
    planned: list[Setting]
    settings: list[MeasuredSetting]
    ks: list[int]
    shown: list[Quantity]
    gains: dict[tuple[str, Quantity], JointInterval]
    """By setting and quantity; they hold jointly."""
    differences: dict[Kind, list[Difference]]
    pooled: bool
    points: Points
    predictors: list[Predictor]

    @property
    def not_finite(self) -> list[Evaluation]:
        return [evaluation for evaluation in self.evaluations if evaluation.not_finite]


def findings(cells: Sequence[Cell], evaluations: list[Evaluation], *, pooled: bool = True) -> Findings:
    """From the finished evaluations of a sweep with these cells; `pooled` as in `contrasts.compare_pairs`."""
    compared, ks = measured_settings(cells, evaluations), shown_ks(evaluations)
    shown, points = quantities(evaluations, ks), cell_points(compared)
    first = [one for one in shown if one == Quantity("pass@k", 1)]
    at_best = [one for setting in compared if (one := at_best_temperature(setting, shown)) is not None]
    of_kind: list[tuple[Kind, list[MeasuredSetting], list[Quantity]]] = [
        ("level", compared, shown),
        ("gain", compared, shown),
        ("adjusted", compared, first),
        ("best", at_best, shown),
    ]
    return Findings(
        evaluations,
        planned_settings(cells),
        compared,
        ks,
        shown,
        gains(compared, shown, pooled=pooled),
        {kind: differences(kind, settings, cells, of, pooled=pooled) for kind, settings, of in of_kind},
        pooled,
        points,
        predictors(points),
    )


def summary(found: Findings, home: Home) -> dict[str, Any]:
    """The comparison as plain data.

    `rows` (one per setting); contrasts between settings: `levels` after RL, `differences` of gains, `adjusted` levels given the base,
    and levels at each one's `best_temperature`; `temperatures` (one row per setting and temperature); `best_rates`, each setting at
    the learning rate that validated best; `problems` that each setting lost and gained; `equal_budgets`; `predictors` of the level;
    `spreads`, from which the next sweep is planned; the `verdict`; and `not_finite`, the evaluations left out and what is NaN or
    infinite in each.
    """
    spreads = measured_spreads(found.differences["level"], found.settings)
    return {
        "rows": [_row(setting, found) for setting in found.settings],
        **{key: [one.as_dict() for one in found.differences[kind]] for key, kind in CONTRASTS.items()},
        "temperatures": [row for setting in found.settings for row in _temperature_rows(setting, found)],
        "best_rates": _best_rates(found, home),
        "problems": [changed for setting in found.settings if (changed := changed_problems(setting)) is not None],
        "equal_budgets": equal_budgets(found.settings, home),
        "predictors": [one.__dict__ | {"shown": one.shown} for one in found.predictors],
        "spreads": None if spreads is None else {"task": found.planned[0].cells[0].recipe.task.name} | asdict(spreads),
        "not_finite": {evaluation.name: evaluation.not_finite for evaluation in found.not_finite},
        "verdict": verdict(found.planned, found.settings, found.gains, found.differences, found.predictors, found.ks, found.not_finite),
    }


def _row(setting: MeasuredSetting, found: Findings) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": setting.name, "prior": setting.prior, "seeds": setting.seeds, "chance": setting.chance}
    for metric in ("entropy", "perplexity"):
        row[metric] = setting.before_at(metric).as_dict()
    for quantity in found.shown:
        row[quantity.name] = {
            "before": setting.before_at(quantity.metric, quantity.k).as_dict(),
            "after": _as_dict(setting.after_at(quantity.metric, quantity.k)),
            "gain": _as_dict(found.gains.get((setting.name, quantity))),
        }
    if 1 in found.ks:
        row["pass@1"]["bayesian_gain"] = _as_dict(setting.bayesian_gain())
    return row


def _as_dict(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.as_dict()


def _temperature_rows(setting: MeasuredSetting, found: Findings) -> list[dict[str, Any]]:
    rows = []
    for at in temperatures(setting):
        sides = {"before": [e.temperatures[at] for e in setting.before], "after": [e.temperatures[at] for e in setting.after]}
        row: dict[str, Any] = {"arm": setting.name, "temperature": at}
        row["entropy"] = mean_interval(np.stack([e.values("entropy") for e in sides["before"]])).as_dict()
        for quantity in found.shown:
            measured = {side: [quantity.of(e) for e in of_side if quantity.in_(e)] for side, of_side in sides.items()}
            row[quantity.name] = {side: mean_interval(np.stack(of)).as_dict() if of else None for side, of in measured.items()}
        rows.append(row)
    return rows


def _best_rates(found: Findings, home: Home) -> dict[str, Any] | None:
    """Each setting at its own learning rate, and the contrasts between them; None without such an axis or its validation."""
    best = best_rates(found.planned, found.settings, home)
    if not best:
        return None
    settings = [one.setting for one in best]
    by_name = {setting.name: setting for setting in settings}
    contrasts = []
    for axis, along in pairs([setting.planned for setting in settings]).items():
        measured = [(by_name[one.name], by_name[other.name]) for one, other in along]
        contrasts += [one.as_dict() for one in compare_pairs("best", axis, measured, found.shown, pooled=found.pooled)]
    rows = [{"arm": one.setting.name, "rate": one.rate, "validated": one.validated} for one in best]
    return {"rows": rows, "contrasts": contrasts}
