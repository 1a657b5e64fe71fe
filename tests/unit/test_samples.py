"""samples.parquet, written today or by an older version: the greedy response is none of the samples, and temperatures stay apart."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.compare.results import write_samples
from pipeline.report.details import Response, _responses
from tests.unit.stores import shelf_at
from tests.unit.test_compare import evaluation

TODAY = {
    "problem_id": ["p"] * 4, "sample": pa.array([None, 0, 1, 0], pa.int32()), "greedy": [True, False, False, False],
    "temperature": [0.0, 0.7, 0.7, 1.5], "text": ["a", "b", "c", "d"], "correct": [True, False, True, False],
    "log_prob": pa.array([None, -2.0, -1.5, -9.0], pa.float32()),
}  # fmt: skip
OLDER = {"problem_id": ["p"] * 3, "sample": pa.array([-1, 0, 1], pa.int32()), "text": ["a", "b", "c"], "correct": [True, False, True]}
AXES = ("axes.prior=[ce,tail]", "evaluate.temperature=0.7", "evaluate.temperatures=[1.5]")


def test_older_files_of_a_sweep_get_the_columns_of_today(tmp_path: Path) -> None:
    """They numbered the greedy response -1, where a count of correct samples per problem takes it for one more."""
    shelf = shelf_at(tmp_path)
    graph = shelf.sweep(*AXES)
    for columns, plan in zip((TODAY, OLDER), graph.cells, strict=True):
        pq.write_table(pa.table(columns), shelf.done(plan.evaluations["pretrain"]).export / "samples.parquet")
    write_samples(tmp_path / "samples.parquet", graph, shelf.home)
    found = pq.read_table(tmp_path / "samples.parquet")
    assert found.column_names == ["cell", "task", "after", "step", *TODAY]
    for name, values in pa.table(TODAY).to_pydict().items():
        expected = [None] * 3 if name == "log_prob" else values[:3]
        assert found[name].to_pylist() == values + expected, name


def test_examples_of_a_report_are_of_the_protocols_temperature(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    for columns, plan in zip((TODAY, OLDER), shelf.sweep(*AXES).cells, strict=True):
        pq.write_table(pa.table(columns), shelf.done(plan.evaluations["pretrain"]).export / "samples.parquet")
        assert _responses(evaluation(plan, "pretrain", 0.5), ["p"], shelf.home) == {
            "p": [Response("a", True, True), Response("b", False, False), Response("c", True, False)]
        }
