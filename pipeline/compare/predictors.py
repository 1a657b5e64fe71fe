"""What, measured on the base model, goes along with the gain? Rank correlations over the cells of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pipeline.compare.arms import Arm
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Floats

MEASUREMENTS = {
    "entropy": "entropy",
    "perplexity": "perplexity",
    "head_mass": "head mass",
    "tail_mass": "tail mass",
    "pass@1": "pass@1",
    "pass@n": "pass@n",
    "mixed": "share of mixed groups",
    "length": "response length",
}
_FEWEST_CELLS = 5
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Predictor:
    """Spearman's rank correlation of one measurement with the gain in pass@1; the interval holds for all measurements at once."""

    measurement: str
    correlation: float
    low: float
    high: float
    cells: int

    @property
    def shown(self) -> bool:
        return self.low > 0 or self.high < 0


def predictors(compared: Sequence[Arm]) -> list[Predictor]:
    """One per measurement that differs between cells; none with fewer than five finished cells. Strongest first.

    Intervals are Bonett and Wright's (Psychometrika 65, 2000), corrected for the number of measurements (Bonferroni). They take
    cells as independent draws, which cells that share a prior or a seed are not: read them as a screening, not as a proof.
    """
    points = cell_points(compared)
    cells = len(points["gain"])
    if cells < _FEWEST_CELLS:
        return []
    varying = [name for name in MEASUREMENTS if np.ptp(points[name]) > 0]
    if not varying or np.ptp(points["gain"]) == 0:
        return []
    quantile = NormalDist().inv_cdf(1 - (1 - _CONFIDENCE) / (2 * len(varying)))
    found = []
    for name in varying:
        correlation = spearman(points[name], points["gain"])
        if abs(correlation) > 1 - 1e-12:
            found.append(Predictor(name, correlation, correlation, correlation, cells))
            continue
        half = quantile * math.sqrt((1 + correlation**2 / 2) / (cells - 3))
        centre = math.atanh(correlation)
        found.append(Predictor(name, correlation, math.tanh(centre - half), math.tanh(centre + half), cells))
    return sorted(found, key=lambda one: -abs(one.correlation))


def cell_points(compared: Sequence[Arm]) -> dict[str, Floats]:
    """Every measurement of the base, and `gain` in pass@1, one entry per finished cell that has the first arm's problems."""
    points: dict[str, list[float]] = {name: [] for name in (*MEASUREMENTS, "gain")}
    for arm in compared:
        gains = arm.gains("pass@k", 1)
        if gains is None or arm.before[0].problems != compared[0].before[0].problems:
            continue
        for base, gain in zip(arm.before, gains, strict=True):
            points["gain"].append(float(gain.mean()))
            for name in MEASUREMENTS:
                points[name].append(_measured(base, name))
    return {name: np.array(values) for name, values in points.items()}


def _measured(base: Evaluation, name: str) -> float:
    if name == "perplexity":
        return math.exp(float(base.heldout["cross_entropy"].mean()))
    if name in base.heldout:
        return float(base.heldout[name].mean())
    if name == "length":
        return float(base.values("length", base.n).mean())
    if name == "mixed":
        return _mixed_share(base)
    return float(base.values("pass@k", 1 if name == "pass@1" else base.n).mean())


def _mixed_share(base: Evaluation) -> float:
    """Chance that a group of the size that RL samples has correct and wrong responses: without both it teaches nothing."""
    rl = base.plan.cell.recipe.rl
    size = min(base.n, rl.samples_per_prompt if rl is not None else base.n)
    correct = np.round(base.values("avg@n", base.n) * base.n)
    draws = np.arange(size)
    all_right = np.prod(np.clip(correct[:, None] - draws, 0, None) / (base.n - draws), axis=1)
    all_wrong = np.prod(np.clip((base.n - correct)[:, None] - draws, 0, None) / (base.n - draws), axis=1)
    return float((1 - all_right - all_wrong).mean())


def spearman(x: Floats, y: Floats) -> float:
    """Correlation of the ranks of two samples; ties share their mean rank. Both must vary."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
