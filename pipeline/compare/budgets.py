"""Validation during RL at equal steps, at equal rollouts, and at equal distance from the base.

A setting whose groups lack signal may sample more per step, and one policy may move further in as many steps than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.compare.evaluations import stage_rows
from pipeline.compare.intervals import Floats
from pipeline.compare.measured import MeasuredSetting
from pipeline.store.folders import Home

_COLUMNS = ("step", "rollouts_generated", "validation/pass@1")
_KL = "validation/kl_response"


def equal_budgets(compared: Sequence[MeasuredSetting], home: Home) -> dict[str, Any] | None:
    """Gains in validation pass@1 since step 0, at the most steps and the most rollouts that all cells have reached, and the largest KL.

    `{"steps": ..., "rollouts": ..., "kl": ..., "rows": [{"setting", "sampled", "at_steps", "at_rollouts", "at_kl"}]}`: the budgets, and
    means over each setting's seeds: rollouts up to the common step, gains at the last validation within each budget, and the gain where
    the KL divergence from the base (nats per response) first reaches the common one, between validations by interpolation. `kl` and
    `at_kl` are None if a cell lacks the KL or never left its base. None without validation, or if nothing tells the budgets apart: all
    settings sample alike and the KL was not measured.
    """
    curves: dict[str, list[Floats]] = {}
    for setting in compared:
        for plan in (evaluation.plan for evaluation in setting.before):
            validated = plan.cell.recipe.rl is not None and plan.cell.recipe.rl.validation is not None
            if validated and len(curve := _curve(stage_rows(plan, "rl", home))) > 1:
                curves.setdefault(setting.name, []).append(curve)
    every = [curve for of_setting in curves.values() for curve in of_setting]
    if not every:
        return None
    steps, rollouts, _, kl = np.min([curve.max(axis=0) for curve in every], axis=0).tolist()
    sampled = {name: [_last(curve, 0, steps)[1] for curve in of_setting] for name, of_setting in curves.items()}
    moved = kl > 0  # false for NaN
    if len({count for counts in sampled.values() for count in counts}) < 2 and not moved:
        return None
    rows = [
        {
            "setting": name,
            "sampled": float(np.mean(sampled[name])),
            "at_steps": float(np.mean([_last(curve, 0, steps)[2] - curve[0, 2] for curve in of_setting])),
            "at_rollouts": float(np.mean([_last(curve, 1, rollouts)[2] - curve[0, 2] for curve in of_setting])),
            "at_kl": float(np.mean([_where_first(curve, kl) - curve[0, 2] for curve in of_setting])) if moved else None,
        }
        for name, of_setting in curves.items()
    ]
    return {"steps": int(steps), "rollouts": int(rollouts), "kl": kl if moved else None, "rows": rows}


def _curve(rows: list[dict[str, float]]) -> Floats:
    """(validations, 4): step, rollouts generated, pass@1, and KL from the base, NaN where it was not measured."""
    found = [[*(row[name] for name in _COLUMNS), row.get(_KL, np.nan)] for row in rows if all(name in row for name in _COLUMNS)]
    return np.array(found, dtype=float).reshape(-1, 4)


def _last(curve: Floats, column: int, budget: float) -> Floats:
    """The last validation within the budget."""
    return curve[curve[:, column] <= budget][-1]


def _where_first(curve: Floats, kl: float) -> float:
    """Pass@1 where the KL first reaches `kl`: the policy may come back to its base later."""
    reached = int(np.argmax(curve[:, 3] >= kl))
    between = curve[max(0, reached - 1) : reached + 1]
    return float(np.interp(kl, between[:, 3], between[:, 2]))
