"""Arms: the cells that differ only in their seed. They are what a sweep compares, along each of its axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Contrast, Floats, Interval, bayesian_gain, contrasts, mean_interval, perplexity
from pipeline.errors import PriorlabError

BASELINE = "ce"
"""The prior that others are compared with, where a sweep has it; on other axes it is the first value."""


@dataclass(frozen=True)
class Arm:
    """All seeds of one setting: the unit of comparison."""

    name: str
    prior: str
    coordinates: dict[str, Any]
    """Values of the sweep's axes, the seed left out."""
    before: list[Evaluation]
    after: list[Evaluation]

    @property
    def seeds(self) -> list[int]:
        return [evaluation.plan.cell.recipe.seed for evaluation in self.before]

    @property
    def complete(self) -> bool:
        """Whether each cell was measured before and after RL."""
        return bool(self.after) and {e.plan.cell.id for e in self.after} == {e.plan.cell.id for e in self.before}

    def before_at(self, metric: str, k: int | None = None) -> Interval:
        return _pooled(self.before, metric, k)

    def after_at(self, metric: str, k: int | None = None) -> Interval | None:
        return _pooled(self.after, metric, k) if self.after else None

    def gains(self, metric: str, k: int) -> Floats | None:
        """After minus before, shaped (seeds, problems), paired per problem and cell; None while a cell lacks one of the two.

        Raises `PriorlabError` if the problems before and after differ.
        """
        if not self.complete:
            return None
        after_by_cell = {evaluation.plan.cell.id: evaluation for evaluation in self.after}
        differences = []
        for before in self.before:
            after = after_by_cell[before.plan.cell.id]
            if before.problems != after.problems:
                raise PriorlabError(f"cell {before.plan.cell.id} was measured on other problems after RL than before")
            differences.append(after.values(metric, k) - before.values(metric, k))
        return np.stack(differences)

    def gain_at(self, metric: str, k: int) -> Interval | None:
        gains = self.gains(metric, k)
        return None if gains is None else mean_interval(gains)

    def bayesian_gain(self) -> Interval | None:
        """Gain in pass@1 with a credible interval for these very problems; None while a cell lacks one of the two measurements."""
        if not self.complete:
            return None
        n = self.before[0].n
        before, after = (np.stack([np.round(e.values("avg@n", e.n) * e.n) for e in side]) for side in (self.before, self.after))
        return bayesian_gain(before, after, n)


def _pooled(evaluations: list[Evaluation], metric: str, k: int | None) -> Interval:
    if metric == "perplexity":
        return perplexity(np.stack([e.values("cross_entropy") for e in evaluations]))
    return mean_interval(np.stack([e.values(metric, k) for e in evaluations]))


def arms(evaluations: list[Evaluation]) -> list[Arm]:
    """Cells that differ only in their seed form one arm; cells not yet evaluated before RL are left out."""
    grouped: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        grouped.setdefault(arm_name(evaluation), []).append(evaluation)
    found = []
    for name, members in grouped.items():
        before = [e for e in members if e.after == e.plan.base and not e.milestone]
        after = [e for e in members if e.after == "rl"]
        if before:
            recipe = before[0].plan.cell.recipe
            found.append(Arm(name, recipe.prior.name, _coordinates(before[0]), before, after))
    return found


def arm_name(evaluation: Evaluation) -> str:
    coordinates = _coordinates(evaluation)
    words = [str(value) if path == "prior" else f"{path}={value}" for path, value in coordinates.items()]
    return " ".join(words) or evaluation.plan.cell.recipe.prior.name


def _coordinates(evaluation: Evaluation) -> dict[str, Any]:
    return {path: value for path, value in evaluation.plan.cell.coordinates.items() if path != "seed"}


def shown_ks(evaluations: list[Evaluation]) -> list[int]:
    """The columns of the table: 1, 8 and the number of samples, as far as measured by all."""
    common = set.intersection(*(set(e.metrics["pass@k"]) for e in evaluations)) if evaluations else set()
    return sorted(common & {1, 8, max(common)}) if common else []


@dataclass(frozen=True)
class Difference:
    """What one value of an axis gains more than the axis's reference, all other settings being equal."""

    axis: str
    arm: str
    reference: str
    k: int
    family: int
    """How many differences, along this axis and over all shown k, the interval holds for at once."""
    gain: Contrast

    def as_dict(self) -> dict[str, Any]:
        named = {"axis": self.axis, "arm": self.arm, "reference": self.reference, "k": self.k, "family": self.family}
        return named | self.gain.as_dict() | {"shown": self.gain.shown}


def differences(compared: Sequence[Arm], ks: Sequence[int]) -> list[Difference]:
    """Differences of gains in pass@k, paired per problem and seed, along each axis; one family of intervals per axis.

    Only arms measured on the same problems with the same seeds are compared; seeds that one of the two lacks are left out.
    """
    found = []
    for axis in dict.fromkeys(path for arm in compared for path in arm.coordinates):
        pairs = [
            (arm, reference, k, values)
            for arm, reference in _pairs(compared, axis)
            for k in ks
            if (values := paired_difference(arm, reference, k)) is not None
        ]
        intervals = contrasts([values for *_, values in pairs])
        found += [
            Difference(axis, arm.name, reference.name, k, len(pairs), gain)
            for (arm, reference, k, _), gain in zip(pairs, intervals, strict=True)
        ]
    return found


def _pairs(compared: Sequence[Arm], axis: str) -> Iterator[tuple[Arm, Arm]]:
    """Each arm with the one that differs from it in `axis` alone and has the reference value there."""
    groups: dict[str, list[Arm]] = {}
    for arm in compared:
        if axis in arm.coordinates:
            groups.setdefault(str({path: value for path, value in arm.coordinates.items() if path != axis}), []).append(arm)
    for group in groups.values():
        reference = next((arm for arm in group if axis == "prior" and arm.coordinates[axis] == BASELINE), group[0])
        yield from ((arm, reference) for arm in group if arm is not reference)


def paired_difference(arm: Arm, reference: Arm, k: int) -> Floats | None:
    """Gain of `arm` minus that of `reference`, shaped (seeds, problems), over the seeds both have; None if nothing can be paired."""
    ours, theirs = arm.gains("pass@k", k), reference.gains("pass@k", k)
    if ours is None or theirs is None or arm.before[0].problems != reference.before[0].problems:
        return None
    shared = [seed for seed in arm.seeds if seed in reference.seeds]
    if not shared:
        return None
    return ours[[arm.seeds.index(seed) for seed in shared]] - theirs[[reference.seeds.index(seed) for seed in shared]]
