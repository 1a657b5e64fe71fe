"""results.csv and samples.parquet of a sweep; docs/comparison.md describes their columns."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.compare.evaluations import Evaluation, evaluated_step
from pipeline.compare.intervals import Interval, mean_interval, perplexity
from pipeline.compare.samples import with_current_columns
from pipeline.experiment.graph import Graph
from pipeline.store.folders import Home

COLUMNS = (
    "sweep", "cell", "prior", "objective", "knobs", "seed", "task", "exploration",
    "after", "step", "temperature", "metric", "k", "n", "value", "ci_low", "ci_high",
)  # fmt: skip
HELDOUT_METRICS = ("perplexity", "cross_entropy", "entropy", "head_mass", "tail_mass")


def result_rows(sweep: str, evaluations: list[Evaluation]) -> Iterator[dict[str, Any]]:
    """The rows of results.csv, in the order of COLUMNS."""
    for evaluation in evaluations:
        recipe = evaluation.plan.cell.recipe
        prior = recipe.prior
        common = {
            "sweep": sweep, "cell": evaluation.plan.cell.id, "prior": prior.name, "objective": prior.kind, "knobs": prior.knobs_text,
            "seed": recipe.seed, "task": recipe.measured_on,
            "exploration": recipe.rl.exploration.name if recipe.rl is not None else "", "after": evaluation.after,
            "step": evaluation.step, "temperature": "",
        }  # fmt: skip
        protocol = recipe.evaluate
        yield from _of_samples(common, evaluation, protocol.temperature)
        yield from _of_text(common, evaluation, 1.0)
        for at, one in evaluation.temperatures.items():
            if at != protocol.temperature:
                yield from _of_samples(common, one, at)
            if at != 1:
                yield from _of_text(common, one, at)
        for name, of_set in evaluation.sets.items():
            for at, one in ({protocol.temperature: of_set} | of_set.temperatures).items():
                yield from _of_samples(common | {"task": name}, one, at)
        for name, values in evaluation.harness.items():
            yield _row(common, f"harness/{name}", "", len(values), mean_interval(values))
        if evaluation.step_seconds.size:
            steps = evaluation.step_seconds
            yield _row(common, "seconds_per_step", "", len(steps), mean_interval(steps))


def _of_samples(common: dict[str, Any], evaluation: Evaluation, temperature: float) -> Iterator[dict[str, Any]]:
    for metric, by_k in evaluation.metrics.items():
        n, at = (1, 0.0) if metric.startswith("greedy") else (evaluation.n, temperature)
        for k, values in by_k.items():
            yield _row(common | {"temperature": at}, metric, k, n, mean_interval(values, evaluation.sizes))


def _of_text(common: dict[str, Any], evaluation: Evaluation, temperature: float) -> Iterator[dict[str, Any]]:
    for metric in HELDOUT_METRICS:
        source = evaluation.heldout["cross_entropy" if metric == "perplexity" else metric]
        interval = perplexity(source) if metric == "perplexity" else mean_interval(source)
        head_k = evaluation.plan.cell.recipe.evaluate.head_k if metric in ("head_mass", "tail_mass") else ""
        yield _row(common | {"temperature": temperature}, metric, head_k, len(source), interval)


def _row(common: dict[str, Any], metric: str, k: Any, n: int, interval: Interval) -> dict[str, Any]:
    numbers = {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high}
    texts = {name: f"{number:.6g}" if math.isfinite(number) else "" for name, number in numbers.items()}
    return common | {"metric": metric, "k": k, "n": n} | texts


def results_text(rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_samples(path: Path, graph: Graph, home: Home) -> None:
    """All kept samples of the sweep in one parquet file.

    A task may keep verdicts of further rules, one column each; the column is null for tasks without the rule.
    """
    import pyarrow as pa  # not needed to plan or to answer a no-op
    import pyarrow.parquet as pq

    finished = [
        (plan, after, at, name, node.folder(home).export / "samples.parquet")
        for plan in graph.cells
        for after, at, on_sets in plan.measurements()
        for name, node in on_sets.items()
        if node.folder(home).record() is not None
    ]
    kinds = [("cell", pa.string()), ("task", pa.string()), ("after", pa.string()), ("step", pa.int64())]
    columns_of = [
        with_current_columns(pq.read_schema(file).empty_table(), plan.cell.recipe.evaluate).schema for plan, *_, file in finished
    ]
    schema = pa.unify_schemas([pa.schema(kinds), *columns_of])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # its own: another command may write the same file
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for plan, after, at, name, file in finished:
                table = with_current_columns(pq.read_table(file), plan.cell.recipe.evaluate)
                step = evaluated_step(plan, after, home) if at is None else at
                for (column, kind), value in zip(kinds, (plan.cell.id, name, after, step), strict=True):
                    table = table.append_column(column, pa.array([value] * len(table), kind))
                columns = [table[of.name] if of.name in table.column_names else pa.nulls(len(table), of.type) for of in schema]
                writer.write_table(pa.table(columns, schema=schema))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
