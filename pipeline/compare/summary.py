"""A sweep's findings, computed once, and as plain data for the terminal, the report, W&B and `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.compare.budgets import equal_budgets
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Interval
from pipeline.compare.measured import Difference, MeasuredSetting, differences, measured_settings, shown_ks
from pipeline.compare.predictors import Points, Predictor, cell_points, predictors
from pipeline.compare.settings import Setting, planned_settings
from pipeline.compare.verdict import verdict
from pipeline.experiment.compose import Cell
from pipeline.store.folders import Home


@dataclass(frozen=True)
class Findings:
    evaluations: list[Evaluation]
    planned: list[Setting]
    settings: list[MeasuredSetting]
    ks: list[int]
    differences: list[Difference]
    points: Points
    predictors: list[Predictor]

    @property
    def not_finite(self) -> list[Evaluation]:
        return [evaluation for evaluation in self.evaluations if evaluation.not_finite]


def findings(cells: Sequence[Cell], evaluations: list[Evaluation]) -> Findings:
    """From the finished evaluations of a sweep with these cells."""
    compared, ks = measured_settings(cells, evaluations), shown_ks(evaluations)
    points = cell_points(compared)
    between = differences(compared, cells, ks)
    return Findings(evaluations, planned_settings(cells), compared, ks, between, points, predictors(points))


def summary(found: Findings, home: Home) -> dict[str, Any]:
    """`rows` (one per setting), `differences` between them, `equal_budgets`, `predictors` of the gain, and the `verdict`.

    `not_finite` names the evaluations left out and what is NaN or infinite in each.
    """
    return {
        "rows": [_row(setting, found.ks) for setting in found.settings],
        "differences": [one.as_dict() for one in found.differences],
        "equal_budgets": equal_budgets(found.settings, home),
        "predictors": [one.__dict__ | {"shown": one.shown} for one in found.predictors],
        "not_finite": {evaluation.name: evaluation.not_finite for evaluation in found.not_finite},
        "verdict": verdict(found.planned, found.settings, found.differences, found.predictors, found.ks, found.not_finite),
    }


def _row(setting: MeasuredSetting, ks: list[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": setting.name, "prior": setting.prior, "seeds": setting.seeds, "chance": setting.chance}
    for metric in ("entropy", "perplexity"):
        row[metric] = setting.before_at(metric).as_dict()
    for k in ks:
        row[f"pass@{k}"] = {
            "before": setting.before_at("pass@k", k).as_dict(),
            "after": _as_dict(setting.after_at("pass@k", k)),
            "gain": _as_dict(setting.gain_at("pass@k", k)),
        }
    if 1 in ks:
        row["pass@1"]["bayesian_gain"] = _as_dict(setting.bayesian_gain())
    return row


def _as_dict(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.as_dict()
