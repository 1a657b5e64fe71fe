"""What was found in a sweep, computed once, and as the plain data that the terminal, the report, W&B and `--json` show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.compare.budgets import equal_budgets
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Interval
from pipeline.compare.measured import Arm, Difference, arms, differences, shown_ks
from pipeline.compare.predictors import Points, Predictor, cell_points, predictors
from pipeline.compare.settings import Setting, settings
from pipeline.compare.verdict import verdict
from pipeline.experiment.compose import Cell
from pipeline.store.folders import Home


@dataclass(frozen=True)
class Findings:
    evaluations: list[Evaluation]
    settings: list[Setting]
    arms: list[Arm]
    ks: list[int]
    differences: list[Difference]
    points: Points
    predictors: list[Predictor]


def findings(cells: Sequence[Cell], evaluations: list[Evaluation]) -> Findings:
    """From the evaluations that have finished of a sweep with these cells."""
    compared, ks = arms(cells, evaluations), shown_ks(evaluations)
    points = cell_points(compared)
    between = differences(compared, cells, ks)
    return Findings(evaluations, settings(cells), compared, ks, between, points, predictors(points))


def summary(found: Findings, home: Home) -> dict[str, Any]:
    """`rows` (one per arm), `differences` between them, `equal_budgets`, `predictors` of the gain, and the `verdict`."""
    return {
        "rows": [_row(arm, found.ks) for arm in found.arms],
        "differences": [one.as_dict() for one in found.differences],
        "equal_budgets": equal_budgets(found.arms, home),
        "predictors": [one.__dict__ | {"shown": one.shown} for one in found.predictors],
        "verdict": verdict(found.settings, found.arms, found.differences, found.predictors, found.ks),
    }


def _row(arm: Arm, ks: list[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm.name, "prior": arm.prior, "seeds": arm.seeds, "chance": arm.chance}
    for metric in ("entropy", "perplexity"):
        row[metric] = arm.before_at(metric).as_dict()
    for k in ks:
        row[f"pass@{k}"] = {
            "before": arm.before_at("pass@k", k).as_dict(),
            "after": _as_dict(arm.after_at("pass@k", k)),
            "gain": _as_dict(arm.gain_at("pass@k", k)),
        }
    if 1 in ks:
        row["pass@1"]["bayesian_gain"] = _as_dict(arm.bayesian_gain())
    return row


def _as_dict(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.as_dict()
