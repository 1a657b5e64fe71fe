"""Finished evaluations of a sweep, read back from their stages: one value per problem, metric and k.

With several evaluation sets, a checkpoint's evaluation is the mean over them (`pipeline.compare.sets`), and has each of them in `sets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.compare.intervals import Floats, perplexity
from pipeline.compare.sets import averaged
from pipeline.compare.validations import Validation, load_validation
from pipeline.config.stages import EvaluateStage
from pipeline.experiment.graph import CellPlan, Graph, StageNode
from pipeline.store.files import read_json, read_rows
from pipeline.store.folders import Home, verify_manifest


@dataclass(frozen=True)
class Evaluation:
    """One evaluated checkpoint of one cell: values per problem (metric -> k -> values) and per held-out block."""

    plan: CellPlan
    after: str
    step: int
    n: int
    problems: list[str]
    metrics: dict[str, dict[int, Floats]]
    heldout: dict[str, Floats]
    step_seconds: Floats
    """Of each logged RL step but the first, which warms up; empty before RL."""
    harness: dict[str, Floats] = field(default_factory=dict)
    """One value per benchmark problem, by TASK/METRIC."""
    temperatures: dict[float, Evaluation] = field(default_factory=dict)
    """The same checkpoint sampled at each of several temperatures, this evaluation's included; empty for one temperature."""
    milestone: bool = False
    """Whether it is an intermediate checkpoint, not one that RL starts from."""
    sets: dict[str, Evaluation] = field(default_factory=dict)
    """The same checkpoint on each of several evaluation sets, over which this evaluation's metrics are averaged; empty for one set."""
    validation: Validation | None = None
    """After RL, its validation; None without one."""

    @property
    def tokens(self) -> int:
        """The text tokens the checkpoint was trained on, in all stages before RL."""
        recipe, total = self.plan.cell.recipe, 0
        for kind, (settings, block) in recipe.trainings.items():
            until = recipe.start_step if kind == "pretrain" else None
            steps = self.step if self.after == kind else until or settings.steps
            total += steps * settings.global_batch * block
            if self.after == kind:
                break
        return total

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many problems each of several sets has."""
        return tuple(len(one.problems) for one in self.sets.values())

    def on(self, of_set: str) -> Evaluation:
        """On one of its sets; "" is the mean over all. Raises `KeyError` if it was not measured on the set."""
        return self.sets[of_set] if of_set else self

    @property
    def name(self) -> str:
        """`ce-seed0 after rl`, or `ce-seed0 at step 500 of pretrain`."""
        return f"{self.plan.cell.id} {f'at step {self.step} of' if self.milestone else 'after'} {self.after}"

    @property
    def not_finite(self) -> list[str]:
        """What came out as NaN or infinite: the evaluation of a model with such weights says nothing about its setting."""
        found = [name for name, values in self.heldout.items() if not np.isfinite(values).all()]
        if "cross_entropy" not in found and not math.isfinite(perplexity(self.heldout["cross_entropy"]).value):
            found.append("perplexity")
        return found + [name for name, by_k in self.metrics.items() if not all(np.isfinite(values).all() for values in by_k.values())]

    def values(self, metric: str, k: int | None = None) -> Floats:
        """Per problem (k given) or per block."""
        return self.heldout[metric] if k is None else self.metrics[metric][k]


def over_sets(of_one: Callable[..., Floats], *evaluations: Evaluation) -> Floats:
    """Apply `of_one`, which takes these evaluations of the same problems and returns one value per problem.

    With several sets, it is applied to each set and the results are combined by `averaged`: for what is not linear in the metrics.
    """
    if not evaluations[0].sets:
        return of_one(*evaluations)
    return averaged([of_one(*(one.sets[name] for one in evaluations)) for name in evaluations[0].sets])


def load_evaluations(graph: Graph, home: Home) -> list[Evaluation]:
    """All finished evaluations, cell by cell, in training order. One that is not finished on all of its sets is left out."""
    found = []
    for plan in graph.cells:
        for after, at, on_sets in plan.measurements():
            records = {name: node.folder(home).record() for name, node in on_sets.items()}
            if None in records.values():
                continue
            rows = stage_rows(plan, "rl", home) if after == "rl" else []
            common: dict[str, Any] = {
                "plan": plan,
                "after": after,
                "step": evaluated_step(plan, after, home) if at is None else at,
                "step_seconds": np.array([row["step_time"] for row in rows if "step_time" in row][1:]),
                "milestone": at is not None,
                "validation": _validation(plan, rows, home) if after == "rl" else None,
            }
            of_sets = {name: _loaded(node, record, home, common) for name, node in on_sets.items() if (record := records[name])}
            found.append(_joined(of_sets) if len(of_sets) > 1 else next(iter(of_sets.values())))
    return found


def _loaded(node: StageNode, record: dict[str, Any], home: Home, common: dict[str, Any]) -> Evaluation:
    folder = node.folder(home)
    assert isinstance(node.config, EvaluateStage)
    verify_manifest(folder.export, record["manifest"])
    details: Any = read_json(folder.export / "problems.json")
    benchmarks: Any = read_json(folder.export / "harness.json") or {}
    one = Evaluation(
        n=node.config.evaluate.samples,
        problems=details["problems"],
        **_measured(details),
        **common,
        harness={name: np.asarray(values) for name, values in benchmarks.get("values", {}).items()},
    )
    further = {float(t): replace(one, **_measured(of_t)) for t, of_t in details.get("temperatures", {}).items()}
    return replace(one, temperatures=further)


def _joined(sets: dict[str, Evaluation]) -> Evaluation:
    """The mean over several sets, in what all of them have; text and benchmarks are the first's."""
    first, *others = sets.values()
    metrics = {
        name: {k: averaged([one.metrics[name][k] for one in sets.values()]) for k in ks}
        for name in first.metrics
        if (ks := [k for k in first.metrics[name] if all(k in one.metrics.get(name, ()) for one in others)])
    }
    temperatures = [at for at in first.temperatures if all(at in one.temperatures for one in others)]
    return replace(
        first,
        problems=[f"{name}/{problem}" for name, one in sets.items() for problem in one.problems],
        metrics=metrics,
        temperatures={at: _joined({name: one.temperatures[at] for name, one in sets.items()}) for at in temperatures},
        sets=sets,
    )


def _measured(details: dict[str, Any]) -> dict[str, Any]:
    return {
        "metrics": {name: {int(k): np.asarray(values) for k, values in by_k.items()} for name, by_k in details["metrics"].items()},
        "heldout": {name: np.asarray(values) for name, values in details["heldout"].items()},
    }


def evaluated_step(plan: CellPlan, after: str, home: Home) -> int:
    """Optimizer steps behind the evaluated checkpoint in its stage; RL may export an earlier checkpoint than its last."""
    recipe = plan.cell.recipe
    if after in recipe.trainings:
        return (recipe.start_step if after == "pretrain" else None) or recipe.trainings[after][0].steps
    assert recipe.rl is not None
    record = plan.chain["rl"].folder(home).record() if recipe.rl.export == "best" else None
    return recipe.rl.steps if record is None else int(record["metrics"]["exported_step"])


def _validation(plan: CellPlan, rows: list[dict[str, float]], home: Home) -> Validation | None:
    settings = plan.cell.recipe.rl
    if settings is None or settings.validation is None:
        return None
    return load_validation(plan.chain["rl"].folder(home), rows, settings.validation.samples)


def stage_rows(plan: CellPlan, kind: str, home: Home) -> list[dict[str, float]]:
    """The readable rows of metrics.jsonl of a cell's stage."""
    node = plan.chain.get(kind)
    return [] if node is None else read_rows(node.folder(home).metrics)
