"""RL's own validation, read back from its stage: what was measured while it ran, and what had been spent by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.store.files import read_json
from pipeline.store.folders import StageFolder

Budget = Literal["steps", "rollouts", "seconds"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
_COLUMNS: dict[Budget, str] = {"steps": "step", "rollouts": "rollouts_generated", "seconds": "seconds"}
_MEASURED = "validation/pass@1"


@dataclass(frozen=True)
class Validation:
    """The policies of one run on its validation problems, the base policy first."""

    problems: list[str]
    samples: int
    solved: NDArray[np.int64]
    """How many of a problem's samples were correct, (validations, problems)."""
    spent: dict[Budget, NDArray[np.float64]]
    """Since RL began, (validations,) each; seconds are those of training steps, without start-up and validation itself."""


def load_validation(folder: StageFolder, rows: Sequence[dict[str, float]], samples: int) -> Validation | None:
    """From the stage's validation.json and its `rows` of metrics.jsonl.

    None if a measured policy is not in the file, as with runs of versions that wrote none.
    """
    measured = [row for row in timed(rows) if _MEASURED in row]
    solved = read_json(folder.validation) or {}
    of_step = [one for row in measured if (one := solved.get(f"{row['step']:.0f}"))]
    if not measured or len(of_step) < len(measured):
        return None
    problems = list(of_step[0])
    counts = np.array([[one[problem] for problem in problems] for one in of_step])
    return Validation(problems, samples, counts, {budget: np.array([row[_COLUMNS[budget]] for row in measured]) for budget in BUDGETS})


def timed(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of RL with the `seconds` that its steps have taken so far; a row's `step_time` is the mean since the row before."""
    seconds = step = 0.0
    found = []
    for row in rows:
        seconds += row.get("step_time", 0.0) * (row["step"] - step)
        step = row["step"]
        found.append(row | {"seconds": seconds})
    return found
