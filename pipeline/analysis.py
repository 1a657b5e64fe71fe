"""A finished or running sweep as pandas data frames, with the intervals of its report, for your own analysis."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from pipeline.compare.contrasts import Kind
from pipeline.compare.evaluations import Evaluation, load_evaluations, stage_rows
from pipeline.compare.findings import Findings, findings
from pipeline.compare.intervals import Interval, JointInterval, Sample, joint_intervals, mean_interval
from pipeline.compare.measured import Quantity
from pipeline.compare.results import result_rows, results_text, write_samples
from pipeline.compare.settings import planned_settings
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell
from pipeline.experiment.graph import CellPlan, Graph, build_graph
from pipeline.experiment.saved import known_sweep
from pipeline.store.folders import Home

__all__ = ["Interval", "JointInterval", "Sample", "SweepResults", "joint_intervals", "load_sweep_results", "mean_interval"]

_TEXT = ("sweep", "cell", "prior", "objective", "knobs", "task", "exploration", "after", "metric")
"""Columns of results.csv to read as text, even if every value looks like a number."""
_CELL = ("cell", "setting", "prior", "seed")
_CONTRAST = (
    "axis", "setting", "reference", "task", "metric", "k", "family", "seeds",
    "value", "low", "high", "superiority", "detectable", "shown",
)  # fmt: skip
_LEARNING = (
    "axis", "setting", "reference", "budget", "at", "metric", "k", "family", "seeds",
    "value", "low", "high", "superiority", "detectable", "shown",
)  # fmt: skip
_SETTING = (
    "setting", "prior", "seeds", "task", "metric", "k",
    "before", "before_low", "before_high", "after", "after_low", "after_high", "gain", "gain_low", "gain_high",
)  # fmt: skip


def load_sweep_results(name: str, home: Path | str | None = None, *, pooled: bool = True) -> SweepResults:
    """Results of a sweep so far. `home` defaults to $PRIORLAB_HOME, or to `runs` in the current folder if that is not set.

    `pooled=False` estimates the spread over seeds for each setting separately, as `priorlab report --unpooled` does. Each frame is
    computed on first use and cached; load the sweep again to see new results. Raises `PriorlabError` if no sweep has this name. Its
    frames raise it if a file is damaged and, except for `metrics`, before any evaluation has finished.
    """
    folder = Home.from_environment() if home is None else Home(Path(home).absolute())
    known = known_sweep(name, folder)
    return SweepResults(name, folder, build_graph(known.cells()), pooled, known.contrasts)


@dataclass(frozen=True)
class SweepResults:
    """Made by `load_sweep_results`; docs/comparison.md describes the frames."""

    name: str
    home: Home
    graph: Graph
    pooled: bool
    contrasts: tuple[tuple[str, str], ...] = ()

    @cached_property
    def results(self) -> pandas.DataFrame:
        """The rows of results.csv: one mean per cell, checkpoint, metric and k, with its 95% interval."""
        text = io.StringIO(results_text(result_rows(self.name, self.findings.evaluations)))
        found = pandas.read_csv(text, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
        return found.astype({"k": "Int64"})

    @cached_property
    def samples(self) -> pandas.DataFrame:
        """The rows of samples.parquet: one per response."""
        _ = self.findings  # raises `PriorlabError` if nothing has been evaluated
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "samples.parquet"
            write_samples(file, self.graph, self.home)
            return pandas.read_parquet(file)

    @cached_property
    def declared(self) -> pandas.DataFrame:
        """The contrasts that the sweep declares, in pass@1 after RL: setting minus the one it is compared with. They hold jointly."""
        return self._contrasts("declared")

    @cached_property
    def levels(self) -> pandas.DataFrame:
        """Where RL ends: setting minus reference. The intervals along one axis hold jointly."""
        return self._contrasts("level")

    @cached_property
    def gains(self) -> pandas.DataFrame:
        """What RL gains: the gain of the setting minus that of its reference. The intervals along one axis hold jointly."""
        return self._contrasts("gain")

    @cached_property
    def adjusted(self) -> pandas.DataFrame:
        """Where RL ends in pass@1, given the base: setting minus reference. Empty with too few seeds."""
        return self._contrasts("adjusted")

    @cached_property
    def learning(self) -> pandas.DataFrame:
        """During RL: setting minus reference in pass@k on the validation problems, once both have spent `at` of a budget.

        The intervals along one axis hold jointly for each budget. Empty without validation.
        """
        rows = [
            one.__dict__ | one.interval.__dict__
            | {"budget": curve.budget, "at": at, "metric": "pass@k", "k": curve.k, "shown": one.interval.shown}
            for curve in self.findings.learning for at, one in curve.points
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=_LEARNING)

    @cached_property
    def settings(self) -> pandas.DataFrame:
        """One row per setting, metric and k: before RL, after it, and the gain. The intervals of all gains hold jointly.

        With several evaluation sets, their mean comes first, and then each of them; their gains hold jointly among themselves.
        """
        rows: list[dict[str, Any]] = []
        found, on_sets = self.findings, self.findings.on_sets
        for setting in found.settings:
            common = {"setting": setting.name, "prior": setting.prior, "seeds": len(setting.seeds)}
            for metric in ("entropy", "perplexity"):
                rows.append(common | {"metric": metric} | _columns("before", setting.before_at(metric)))
            for shown in [*found.shown, *on_sets.shown]:
                at = (shown.metric, shown.k, shown.of_set)
                row = common | {"task": self._task(setting.planned.cells[0], shown), "metric": shown.metric, "k": shown.k}
                row |= _columns("before", setting.before_at(*at)) | _columns("after", setting.after_at(*at))
                gained = on_sets.gains if shown.of_set else found.gains
                rows.append(row | _columns("gain", gained.get((setting.name, shown))))
        return pandas.DataFrame(rows, columns=_SETTING).astype({"k": "Int64"})

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """metrics.jsonl of every stage of training, step by step. A stage shared by several cells appears once per cell."""
        rows = ((plan, kind, stage_rows(plan, kind, self.home)) for plan in self.graph.cells for kind in plan.chain)
        frames = [self._of_cell(plan, {"stage": kind}, pandas.DataFrame(found)) for plan, kind, found in rows if found]
        return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame(columns=[*_CELL, "stage", "step"])

    @cached_property
    def problems(self) -> pandas.DataFrame:
        """The value of each problem, by cell, checkpoint, evaluation set (`task`), metric and k: from these, every pass@k, gain and
        contrast follows.
        """
        return self._of_evaluations(_by_problem)

    @cached_property
    def heldout(self) -> pandas.DataFrame:
        """The value of each block of held-out text, by cell, checkpoint and metric."""
        return self._of_evaluations(_by_block)

    @cached_property
    def findings(self) -> Findings:
        """What the report is made of; not part of the documented frames."""
        evaluations = load_evaluations(self.graph, self.home)
        if not evaluations:
            raise PriorlabError(
                f"sweep {self.name!r} below {self.home.path} has no finished evaluation yet; `priorlab status {self.name}` shows its "
                "progress"
            )
        return findings([plan.cell for plan in self.graph.cells], evaluations, self.contrasts, pooled=self.pooled)

    @cached_property
    def _setting_of(self) -> dict[str, str]:
        planned = planned_settings([plan.cell for plan in self.graph.cells])
        return {cell.id: setting.name for setting in planned for cell in setting.cells}

    def _task(self, cell: Cell, quantity: Quantity) -> str:
        """What the quantity was measured on, as in results.csv."""
        return quantity.of_set or cell.recipe.measured_on

    def _of_cell(self, plan: CellPlan, named: dict[str, Any], values: pandas.DataFrame) -> pandas.DataFrame:
        """`values`, with columns in front that identify the cell."""
        recipe, cell = plan.cell.recipe, plan.cell.id
        whose = dict(zip(_CELL, (cell, self._setting_of[cell], recipe.prior.name, recipe.seed), strict=True)) | named
        return pandas.concat([pandas.DataFrame(whose, index=values.index), values], axis=1)

    def _of_evaluations(self, values_of: Callable[[Evaluation], pandas.DataFrame]) -> pandas.DataFrame:
        frames = []
        for one in self.findings.evaluations:
            checkpoint = {"after": one.after, "step": one.step, "before_rl": one.after == one.plan.base and not one.milestone}
            frames.append(self._of_cell(one.plan, checkpoint, values_of(one)))
        return pandas.concat(frames, ignore_index=True)

    def _contrasts(self, kind: Kind) -> pandas.DataFrame:
        found = [*self.findings.differences[kind], *self.findings.on_sets.differences.get(kind, ())]
        cells = {setting.name: setting.planned.cells[0] for setting in self.findings.settings}
        rows = [
            one.__dict__ | one.quantity.__dict__ | one.interval.__dict__
            | {"task": self._task(cells[one.setting], one.quantity), "shown": one.interval.shown}
            for one in found
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=_CONTRAST)


def _columns(side: str, interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {side: interval.value, f"{side}_low": interval.low, f"{side}_high": interval.high}


def _by_problem(one: Evaluation) -> pandas.DataFrame:
    if not one.sets:
        return _of_one_set(one.plan.cell.recipe.measured_on, one)
    return pandas.concat([_of_one_set(name, of_set) for name, of_set in one.sets.items()], ignore_index=True)


def _of_one_set(name: str, one: Evaluation) -> pandas.DataFrame:
    found = [(metric, k, values) for metric, by_k in one.metrics.items() for k, values in by_k.items()]
    metrics, ks, values = zip(*found, strict=True)
    count = len(one.problems)
    return pandas.DataFrame(
        {
            "task": name,
            "metric": np.repeat(metrics, count),
            "k": np.repeat(ks, count),
            "problem": one.problems * len(found),
            "value": np.concatenate(values),
        }
    )


def _by_block(one: Evaluation) -> pandas.DataFrame:
    frames = [pandas.DataFrame({"metric": name, "block": range(len(values)), "value": values}) for name, values in one.heldout.items()]
    return pandas.concat(frames, ignore_index=True)
