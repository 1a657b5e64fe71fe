"""`diff` and the reasons that `plan` gives: field by field, parents included."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli import terminal
from pipeline.config.stages import KINDS
from pipeline.experiment.graph import Graph
from pipeline.store.files import write_json_atomically
from tests.unit.stores import Shelf, shelf_at

ONE_CELL = ("axes.prior=[ce]",)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return shelf_at(tmp_path)


def finish(shelf: Shelf, graph: Graph) -> None:
    for node in graph.stages.values():
        if node.folder(shelf.home).record() is None:
            shelf.done(node)


def test_stages_differ_in_their_own_fields_and_their_parents(shelf: Shelf) -> None:
    small, large = shelf.sweep(*ONE_CELL), shelf.sweep(*ONE_CELL, "corpus.documents=20000", "rl.steps=4", name="large")
    for graph in (small, large):
        finish(shelf, graph)
    before, after = (graph.cells[0].evaluations["rl"] for graph in (small, large))
    found = shelf.json("diff", before.fingerprint[:12], after.fingerprint[:12])
    assert (found["before"], found["after"]) == (before.name, after.name)
    assert found["differences"] == [  # the corpus is reached by two ways, and compared once
        "parents.checkpoint.rl.steps: 3 -> 4",
        "parents.checkpoint.parents.checkpoint.parents.corpus.corpus.documents: 10000 -> 20000",
    ]
    shutil.rmtree(small.cells[0].chain["corpus"].folder(shelf.home).path)
    assert "its folder is gone" in shelf.json("diff", before.fingerprint[:12], after.fingerprint[:12])["differences"][-1]


def test_execution_settings_are_not_a_difference(shelf: Shelf) -> None:
    finish(shelf, shelf.sweep(*ONE_CELL))
    assert shelf.json("diff", "pretrain/ce-s0", "pretrain/ce-s0")["differences"] == []
    assert "the same experiment" in shelf.call("diff", "pretrain/ce-s0", "pretrain/ce-s0").output


def test_cells_differ_in_their_recipes_and_share_stages(shelf: Shelf) -> None:
    graph = shelf.sweep("axes.rl.steps=[3,4]", "axes.prior=[ce]")
    found = shelf.json("diff", f"smoke:{graph.cells[0].cell.id}", f"smoke:{graph.cells[1].cell.id}")
    assert found["differences"] == ["rl.steps: 3 -> 4"]
    plan = graph.cells[0]
    assert found["shared"] == [plan.chain["corpus"].name, plan.chain["pretrain"].name, plan.evaluations["pretrain"].name]
    assert "it has ce-steps3, ce-steps4" in shelf.refusal("diff", "smoke:ce", "smoke:tail")
    assert "give two stages, or two cells" in shelf.refusal("diff", "smoke:ce", "abcd")


def test_cells_differ_in_where_rl_starts(shelf: Shelf) -> None:
    graph = shelf.sweep("axes.rl.start=[0.5,1]", "axes.prior=[ce]", "pretrain.evaluate_at=[0.5]")
    one, other = (plan.cell.id for plan in graph.cells)
    assert shelf.json("diff", f"smoke:{one}", f"smoke:{other}")["differences"] == ["rl.start: 0.5 -> 1.0"]


def test_plan_says_in_which_fields_a_new_stage_differs_from_the_nearest_older_one(shelf: Shelf) -> None:
    finish(shelf, shelf.sweep(*ONE_CELL))
    finish(shelf, shelf.sweep(*ONE_CELL, "pretrain.steps=1000", "pretrain.optimizer.weight_decay=0.3", name="far"))
    (plan,) = shelf.sweep(*ONE_CELL, name="near").cells
    entries = {e["stage"]: e for e in shelf.json("plan", "smoke", *ONE_CELL, "pretrain.steps=400", "prior.beta=-0.1")}
    assert entries[plan.chain["corpus"].name]["why"] == "made in sweep smoke"
    assert entries[plan.chain["corpus"].name]["drift"] is None
    # prior.beta makes it another prior, with a slug of its own: no older record to differ from
    assert {e["drift"] for e in entries.values()} == {None}
    entries = {e["kind"]: e for e in shelf.json("plan", "smoke", *ONE_CELL, "pretrain.steps=400", "rl.steps=5")}
    assert entries["pretrain"]["drift"] == {"from": plan.chain["pretrain"].name, "fields": ["pretrain.steps: 300 -> 400"]}
    assert entries["pretrain"]["why"] == f"not {plan.chain['pretrain'].name}: pretrain.steps: 300 -> 400"
    changed = f"parents.checkpoint: {plan.chain['pretrain'].name} -> {entries['pretrain']['stage']}"
    assert entries["rl"]["drift"]["fields"] == ["rl.steps: 3 -> 5", changed]


def test_plan_names_a_raised_recipe_version(shelf: Shelf) -> None:
    plan = shelf.sweep(*ONE_CELL).cells[0]
    shelf.done(plan.chain["corpus"])
    made = shelf.done(plan.chain["pretrain"])
    older = made.path.with_name("ce-s0-0123456789ab")
    made.path.rename(older)
    for file in ("spec.json", "record.json"):
        value = json.loads((older / file).read_text())
        write_json_atomically(older / file, value | {"recipe_version": 0, "fingerprint": "0123456789ab" + "0" * 52})
    entries = {e["kind"]: e for e in shelf.json("plan", "smoke", *ONE_CELL)}
    raised = f"recipe_version: 0 -> {KINDS['pretrain'].version}"
    assert entries["pretrain"]["drift"] == {"from": "pretrain/ce-s0-0123456789ab", "fields": [raised]}


def test_a_narrow_terminal_cuts_nothing_of_a_plan(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(shelf, shelf.sweep(*ONE_CELL))
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "console", screen)
    shelf.call("plan", "smoke", *ONE_CELL, "pretrain.steps=400")
    shown: str = screen.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for entry in shelf.json("plan", "smoke", *ONE_CELL, "pretrain.steps=400"):
        for part in (entry["stage"], f"state {entry['state']}", entry["work"], entry["why"], *entry["cells"]):
            assert part in " ".join(shown.split())
