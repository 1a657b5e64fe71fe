"""Learning curves: pass@k on RL's validation problems while it runs, each setting minus its reference, with bands.

Differences are paired per problem and seed and judged as those of the evaluations are. All points of all curves along an axis, at
equal steps, rollouts or seconds, hold jointly. Between two validations, what a cell has reached is interpolated linearly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from pipeline.compare.contrasts import Difference, Pair, compare_pairs, measured_pairs
from pipeline.compare.intervals import Floats
from pipeline.compare.measured import MeasuredSetting, Quantity, none_of
from pipeline.compare.settings import Setting, pairs
from pipeline.compare.validations import BUDGETS, Budget, Validation


@dataclass(frozen=True)
class LearningCurve:
    """How much higher a setting is than its reference while RL runs, in pass@k at one k."""

    budget: Budget
    """What is equal at each point."""
    k: int
    points: list[tuple[float, Difference]]
    """So much of the budget, and the difference there; all of one setting and reference."""

    @property
    def axis(self) -> str:
        return self.points[0][1].axis

    @property
    def setting(self) -> str:
        return self.points[0][1].setting

    @property
    def reference(self) -> str:
        return self.points[0][1].reference

    def as_dict(self) -> dict[str, Any]:
        """With a list of `points`."""
        one = self.points[0][1]
        points = [{"at": at, **difference.interval.as_dict(), "shown": difference.interval.shown} for at, difference in self.points]
        named = {"budget": self.budget, "axis": self.axis, "setting": self.setting, "reference": self.reference, "k": self.k}
        return named | {"family": one.family, "seeds": one.seeds, "points": points}


def learning_curves(compared: Sequence[MeasuredSetting], planned: Sequence[Setting], *, pooled: bool = True) -> list[LearningCurve]:
    """At k = 1 and the most that all have, for each budget; `pooled` as in `contrasts.compare_pairs`.

    Settings without validation are left out, as are those whose reference has none.
    """
    validated = [one for one in compared if one.finished and all(e.validation is not None for e in one.after)]
    found = []
    for axis, along in pairs(planned).items():
        if measured := [pair for pair in measured_pairs(along, validated) if _on_the_same_problems(*pair)]:
            found += [curve for budget in BUDGETS for curve in _along(axis, measured, budget, pooled)]
    return found


def _along(axis: str, measured: Sequence[Pair], budget: Budget, pooled: bool) -> list[LearningCurve]:
    every = [validation for pair in measured for one in pair for validation in _validations(one)]
    most = min(validation.samples for validation in every)
    quantities = {Quantity(f"pass@k at point {at}", k): place for k in dict.fromkeys([1, most]) for at, place in _places(every, budget)}
    drawn = [(_at_places(one, budget, quantities), _at_places(reference, budget, quantities)) for one, reference in measured]
    points: dict[tuple[str, str, int], list[tuple[float, Difference]]] = {}
    for one in compare_pairs("level", axis, drawn, list(quantities), pooled=pooled):
        points.setdefault((one.setting, one.reference, one.quantity.k), []).append((quantities[one.quantity], one))
    return [LearningCurve(budget, k, of_curve) for (_, _, k), of_curve in points.items()]


def _on_the_same_problems(setting: MeasuredSetting, reference: MeasuredSetting) -> bool:
    """Whether both were validated on the same problems wherever they share a seed; each seed has problems of its own."""
    first, second = (
        {seed: validation.problems for seed, validation in zip(one.seeds, _validations(one), strict=True)}
        for one in (setting, reference)
    )
    return all(first[seed] == second[seed] for seed in first.keys() & second.keys())


def _validations(setting: MeasuredSetting) -> list[Validation]:
    return [one.validation for one in setting.after if one.validation is not None]


def _places(every: Sequence[Validation], budget: Budget) -> list[tuple[int, float]]:
    """Where curves are compared: the places of the run that was measured least often, scaled to end where all runs have arrived; none
    if a run has spent nothing yet.
    """
    least = min(every, key=lambda one: len(one.solved))
    last = min(float(one.spent[budget][-1]) for one in every)
    if last <= 0:
        return []
    return list(enumerate((least.spent[budget] * last / least.spent[budget][-1]).tolist()))


def _at_places(setting: MeasuredSetting, budget: Budget, quantities: Mapping[Quantity, float]) -> MeasuredSetting:
    """The setting as if its evaluations had been its validations: a metric for each place.

    Problems go by their task and number, since they differ between seeds; what is compared is paired within a seed.
    """
    task = sha256(json.dumps(setting.before[0].plan.cell.recipe.task.identity(), sort_keys=True).encode()).hexdigest()[:8]
    after, before = [], []
    for start, end, validation in zip(setting.before, setting.after, _validations(setting), strict=True):
        metrics: dict[str, dict[int, Floats]] = {}
        for quantity, place in quantities.items():
            metrics.setdefault(quantity.metric, {})[quantity.k] = _interpolated(validation, budget, quantity.k, place)
        numbered = [f"{task} {number}" for number in range(len(validation.problems))]
        before.append(replace(start, problems=numbered, metrics=metrics, sets={}))
        after.append(replace(end, problems=numbered, metrics=metrics, sets={}))
    return replace(setting, before=before, after=after)


def _interpolated(validation: Validation, budget: Budget, k: int, place: float) -> Floats:
    """Pass@k of each problem where so much of the budget is spent."""
    spent = validation.spent[budget]
    later = min(int(np.searchsorted(spent, place)), len(spent) - 1)
    earlier = max(0, later - 1)
    apart = spent[later] - spent[earlier]
    share = 1.0 if apart <= 0 else float(np.clip((place - spent[earlier]) / apart, 0, 1))
    passed = 1 - none_of(validation.solved[[earlier, later]].astype(float), validation.samples, k)
    found: Floats = passed[0] * (1 - share) + passed[1] * share
    return found
