"""Finished evaluations of a sweep, read back from their stages: one value per problem, metric and k."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.intervals import perplexity
from pipeline.config.stages import EvaluateStage
from pipeline.experiment.graph import CellPlan, Graph, StageNode
from pipeline.store.files import read_json
from pipeline.store.folders import Home, verify_manifest


@dataclass(frozen=True)
class Evaluation:
    """One evaluated checkpoint of one cell: values per problem (metric -> k -> values) and per held-out block."""

    plan: CellPlan
    after: str
    step: int
    n: int
    problems: list[str]
    metrics: dict[str, dict[int, NDArray[np.float64]]]
    heldout: dict[str, NDArray[np.float64]]
    step_seconds: NDArray[np.float64]
    """Of each logged RL step but the first, which warms up; empty before RL."""
    harness: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """One value per benchmark problem, by TASK/METRIC."""
    temperatures: dict[float, Evaluation] = field(default_factory=dict)
    """The same checkpoint sampled at each of several temperatures, this evaluation's included; empty for one temperature."""
    milestone: bool = False
    """Whether it is a checkpoint along the way, not one that RL starts from."""

    @property
    def tokens(self) -> int:
        """The text tokens the checkpoint was trained on: pre-training's plus mid-training's."""
        recipe = self.plan.cell.recipe
        first, later = recipe.pretrain, recipe.midtrain
        block = recipe.corpus.block_size
        if self.after == "pretrain":
            return self.step * first.global_batch * block
        before = first.steps * first.global_batch * block
        if later is None:
            return before
        steps = self.step if self.after == "midtrain" else later.steps
        return before + steps * later.global_batch * (later.corpus or recipe.corpus).block_size

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

    def values(self, metric: str, k: int | None = None) -> NDArray[np.float64]:
        """Per problem (k given) or per block."""
        return self.heldout[metric] if k is None else self.metrics[metric][k]


def load_evaluations(graph: Graph, home: Home) -> list[Evaluation]:
    """All finished evaluations, cell by cell, in training order."""
    found = []
    for plan in graph.cells:
        for after, at, node in measured_stages(plan):
            folder = node.folder(home)
            record = folder.record()
            if record is None or not isinstance(node.config, EvaluateStage):
                continue
            verify_manifest(folder.export, record["manifest"])
            details: Any = read_json(folder.export / "problems.json")
            benchmarks: Any = read_json(folder.export / "harness.json") or {}
            one = Evaluation(
                plan=plan,
                after=after,
                step=evaluated_step(plan, after, home) if at is None else at,
                n=node.config.evaluate.samples,
                problems=details["problems"],
                **_measured(details),
                step_seconds=_step_seconds(plan, home) if after == "rl" else np.array([]),
                harness={name: np.asarray(values) for name, values in benchmarks.get("values", {}).items()},
                milestone=at is not None,
            )
            further = {float(t): replace(one, **_measured(of_t)) for t, of_t in details.get("temperatures", {}).items()}
            found.append(replace(one, temperatures=further))
    return found


def _measured(details: dict[str, Any]) -> dict[str, Any]:
    return {
        "metrics": {name: {int(k): np.asarray(values) for k, values in by_k.items()} for name, by_k in details["metrics"].items()},
        "heldout": {name: np.asarray(values) for name, values in details["heldout"].items()},
    }


def measured_stages(plan: CellPlan) -> Iterator[tuple[str, int | None, StageNode]]:
    """Evaluations in training order: role, step (only for checkpoints along the way), and the evaluating stage."""
    for after, node in plan.evaluations.items():
        yield from ((role, step, early) for (role, step), early in plan.milestones.items() if role == after)
        yield after, None, node


def evaluated_step(plan: CellPlan, after: str, home: Home) -> int:
    """Optimizer steps behind the evaluated checkpoint in its stage; RL may export an earlier checkpoint than its last."""
    recipe = plan.cell.recipe
    if after == "midtrain" and recipe.midtrain is not None:
        return recipe.midtrain.steps
    if after != "rl" or recipe.rl is None:
        return recipe.pretrain.steps
    record = plan.chain["rl"].folder(home).record() if recipe.rl.export == "best" else None
    return recipe.rl.steps if record is None else int(record["metrics"]["exported_step"])


def _step_seconds(plan: CellPlan, home: Home) -> NDArray[np.float64]:
    return np.array([row["step_time"] for row in stage_rows(plan, "rl", home) if "step_time" in row][1:])


def stage_rows(plan: CellPlan, kind: str, home: Home) -> list[dict[str, float]]:
    """metrics.jsonl of a cell's stage, without an unfinished last line."""
    node = plan.chain.get(kind)
    path = None if node is None else node.folder(home).metrics
    if path is None or not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
