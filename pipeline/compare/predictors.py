"""Which measurements of the base model predict where RL ends? Rank correlations over a sweep's base settings.

They are with the level after RL, not with the gain: after minus before is tied to whatever tracks the base's pass@1, effect or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compare.evaluations import Evaluation, over_sets
from pipeline.compare.intervals import CONFIDENCE, SEED, Floats, perplexity
from pipeline.compare.measured import MeasuredSetting, none_of

MEASUREMENTS = {
    "entropy": "entropy",
    "perplexity": "perplexity",
    "head_mass": "head mass",
    "tail_mass": "tail mass",
    "pass@1": "pass@1",
    "pass@n": "pass@n",
    "mixed": "share of mixed groups",
    "length": "response length (greedy)",
}
_FEWEST = 5
_PERMUTATIONS = 4000
_PERMUTED_AT_ONCE = 50


@dataclass(frozen=True)
class Points:
    """One entry per cell: its setting, pass@1 after RL, and what was measured on its base model."""

    settings: list[str]
    bases: list[str]
    """How the cell's base model was trained, except for the seed; settings that differ only in RL share it."""
    level: Floats
    measured: dict[str, Floats]

    @property
    def varying(self) -> list[str]:
        """Measurements that differ between cells."""
        return [name for name, values in self.measured.items() if len(values) and np.ptp(values) > 0]

    def by_base(self, values: Floats) -> Floats:
        """Means over the cells of each base setting."""
        _, which = np.unique(self.bases, return_inverse=True)
        return np.bincount(which, values) / np.bincount(which)


@dataclass(frozen=True)
class Predictor:
    """Spearman's rank correlation of one measurement with pass@1 after RL."""

    measurement: str
    correlation: float
    p: float
    """How often any of the measurements correlates as strongly when levels are permuted over base settings."""
    bases: int

    @property
    def shown(self) -> bool:
        return self.p <= 1 - CONFIDENCE


def predictors(points: Points) -> list[Predictor]:
    """One per measurement that differs between base settings, strongest first; none with fewer than five base settings.

    A base setting enters with the means over its cells: its seeds resemble each other in measurements and level, and counted separately
    would make chance correlations look certain. The test permutes the levels and takes the strongest correlation of any measurement
    (Westfall and Young, 1993, with the count of Phipson and Smyth, 2010): valid for any number of base settings, and corrected for the
    number of measurements. It treats base settings as exchangeable, which those that share a prior are not: a screening, not a proof.
    """
    bases = len(set(points.bases))
    if bases < _FEWEST:
        return []
    levels = points.by_base(points.level)
    means = {name: points.by_base(points.measured[name]) for name in points.varying}
    varying = [name for name, values in means.items() if np.ptp(values) > 0]
    if not varying or np.ptp(levels) == 0:
        return []
    level = _standard_ranks(levels)
    measured = np.stack([_standard_ranks(means[name]) for name in varying], axis=1)
    correlations = level @ measured
    rng = np.random.default_rng(SEED)
    strongest = np.empty(_PERMUTATIONS)
    for start in range(0, _PERMUTATIONS, _PERMUTED_AT_ONCE):
        permuted = rng.permuted(np.tile(level, (_PERMUTED_AT_ONCE, 1)), axis=1)
        strongest[start : start + _PERMUTED_AT_ONCE] = np.abs(permuted @ measured).max(axis=1)
    found = [
        Predictor(name, float(one), (1 + int((strongest >= abs(one) - 1e-9).sum())) / (1 + _PERMUTATIONS), bases)
        for name, one in zip(varying, correlations, strict=True)
    ]
    return sorted(found, key=lambda one: -abs(one.correlation))


def cell_points(compared: Sequence[MeasuredSetting]) -> Points:
    """For each finished cell that has the first setting's problems."""
    settings: list[str] = []
    bases: list[str] = []
    level: list[float] = []
    measured: dict[str, list[float]] = {name: [] for name in MEASUREMENTS}
    for setting in compared:
        recipe = setting.planned.cells[0].recipe
        trained = f"{recipe.start_step} {recipe.model_dump_json(exclude={'rl', 'seed'})}"
        for base, after in zip(setting.before, setting.after, strict=False):  # a base without RL has no `after`
            if base.problems != compared[0].before[0].problems:
                continue
            settings.append(setting.name)
            bases.append(trained)
            level.append(float(after.values("pass@k", 1).mean()))
            for name in MEASUREMENTS:
                measured[name].append(_measured(base, name))
    return Points(settings, bases, np.array(level), {name: np.array(values) for name, values in measured.items()})


def _measured(base: Evaluation, name: str) -> float:
    if name == "perplexity":
        return perplexity(base.heldout["cross_entropy"]).value
    if name in base.heldout:
        return float(base.heldout[name].mean())
    if name == "length":
        return float(base.values("greedy_length", 1).mean())
    rl = base.plan.cell.recipe.rl
    size = min(base.n, rl.samples_per_prompt if rl is not None else base.n)

    def by_problem(one: Evaluation) -> Floats:
        correct = np.round(one.values("avg@n", one.n) * one.n)
        if name == "mixed":
            return _mixed_share(correct, one.n, size)
        return correct / one.n if name == "pass@1" else (correct > 0).astype(float)

    return float(over_sets(by_problem, base).mean())


def _mixed_share(correct: Floats, samples: int, size: int) -> Floats:
    """Chance that a group of `size` has both correct and wrong responses, without which it teaches nothing; like `correct` in shape."""
    return 1 - none_of(samples - correct, samples, size) - none_of(correct, samples, size)


def _standard_ranks(values: Floats) -> Floats:
    """Ranks (ties share their mean), centred and of length 1: the dot product of two is their correlation."""
    from scipy.stats import rankdata  # takes a second, wasted unless base settings are compared

    ranks = rankdata(values)
    centred: Floats = ranks - ranks.mean()
    return centred / np.linalg.norm(centred)
