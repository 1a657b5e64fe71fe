"""What the finished evaluations of a sweep say, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.compare.best import at_best_temperature
from pipeline.compare.contrasts import Difference, Kind, declared_differences, differences, gains
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import JointInterval
from pipeline.compare.learning import LearningCurve, learning_curves
from pipeline.compare.measured import MeasuredSetting, Quantity, measured_settings, on_each_set, quantities, shown_ks
from pipeline.compare.predictors import Points, Predictor, cell_points, predictors
from pipeline.compare.settings import Setting, planned_settings
from pipeline.experiment.compose import Cell

ON_SETS: tuple[Kind, ...] = ("level", "gain")
"""What is compared on each evaluation set by itself."""


@dataclass(frozen=True)
class OnSets:
    """What is found on each evaluation set by itself: gains and differences are families of their own, joint over all sets.

    Everything else, and so the verdict, is about the mean over sets. All is empty with a single set.
    """

    shown: list[Quantity]
    gains: dict[tuple[str, Quantity], JointInterval]
    differences: dict[Kind, list[Difference]]


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
    on_sets: OnSets
    pooled: bool
    points: Points
    predictors: list[Predictor]

    @cached_property
    def learning(self) -> list[LearningCurve]:
        """Computed on first use: it takes twice as long as everything else, and many callers do not need it."""
        return learning_curves(self.settings, self.planned, pooled=self.pooled)

    @property
    def not_finite(self) -> list[Evaluation]:
        return [evaluation for evaluation in self.evaluations if evaluation.not_finite]


def findings(
    cells: Sequence[Cell], evaluations: list[Evaluation], contrasts: Sequence[tuple[str, str]] = (), *, pooled: bool = True
) -> Findings:
    """From the finished evaluations of a sweep with these cells and declared contrasts; `pooled` as in `contrasts.compare_pairs`."""
    compared, ks = measured_settings(cells, evaluations), shown_ks(evaluations)
    shown, points = quantities(evaluations, ks), cell_points(compared)
    first = [one for one in shown if one == Quantity("pass@k", 1)]
    at_best = [one for setting in compared if (one := at_best_temperature(setting, shown)) is not None]
    between: dict[Kind, list[Difference]] = {"declared": declared_differences(compared, cells, contrasts, pooled=pooled)}
    of_kind: list[tuple[Kind, list[MeasuredSetting], list[Quantity]]] = [
        ("level", compared, shown),
        ("gain", compared, shown),
        ("adjusted", compared, first),
        ("best", at_best, shown),
    ]
    between |= {kind: differences(kind, settings, cells, of, pooled=pooled) for kind, settings, of in of_kind}
    return Findings(
        evaluations,
        planned_settings(cells),
        compared,
        ks,
        shown,
        gains(compared, shown, pooled=pooled),
        between,
        OnSets(
            by_set := on_each_set(shown, evaluations),
            gains(compared, by_set, pooled=pooled),
            {kind: differences(kind, compared, cells, by_set, pooled=pooled) for kind in ON_SETS},
        ),
        pooled,
        points,
        predictors(points),
    )
