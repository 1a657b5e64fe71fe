"""The comparison as plain data: what the terminal, the report, W&B and `--json` show."""

from __future__ import annotations

from typing import Any

from pipeline.compare.arms import Arm, arms, differences, shown_ks
from pipeline.compare.equal import equal_budgets
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Interval
from pipeline.compare.predictors import cell_points, predictors
from pipeline.compare.verdict import verdict
from pipeline.store import Home


def summary(evaluations: list[Evaluation], home: Home) -> dict[str, Any]:
    """`rows` (one per arm), `differences` between them, `equal_budgets`, `predictors` of the gain, the `verdict`, and `chance`."""
    ks, compared = shown_ks(evaluations), arms(evaluations)
    between = differences(compared, ks)
    foretold = predictors(cell_points(compared))
    rows = [_row(arm, ks) for arm in compared]
    return {
        "rows": rows,
        "differences": [one.as_dict() for one in between],
        "equal_budgets": equal_budgets(compared, home),
        "predictors": [one.__dict__ | {"shown": one.shown} for one in foretold],
        "verdict": verdict(compared, between, foretold, ks),
        "chance": compared[0].before[0].plan.cell.recipe.task.chance if compared else 0.0,
    }


def _row(arm: Arm, ks: list[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm.name, "prior": arm.prior, "seeds": arm.seeds}
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
