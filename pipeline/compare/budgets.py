"""Validation during RL at equal steps and at equal rollouts: a setting whose groups lack signal may sample more per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.compare.evaluations import stage_rows
from pipeline.compare.measured import MeasuredSetting
from pipeline.store.folders import Home

_METRIC = "validation/pass@1"


def equal_budgets(compared: Sequence[MeasuredSetting], home: Home) -> dict[str, Any] | None:
    """Gains in validation pass@1 since step 0, at the most steps and the most rollouts that all cells have reached.

    `{"steps": ..., "rollouts": ..., "rows": [{"arm", "sampled", "at_steps", "at_rollouts"}]}`: both budgets, and means over each
    setting's seeds: rollouts up to the common step, and gains at the last validation within each budget. None without validation, or
    if all settings sample alike, which makes the two comparisons one.
    """
    curves: dict[str, list[np.ndarray]] = {}
    for setting in compared:
        for plan in (evaluation.plan for evaluation in setting.before):
            validated = plan.cell.recipe.rl is not None and plan.cell.recipe.rl.validation is not None
            if validated and len(curve := _curve(stage_rows(plan, "rl", home))) > 1:
                curves.setdefault(setting.name, []).append(curve)
    every = [curve for of_setting in curves.values() for curve in of_setting]
    if not every:
        return None
    steps, rollouts = (float(min(curve[-1, column] for curve in every)) for column in (0, 1))
    sampled = {name: [_last(curve, 0, steps)[1] for curve in of_setting] for name, of_setting in curves.items()}
    if len({count for counts in sampled.values() for count in counts}) < 2:
        return None
    rows = [
        {
            "arm": name,
            "sampled": float(np.mean(sampled[name])),
            "at_steps": float(np.mean([_last(curve, 0, steps)[2] - curve[0, 2] for curve in of_setting])),
            "at_rollouts": float(np.mean([_last(curve, 1, rollouts)[2] - curve[0, 2] for curve in of_setting])),
        }
        for name, of_setting in curves.items()
    ]
    return {"steps": int(steps), "rollouts": int(rollouts), "rows": rows}


def _curve(rows: list[dict[str, float]]) -> np.ndarray:
    """(validations, 3): step, rollouts generated, pass@1."""
    wanted = ("step", "rollouts_generated", _METRIC)
    return np.array([[row[name] for name in wanted] for row in rows if all(name in row for name in wanted)]).reshape(-1, 3)


def _last(curve: np.ndarray, column: int, budget: float) -> np.ndarray:
    """The last validation within the budget."""
    within: np.ndarray = curve[curve[:, column] <= budget]
    return within[-1]
