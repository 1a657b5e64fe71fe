"""`report` on a sweep with finished evaluations: what is shown, filtered and refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.format import share, signed, with_interval
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import StageNode, build_graph
from pipeline.experiment.saved import save_definition
from pipeline.store.files import manifest_of, read_json, write_json_atomically
from tests.unit.stores import Shelf, shelf_at
from tests.unit.test_compare import evaluation
from tests.unit.test_statistics import measured

AXES = ("axes.prior=[ce,tail]", "axes.seed=[0]", "evaluate.samples=8")


def stored(shelf: Shelf, evaluations: Iterable[tuple[StageNode, Evaluation]], *overrides: str) -> None:
    """A sweep `mine` with these evaluations finished."""
    sweep = load_sweep("quickstart", [*AXES, "tracking.mode=disabled", *overrides], rename="mine")
    with shelf.home.sweep_lock(sweep.name):
        save_definition(sweep, build_graph(sweep.cells()), shelf.home)
    for node, one in evaluations:
        folder = shelf.done(node)
        details = {"problems": one.problems, **as_stored(one)}
        if one.temperatures:
            details["temperatures"] = {str(at): as_stored(of) for at, of in one.temperatures.items()}
        write_json_atomically(folder.export / "problems.json", details)
        row = {"problem_id": "p0", "sample": -1, "text": "", "correct": False}
        pq.write_table(pa.Table.from_pylist([row]), folder.export / "samples.parquet")
        record = read_json(folder.record_file)
        assert isinstance(record, dict)
        write_json_atomically(folder.record_file, record | {"manifest": manifest_of(folder.export)})


def as_stored(one: Evaluation) -> dict[str, Any]:
    metrics = {name: {str(k): values.tolist() for k, values in by_k.items()} for name, by_k in one.metrics.items()}
    return {"metrics": metrics, "heldout": {name: values.tolist() for name, values in one.heldout.items()}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = shelf_at(tmp_path_factory.mktemp("finished"))
    stored(shelf, [(one.plan.evaluations[one.after], one) for one in measured({"ce": 0.0, "tail": 0.1}, "evaluate.samples=8")])
    return shelf


def test_a_filter_chooses_settings_in_the_table_in_json_and_in_csv(finished: Shelf) -> None:
    shown = finished.call("report", "mine", "--filter", "ce").output
    assert "\nce " in shown
    assert "\ntail " not in shown.partition("after RL, compared")[0]
    assert "over all settings:" in shown
    found = finished.json("report", "mine", "--filter", "tail")
    assert [row["setting"] for row in found["rows"]] == ["tail"]
    assert {(one["setting"], one["reference"]) for one in found["differences"]} == {("tail", "ce")}
    rows = list(csv.DictReader(io.StringIO(finished.call("report", "mine", "--csv", "--filter", "tail").output)))
    assert {row["cell"] for row in rows} == {"tail-seed0"}
    for output in ([], ["--csv"], ["--json"]):  # cells are called ce-seed0, settings are not
        assert "matches no setting; there are: ce, tail" in finished.refusal("report", "mine", "--filter", "seed0", *output)


@pytest.mark.parametrize(
    "options", [("--csv", "--sort", "setting"), ("--csv", "--bayes"), ("--csv", "--json"), ("--json", "--bayes")], ids=" ".join
)
def test_options_without_effect_are_refused(finished: Shelf, options: tuple[str, ...]) -> None:
    assert "does not change what" in finished.refusal("report", "mine", *options)


def test_a_posterior_gain_is_labelled_as_one(finished: Shelf) -> None:
    assert "posterior gain [95% credible]" in finished.call("report", "mine", "--bayes").output
    assert "posterior" not in finished.call("report", "mine").output


def test_with_only_checkpoints_along_the_way_there_is_no_table_but_a_csv(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    early = "pretrain.evaluate_at=[0.25]"
    plan = build_graph(load_sweep("quickstart", [*AXES, early, "tracking.mode=disabled"]).cells()).cells[0]
    ((_, step), node) = next(iter(plan.milestones.items()))
    stored(shelf, [(node, replace(evaluation(plan, "pretrain", 0.5), milestone=True, step=step))], early)
    assert "no finished evaluation before RL yet; `priorlab status mine`" in shelf.refusal("report", "mine")
    assert "pretrain" in shelf.call("report", "mine", "--csv").output


def test_numbers_past_one_keep_their_digits() -> None:
    assert with_interval(1.4, 0.9996, 1.8) == "+1.40 [+1.00, +1.80]"
    assert (share(0.0834), share(1.0), signed(-12.5)) == (".083", "1.00", "-12.50")
