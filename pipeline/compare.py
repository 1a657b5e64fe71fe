"""From finished evaluations to the comparison: results.csv, gains, and their intervals.

A gain is after RL minus before, paired per problem. Intervals are 95% percentile bootstraps over problems and, where there are several,
over seeds (hierarchical: seeds first, then problems), with a fixed generator so that the same results give the same table.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.recipe import EvaluateStage
from pipeline.errors import PriorlabError
from pipeline.graph import CellPlan, Graph, StageNode
from pipeline.store import Home, read_json, verify_manifest, write_text_atomically

COLUMNS = (
    "sweep", "cell", "prior", "beta", "lambda_head", "lambda_tail", "top_k", "form", "seed", "task", "exploration",
    "after", "step", "metric", "k", "n", "value", "ci_low", "ci_high",
)  # fmt: skip
HELDOUT_METRICS = ("perplexity", "cross_entropy", "entropy", "head_mass", "tail_mass")
_RESAMPLES = 4000
_SEED = 20251222


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
    """What each logged step of RL took, without the first, which warms up; empty before RL."""
    milestone: bool = False
    """Of a checkpoint along the way, which RL does not start from."""

    @property
    def tokens(self) -> int:
        """Of text that the checkpoint was trained on, mid-training's counted on top of pre-training's."""
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

    def values(self, metric: str, k: int | None = None) -> NDArray[np.float64]:
        """Per problem (k given) or per block."""
        return self.heldout[metric] if k is None else self.metrics[metric][k]


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def load_evaluations(graph: Graph, home: Home) -> list[Evaluation]:
    """All finished evaluations, cell by cell, in the order of training."""
    found = []
    for plan in graph.cells:
        for after, at, node in _measured(plan):
            folder = node.folder(home)
            record = folder.record()
            if record is None or not isinstance(node.config, EvaluateStage):
                continue
            verify_manifest(folder.export, record["manifest"])
            details: Any = read_json(folder.export / "problems.json")
            found.append(
                Evaluation(
                    plan=plan,
                    after=after,
                    step=_step(plan, after, home) if at is None else at,
                    n=node.config.evaluate.samples,
                    problems=details["problems"],
                    metrics={
                        name: {int(k): np.asarray(values) for k, values in by_k.items()} for name, by_k in details["metrics"].items()
                    },
                    heldout={name: np.asarray(values) for name, values in details["heldout"].items()},
                    step_seconds=_step_seconds(plan, home) if after == "rl" else np.array([]),
                    milestone=at is not None,
                )
            )
    return found


def _measured(plan: CellPlan) -> Iterator[tuple[str, int | None, StageNode]]:
    """Evaluations in the order of training: role, step for checkpoints along the way, and the stage."""
    for after, node in plan.evaluations.items():
        yield from ((role, step, early) for (role, step), early in plan.milestones.items() if role == after)
        yield after, None, node


def _step(plan: CellPlan, after: str, home: Home) -> int:
    """Optimizer steps that the evaluated checkpoint has seen in its stage; RL may hand on an earlier one than its last."""
    recipe = plan.cell.recipe
    if after == "midtrain" and recipe.midtrain is not None:
        return recipe.midtrain.steps
    if after != "rl" or recipe.rl is None:
        return recipe.pretrain.steps
    record = plan.chain["rl"].folder(home).record() if recipe.rl.export == "best" else None
    return recipe.rl.steps if record is None else int(record["metrics"]["exported_step"])


def _step_seconds(plan: CellPlan, home: Home) -> NDArray[np.float64]:
    return np.array([row["step_time"] for row in stage_rows(plan, "rl", home) if "step_time" in row][1:])


def bootstrap(values: NDArray[np.float64]) -> Interval:
    """Mean and 95% interval of `values`, shaped (problems,) or (seeds, problems)."""
    values = np.atleast_2d(values)
    rng = np.random.default_rng(_SEED)
    seeds, problems = values.shape
    by_problem = rng.multinomial(problems, np.full(problems, 1 / problems), size=_RESAMPLES) / problems
    if seeds == 1:
        means = by_problem @ values[0]
    else:
        # Resampling S seeds shows (S-1)/S of their variance; with 2 to 5 seeds, leaving that out makes 95% intervals cover 84 to 92%.
        seed_means = values.mean(axis=1, keepdims=True)
        widened = values + (np.sqrt(seeds / (seeds - 1)) - 1) * (seed_means - values.mean())
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds
        means = np.einsum("bs,sp,bp->b", by_seed, widened, by_problem, optimize=True)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def perplexity(block_cross_entropy: NDArray[np.float64]) -> Interval:
    interval = bootstrap(block_cross_entropy)
    return Interval(*np.exp([interval.value, interval.low, interval.high]).tolist())


def result_rows(sweep: str, evaluations: list[Evaluation]) -> Iterator[dict[str, Any]]:
    """The rows of results.csv, in the order of COLUMNS."""
    for evaluation in evaluations:
        recipe = evaluation.plan.cell.recipe
        prior = recipe.prior
        common = {
            "sweep": sweep, "cell": evaluation.plan.cell.id, "prior": prior.name, "beta": prior.beta,
            "lambda_head": prior.lambda_head, "lambda_tail": prior.lambda_tail, "top_k": prior.k if prior.rank_aware else "",
            "form": prior.form, "seed": recipe.seed, "task": recipe.task.name,
            "exploration": recipe.rl.exploration.name if recipe.rl is not None else "", "after": evaluation.after,
            "step": evaluation.step,
        }  # fmt: skip
        for metric, by_k in evaluation.metrics.items():
            for k, values in by_k.items():
                n = 1 if metric.startswith("greedy") else evaluation.n
                yield _row(common, metric, k, n, bootstrap(values))
        for metric in HELDOUT_METRICS:
            source = evaluation.heldout["cross_entropy" if metric == "perplexity" else metric]
            interval = perplexity(source) if metric == "perplexity" else bootstrap(source)
            head_k = recipe.evaluate.head_k if metric in ("head_mass", "tail_mass") else ""
            yield _row(common, metric, head_k, len(source), interval)
        if evaluation.step_seconds.size:
            steps = evaluation.step_seconds
            yield _row(common, "seconds_per_step", "", len(steps), bootstrap(steps))


def _row(common: dict[str, Any], metric: str, k: Any, n: int, interval: Interval) -> dict[str, Any]:
    numbers = {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high}
    return common | {"metric": metric, "k": k, "n": n} | {name: f"{number:.6g}" for name, number in numbers.items()}


def write_results(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())


def write_samples(path: Path, graph: Graph, home: Home) -> None:
    """All kept samples of the sweep in one parquet file; sample -1 is a problem's greedy response.

    A task may keep verdicts of further rules, each a column; where it has none of a rule, the column is null.
    """
    import pyarrow as pa  # not needed to plan or to answer a no-op
    import pyarrow.parquet as pq

    finished = [
        (plan, after, at, node.folder(home).export / "samples.parquet")
        for plan in graph.cells
        for after, at, node in _measured(plan)
        if node.folder(home).record() is not None
    ]
    if not finished:
        return
    kinds = [("cell", pa.string()), ("after", pa.string()), ("step", pa.int64())]
    schema = pa.unify_schemas([pa.schema(kinds), *(pq.read_schema(file) for *_, file in finished)])
    temporary = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for plan, after, at, file in finished:
            table = pq.read_table(file)
            step = _step(plan, after, home) if at is None else at
            for (name, kind), value in zip(kinds, (plan.cell.id, after, step), strict=True):
                table = table.append_column(name, pa.array([value] * len(table), kind))
            columns = [
                table[column.name] if column.name in table.column_names else pa.nulls(len(table), column.type) for column in schema
            ]
            writer.write_table(pa.table(columns, schema=schema))
    temporary.replace(path)


@dataclass(frozen=True)
class Arm:
    """All seeds of one setting: the unit of comparison."""

    name: str
    prior: str
    seeds: list[int]
    before: list[Evaluation]
    after: list[Evaluation]

    def before_at(self, metric: str, k: int | None = None) -> Interval:
        return _pooled(self.before, metric, k)

    def after_at(self, metric: str, k: int | None = None) -> Interval | None:
        return _pooled(self.after, metric, k) if self.after else None

    def gain_at(self, metric: str, k: int) -> Interval | None:
        """After minus before, paired per problem and cell; None while a cell lacks one of the two."""
        after_by_cell = {evaluation.plan.cell.id: evaluation for evaluation in self.after}
        if not self.after or after_by_cell.keys() != {evaluation.plan.cell.id for evaluation in self.before}:
            return None
        differences = []
        for before in self.before:
            after = after_by_cell[before.plan.cell.id]
            if before.problems != after.problems:
                raise PriorlabError(f"cell {before.plan.cell.id} was measured on other problems after RL than before")
            differences.append(after.values(metric, k) - before.values(metric, k))
        return bootstrap(np.stack(differences))


def _pooled(evaluations: list[Evaluation], metric: str, k: int | None) -> Interval:
    if metric == "perplexity":
        return perplexity(np.stack([e.values("cross_entropy") for e in evaluations]))
    return bootstrap(np.stack([e.values(metric, k) for e in evaluations]))


def arms(evaluations: list[Evaluation]) -> list[Arm]:
    """Cells that differ only in their seed form one arm; cells not yet evaluated before RL are left out."""
    grouped: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        grouped.setdefault(_arm_name(evaluation.plan), []).append(evaluation)
    found = []
    for name, members in grouped.items():
        before = [e for e in members if e.after == e.plan.base and not e.milestone]
        after = [e for e in members if e.after == "rl"]
        if before:
            recipe = before[0].plan.cell.recipe
            found.append(Arm(name, recipe.prior.name, [e.plan.cell.recipe.seed for e in before], before, after))
    return found


def _arm_name(plan: CellPlan) -> str:
    coordinates = {path: value for path, value in plan.cell.coordinates.items() if path != "seed"}
    words = [str(value) if path == "prior" else f"{path}={value}" for path, value in coordinates.items()]
    return " ".join(words) or plan.cell.recipe.prior.name


def shown_ks(evaluations: list[Evaluation]) -> list[int]:
    """The columns of the table: 1, 8 and the number of samples, as far as measured by all."""
    common = set.intersection(*(set(e.metrics["pass@k"]) for e in evaluations)) if evaluations else set()
    return sorted(common & {1, 8, max(common)}) if common else []


def summary_rows(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """The comparison as plain data, one row per arm: what the terminal, the report, W&B and --json show."""
    ks = shown_ks(evaluations)
    rows = []
    for arm in arms(evaluations):
        row: dict[str, Any] = {"arm": arm.name, "prior": arm.prior, "seeds": arm.seeds}
        for metric in ("entropy", "perplexity"):
            row[metric] = _as_dict(arm.before_at(metric))
        for k in ks:
            row[f"pass@{k}"] = {
                "before": _as_dict(arm.before_at("pass@k", k)),
                "after": _as_dict(arm.after_at("pass@k", k)),
                "gain": _as_dict(arm.gain_at("pass@k", k)),
            }
        rows.append(row)
    return rows


def _as_dict(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def stage_rows(plan: CellPlan, kind: str, home: Home) -> list[dict[str, float]]:
    """metrics.jsonl of a cell's stage; an unfinished last line is left out."""
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
