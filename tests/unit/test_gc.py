"""`gc`: a dry run unless told otherwise, and never anything that is needed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.errors import PriorlabError
from pipeline.home import garbage
from tests.unit.stores import Shelf, shelf_at

ONE_CELL = ("axes.prior=[ce]",)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return shelf_at(tmp_path)


def fill(shelf: Shelf, *overrides: str, name: str = "smoke") -> list[str]:
    """A finished sweep; the names of its stages."""
    graph = shelf.sweep(*overrides, name=name)
    for node in graph.stages.values():
        if node.folder(shelf.home).record() is None:
            shelf.done(node, size=1000)
    return [node.name for node in graph.stages.values()]


def on_disk(shelf: Shelf) -> set[str]:
    return {folder.name for folder in shelf.home.stages()}


def test_stages_of_a_removed_sweep_go_and_shared_ones_stay(shelf: Shelf) -> None:
    kept = fill(shelf, *ONE_CELL)
    dropped = fill(shelf, *ONE_CELL, "rl.steps=5", name="other")
    assert shelf.json("gc")["items"] == []
    shutil.rmtree(shelf.home.sweep("other"))
    everything = on_disk(shelf)
    found = shelf.json("gc")
    gone = [name for name in dropped if name not in kept]
    assert len(gone) == 2  # rl and its evaluation; corpus, pre-training and its evaluation are shared
    assert {item["path"] for item in found["items"]} == {str(shelf.home.path / "stages" / name) for name in gone}
    size = sum(p.stat().st_size for name in gone for p in (shelf.home.path / "stages" / name).rglob("*") if p.is_file())
    assert (found["deleted"], found["bytes"], found["kept_sweeps"]) == (False, size, ["smoke"])
    assert on_disk(shelf) == everything  # only shown
    assert f"no kept sweep needs these {size:,} bytes" in shelf.call("gc").output
    assert on_disk(shelf) == everything
    assert f"deleted {size:,} bytes" in shelf.call("gc", "--yes").output
    assert on_disk(shelf) == set(kept)
    assert not (shelf.home.path / "trash").exists()


def test_a_redefined_sweep_frees_what_only_its_old_definition_used(shelf: Shelf) -> None:
    old = fill(shelf, *ONE_CELL, "axes.seed=[0]")
    new = fill(shelf, *ONE_CELL, "axes.seed=[1]")
    assert shelf.call("gc", "--yes").exit_code == 0
    assert on_disk(shelf) == set(new)
    assert old[0] == new[0]  # the corpus


def test_a_running_stage_stays_with_all_it_was_computed_from(shelf: Shelf) -> None:
    names = fill(shelf, *ONE_CELL, name="dropped")
    graph = shelf.sweep("axes.prior=[tail]", "corpus.documents=20000")  # shares nothing with it
    shutil.rmtree(shelf.home.sweep("dropped"))
    running = shelf.home.path / "stages" / next(name for name in names if name.startswith("rl/"))
    lock = shelf.home.find_stage(str(running)).lock()
    assert lock is not None
    try:
        shelf.call("gc", "--yes")
    finally:
        os.close(lock)
    assert {name.partition("/")[0] for name in on_disk(shelf)} == {"corpus", "pretrain", "rl"}
    assert not any(node.folder(shelf.home).path.exists() for node in graph.stages.values())
    shelf.call("gc", "--yes")
    assert on_disk(shelf) == set()


def test_a_stage_started_between_looking_and_deleting_is_left_alone(shelf: Shelf) -> None:
    fill(shelf, *ONE_CELL, name="dropped")
    shelf.sweep("axes.prior=[tail]", "corpus.documents=20000")
    shutil.rmtree(shelf.home.sweep("dropped"))
    found = garbage.find(shelf.home)
    folder = found[0].stage
    assert folder is not None
    lock = folder.lock()
    assert lock is not None
    try:
        assert found[0] not in list(garbage.delete(found, shelf.home))
    finally:
        os.close(lock)
    assert on_disk(shelf) == {folder.name}


def test_leftovers_of_needed_stages_go_and_the_newest_log_stays(shelf: Shelf) -> None:
    plan = shelf.sweep(*ONE_CELL).cells[0]
    shelf.begun(plan.chain["pretrain"], log="first")
    shelf.begun(plan.chain["pretrain"], log="second")
    pretrain = shelf.done(plan.chain["pretrain"])
    (pretrain.checkpoints / "checkpoint-50").mkdir(parents=True)
    rl = shelf.begun(plan.chain["rl"])
    (rl.checkpoints / "checkpoint-1").mkdir(parents=True)  # to resume from
    (rl.path / "export.part").mkdir()
    (rl.path / "export.part" / "model.safetensors").write_bytes(b"half")
    (rl.path / ".record.json.123.tmp").write_text("{")
    found = {Path(item["path"]).relative_to(shelf.home.path / "stages").as_posix(): item for item in shelf.json("gc", "--yes")["items"]}
    names = {f"{folder.name}/{rest}" for folder, rest in [
        (pretrain, "attempts/0001"), (pretrain, "attempts/0002"), (pretrain, "checkpoints"),
        (rl, "export.part"), (rl, ".record.json.123.tmp"),
    ]}  # fmt: skip
    assert found.keys() == names
    assert found[f"{rl.name}/export.part"]["bytes"] == 4
    assert [path.name for path in pretrain.attempts()] == ["0003"]
    assert (pretrain.export / "model.safetensors").exists()
    assert (rl.checkpoints / "checkpoint-1").exists()


def test_nothing_is_deleted_while_it_is_unclear_what_is_needed(shelf: Shelf) -> None:
    fill(shelf, *ONE_CELL)
    before = on_disk(shelf)
    (shelf.home.sweep("smoke") / "cells.jsonl").write_text("{half")
    assert "it is unclear what sweep 'smoke' needs" in shelf.refusal("gc", "--yes")
    (shelf.home.sweep("smoke") / "cells.jsonl").unlink()
    assert "it is unclear what sweep 'smoke' needs" in shelf.refusal("gc", "--yes")
    (shelf.home.sweep("smoke") / "sweep.yaml").rename(shelf.home.sweep("smoke") / "report.html")
    assert "it is unclear what sweep 'smoke' needs" in shelf.refusal("gc", "--yes")
    shutil.rmtree(shelf.home.sweep("smoke"))
    assert "holds stages but no sweeps" in shelf.refusal("gc", "--yes")
    assert on_disk(shelf) == before


@pytest.mark.parametrize(
    ("file", "left", "said"),
    [
        ("cells.jsonl", 0, "cells.jsonl has 0 cells of 2"),
        ("cells.jsonl", 1, "cells.jsonl has 1 cells of 2"),
        ("sweep.yaml", 0, "sweep.yaml holds no definition"),
    ],
)
def test_a_definition_cut_at_the_end_of_a_line_deletes_nothing(file: str, left: int, said: str, shelf: Shelf) -> None:
    fill(shelf)
    before = on_disk(shelf)
    cut = shelf.home.sweep("smoke") / file
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:left]))
    for command in (("gc", "--yes"), ("report", "smoke"), ("resume", "smoke"), ("status", "smoke")):
        assert said in shelf.refusal(*command), command
    assert on_disk(shelf) == before
    shelf.sweep()  # starting it again mends it
    assert shelf.json("gc")["items"] == []


def test_a_sweep_that_never_started_keeps_nothing(shelf: Shelf) -> None:
    fill(shelf)
    with shelf.home.sweep_lock("other"):
        pass
    assert garbage.kept_sweeps(shelf.home) == ["smoke"]


def test_a_sweep_of_an_older_version_keeps_the_stages_it_lists(shelf: Shelf) -> None:
    names = fill(shelf, *ONE_CELL)
    listed = shelf.home.sweep("smoke") / "cells.jsonl"
    row = json.loads(listed.read_text())
    listed.write_text(json.dumps(row | {"recipe": {"renamed": 1}}))
    assert shelf.json("gc", "--yes")["items"] == []
    assert on_disk(shelf) == set(names)


def test_a_file_linked_elsewhere_frees_nothing(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "original").write_bytes(b"x" * 1000)
    folder = shelf.home.path / "trash" / "leftover"
    folder.mkdir(parents=True)
    (folder / "linked").hardlink_to(tmp_path / "original")
    (item,) = garbage.find(shelf.home)
    assert item.bytes == 0
    list(garbage.delete([item], shelf.home))
    assert (tmp_path / "original").exists()
    assert not folder.exists()


def test_an_unreadable_spec_of_a_needed_stage_stops_gc(shelf: Shelf) -> None:
    fill(shelf, *ONE_CELL)
    shelf.home.stages()[0].spec.write_text("{half")
    with pytest.raises(PriorlabError, match=r"spec\.json is not readable JSON"):
        garbage.find(shelf.home)
