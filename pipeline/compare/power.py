"""How small a difference between two settings a sweep can show, estimated before it runs.

A paired difference of pass@1 after RL varies over problems, over training runs, and from run to run on each problem, to which n samples
add their noise. More seeds do nothing about the first, more problems nothing about the second. Finished sweeps of the same task say how
large each part is; until there is one, Countdown's stand in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from pipeline.compare.contrasts import Difference, level_spread, paired_levels
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import CONFIDENCE, FEWEST_PROBLEMS, POWER, Components, Error, Spread, components
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.sets import as_telling_as
from pipeline.compare.settings import DECLARED, axis_between, declared_pairs, pairs, planned_settings
from pipeline.experiment.compose import Cell
from pipeline.store.files import read_mapping
from pipeline.store.folders import Home

_VOTES = 2
"""Greedy decoding and the majority vote, which are compared beside pass@k."""
_MOST_PROBLEMS = 1_000_000
"""More is not useful advice."""
_ASSURANCE = 0.8
_PASS_1 = Quantity("pass@k", 1)


@dataclass(frozen=True)
class Spreads:
    """Variances of a difference of pass@1 after RL between two settings, in parts."""

    problems: float
    """Over problems, the same in all runs."""
    runs: float
    """Over pairs of training runs, the same on all problems; an upper limit where it was measured."""
    both: float
    """From run to run on each problem, without the noise of samples."""
    sampling: float
    """One sample's noise, p (1 - p), averaged over problems."""
    seeds: int
    """Of the sweep that they were measured in."""
    source: str


COUNTDOWN = Spreads(problems=0.0, runs=0.0003, both=0.074, sampling=0.08, seeds=5, source="docs/results/countdown.md")


def measured_spreads(levels: Sequence[Difference], compared: Sequence[MeasuredSetting]) -> Spreads | None:
    """From a sweep's differences in pass@1 that rest on two seeds or more, along the axis with the most; None if there are none.

    Priors come first: what two starts or two RL algorithms do to a problem differs by far more than what two priors do.

    A few seeds show little of how much runs differ, so that part is the upper limit of its one-sided 80% interval (Browne, 1995).
    """
    from scipy.special import chdtri

    by_name = {setting.name: setting for setting in compared}
    told = [one for one in levels if one.quantity == _PASS_1 and one.seeds > 1]
    counts = Counter(one.axis for one in told)
    axis = max(counts, key=lambda one: (one.rpartition(".")[2] == "prior", counts[one]), default=None)
    along = [(by_name[one.setting], by_name[one.reference]) for one in told if one.axis == axis]
    along = [pair for pair in along if pair[0].before[0].problems == along[0][0].before[0].problems]
    between_runs = level_spread(along, _PASS_1) if along else None
    if between_runs is None:
        return None
    found = []
    for setting, reference in along:
        values, sizes = paired_levels(setting, reference, _PASS_1), setting.after[0].sizes
        parts, n = components(values, sizes), setting.after[0].n
        share = as_telling_as(sizes) / values.shape[1] if sizes else 1.0  # variances are told per problem of a single set
        noise = _sampling_noise([*setting.after, *reference.after]) * n / max(1, n - 1)
        of_problem = share * (parts.problems.square - parts.rest) / len(values)
        found.append((of_problem, parts.rest, share * parts.rest - 2 * noise / n, noise))
    of_problems, rest, both, sampling = (fmean(part) for part in zip(*found, strict=True))
    highest = between_runs.square * between_runs.freedom / float(chdtri(between_runs.freedom, _ASSURANCE))
    runs = (highest - rest) / len(along[0][0].before[0].problems)
    seeds = max(one.seeds for one in told)
    return Spreads(max(0.0, of_problems), max(0.0, runs), max(0.0, both), sampling, seeds, "this sweep")


def _sampling_noise(measured: Sequence[Evaluation]) -> float:
    """p (1 - p), averaged over problems, then over sets, each weighted by how much it affects the error of their mean."""

    def of_set(name: str) -> float:
        rates = np.concatenate([_PASS_1.of(evaluation.on(name)) for evaluation in measured])
        return float((rates * (1 - rates)).mean())

    sets = measured[0].sets
    if not sets:
        return of_set("")
    return float(np.average([of_set(name) for name in sets], weights=[1 / size for size in measured[0].sizes]))


def evaluated_on(cells: Sequence[Cell]) -> str:
    """What spreads are kept and looked up by: the task, or the evaluation sets that a mean is over."""
    return ", ".join(cells[0].recipe.evaluation_sets)


def known_spreads(task: str, home: Home) -> Spreads:
    """Those of the finished sweep with the most seeds that was evaluated on the same; Countdown's if there is none."""
    found = []
    for file in sorted(home.path.glob("sweeps/*/comparison.json")):
        with suppress(AttributeError, KeyError, TypeError):  # of another version
            told = read_mapping(file)["summary"]["spreads"]
            if told.pop("task") == task:
                found.append(Spreads(**told | {"source": f"sweep {file.parent.name}"}))
    return max(found, key=lambda one: one.seeds, default=COUNTDOWN)


@dataclass(frozen=True)
class Power:
    """A sweep's power to show one difference in pass@1 after RL."""

    problems: int
    """Number in a single evaluation set; with several sets, the number in one that would give as exact a mean."""
    samples: int
    seeds: int
    settings: int
    """The settings that the spread over seeds is estimated from: the reference and those compared with it, or all settings where
    declared contrasts are along several axes.
    """
    comparisons: int
    """Intervals that hold jointly."""
    spreads: Spreads
    sets: tuple[int, ...] = ()
    """The problems of each of several sets."""
    declared: bool = False
    """Whether it is about the contrasts that the sweep declares."""

    def detectable(self, power: float = POWER) -> float:
        """The difference that a share `power` of such sweeps would show, each interval at Bonferroni's level."""
        rest = self.spreads.both + 2 * self.spreads.sampling / self.samples  # what neither the problem nor the run explains
        found = Components(
            Spread(rest + self.problems * self.spreads.runs, max(1, (self.settings - 1) * (self.seeds - 1))),
            Spread(rest + self.seeds * self.spreads.problems, max(1, self.problems - 1)),
            rest,
        )
        return Error(found, (self.seeds, self.problems)).detectable((1 - CONFIDENCE) / self.comparisons, power)

    def problems_for(self, difference: float, power: float = POWER) -> int | None:
        """Problems needed to show `difference` with these seeds; None if no number of problems suffices."""
        counts = range(FEWEST_PROBLEMS, _MOST_PROBLEMS + 1)
        at = bisect_left(counts, True, key=lambda count: replace(self, problems=count).detectable(power) <= difference)
        return None if at == len(counts) else counts[at]


def power_of(cells: Sequence[Cell], home: Home, contrasts: Sequence[tuple[str, str]] = ()) -> Power | None:
    """For a sweep's declared contrasts, or else its axis with the most differences; None without RL or without anything to compare.

    Raises `PriorlabError` if a contrast names no setting of the sweep.
    """
    planned = planned_settings(cells)
    declared = declared_pairs(planned, contrasts)
    along = {DECLARED: declared} if declared else pairs(planned)
    if not along or any(cell.recipe.rl is None for cell in cells):
        return None
    protocol = cells[0].recipe.evaluate
    shown = {k for k in (1, 8, protocol.samples) if k <= protocol.samples}
    most = max(along.values(), key=len)
    axes = {axis_between(*pair) for pair in declared}
    (axis,) = axes if len(axes) == 1 else (None,)
    beside = pairs(planned).get(axis or "", []) if declared else most
    sizes = tuple(of_set.problems for _, of_set in cells[0].recipe.evaluation_sets.values())
    return Power(
        problems=round(as_telling_as(sizes)),
        samples=protocol.samples,
        seeds=len({cell.recipe.seed for cell in cells}),
        settings=1 + max(sum(reference is other for _, other in beside) for _, reference in beside) if beside else len(planned),
        comparisons=len(most) * (1 if declared else len(shown) + _VOTES),
        declared=bool(declared),
        spreads=known_spreads(evaluated_on(cells), home),
        sets=sizes if len(sizes) > 1 else (),
    )


def in_words(found: Power) -> str:
    """What the sweep can show."""
    problems = f"{found.problems} problems"
    if found.sets:
        problems = f"{sum(found.sets):,} problems in {len(found.sets)} sets, averaged as exactly as {found.problems} in one,"
    samples, seeds = (f"{count} {name}{'s' * (count > 1)}" for count, name in ((found.samples, "sample"), (found.seeds, "seed")))
    size = f"{problems} x {samples} x {seeds}"
    start = f"With {size}"
    if found.seeds == 1:
        start = f"{size}: one seed shows nothing about settings. With axes.seed=[0,1,2,3,4]"
        found = replace(found, seeds=5)
    which = "declared contrasts" if found.declared else "intervals"
    jointly = f", with {found.comparisons} {which} that hold jointly" if found.comparisons > 1 else ""
    return (
        f"{start}, four in five such sweeps would show a true difference of {found.detectable():.3f} in pass@1 after RL{jointly}. "
        f"Spreads from {found.spreads.source}; --effect 0.015, added to this command, says what such an effect takes."
    )
