"""`status` and `logs`: what they say about stages in every state, read no more often than needed."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.files import write_json_atomically
from pipeline.store.folders import StageFolder, status_of
from pipeline.store.progress import rate
from stages.contract import Stage
from stages.guard import Guard
from tests.unit.stores import Shelf, shelf_at

RUNNING: dict[str, Any] = {"state": "running", "pid": 1, "started": 0.0, "unit": "steps", "shown": {"loss": 1.5}}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return shelf_at(tmp_path)


def seen_while_held(shelf: Shelf, folder: StageFolder) -> Any:
    """What `status` says of the only stage while a process runs it."""
    lock = folder.lock()
    assert lock is not None
    try:
        (entry,) = shelf.json("status")
    finally:
        os.close(lock)
    return entry


def test_a_running_stage_has_rate_time_left_attempts_and_log(shelf: Shelf) -> None:
    node = shelf.sweep("axes.prior=[ce]", "rl=null").cells[0].chain["pretrain"]
    shelf.begun(node)
    since = {"unit": "steps", "step": 100, "time": 1000.0}  # resumed at step 100
    folder = shelf.begun(node, **RUNNING, step=160, total=300, time=1020.0, since=since)
    entry = seen_while_held(shelf, folder)
    assert entry == {
        "stage": node.name, "state": "running", "step": 160, "total": 300, "unit": "steps", "rate": 3.0,
        "seconds_left": pytest.approx(140 / 3), "reported": 1020.0, "attempts": 2, "progress": "160/300 steps  loss 1.5",
        "log": str(folder.path / "attempts" / "0002" / "stdout.log"), "folder": str(folder.path),
    }  # fmt: skip


def test_a_stage_reports_from_where_its_attempt_counts(shelf: Shelf) -> None:
    folder = shelf.begun(shelf.sweep("axes.prior=[ce]", "rl=null").cells[0].chain["pretrain"])
    stage = Stage(folder.spec, Guard())
    stage.progress(0, 0, "starting")
    time.sleep(0.6)  # reports are at least half a second apart
    stage.progress(110, 300, "steps", loss=2.0)
    assert rate(status_of(folder)) is None  # one report says nothing of speed
    time.sleep(0.6)
    stage.progress(140, 300, "steps", loss=1.0)
    assert status_of(folder)["since"]["step"] == 110
    assert rate(status_of(folder)) == pytest.approx(30 / 0.6, rel=0.5)


def test_what_is_not_running_has_neither_rate_nor_time_left(shelf: Shelf) -> None:
    node = shelf.sweep("axes.prior=[ce]", "rl=null").cells[0].chain["pretrain"]
    shelf.begun(node, **RUNNING, step=160, total=300, time=20.0, since={"unit": "steps", "step": 100, "time": 0.0})
    (entry,) = shelf.json("status")
    assert (entry["state"], entry["rate"], entry["seconds_left"], entry["step"]) == ("unfinished", None, None, 160)


@pytest.mark.parametrize(
    "odd",
    [
        {"state": "running", "total": 5, "since": {}},
        {"state": "running", "total": "5", "step": 1, "time": 2, "since": {"step": 0, "time": 0}},
        {"state": "running", "total": 5, "unit": "steps"},
        {"shown": {"loss": "low"}},
        {"state": "failed", "message": 5},
    ],
)
def test_a_status_that_no_stage_wrote_hides_no_stage(odd: dict[str, Any], shelf: Shelf) -> None:
    node = shelf.sweep("axes.prior=[ce]", "rl=null").cells[0].chain["pretrain"]
    folder = shelf.begun(node)
    write_json_atomically(folder.status, odd)
    entry = seen_while_held(shelf, folder)
    assert (entry["state"], entry["step"]) == ("running", None)


def test_looking_neither_takes_the_lock_nor_creates_files(shelf: Shelf) -> None:
    node = shelf.sweep("axes.prior=[ce]", "rl=null").cells[0].chain["pretrain"]
    folder = shelf.begun(node, **RUNNING, step=1, total=3, time=20.0)
    before = sorted(folder.path.rglob("*"))
    shelf.json("status")
    assert sorted(folder.path.rglob("*")) == before


def test_stages_are_chosen_by_sweep_and_state(shelf: Shelf) -> None:
    graph = shelf.sweep("axes.prior=[ce]", "rl=null")
    other = shelf.sweep("axes.prior=[tail]", "rl=null", name="other")
    plan = graph.cells[0]
    shelf.done(plan.chain["corpus"])
    shelf.begun(plan.chain["pretrain"], state="failed", message="the loss is nan", time=1.0)
    shelf.done(other.cells[0].chain["pretrain"])
    assert [entry["state"] for entry in shelf.json("status", "smoke")] == ["done", "failed", "new"]
    assert [entry["state"] for entry in shelf.json("status", "other")] == ["done", "done", "new"]
    assert [entry["stage"] for entry in shelf.json("status", "--state", "failed")] == [plan.chain["pretrain"].name]
    assert "a stage is one of running, queued, failed" in shelf.refusal("status", "--state", "broken")
    assert "there are: other, smoke" in shelf.refusal("status", "nothing")
    shown = shelf.call("status").output
    assert "the loss is nan" in shown
    assert "3 stages: 1 failed, 2 done" in shown
    assert f"log of {plan.chain['pretrain'].name}: " in shown


def test_a_damaged_record_does_not_hide_the_other_stages(shelf: Shelf) -> None:
    plan = shelf.sweep("axes.prior=[ce]", "rl=null").cells[0]
    shelf.done(plan.chain["corpus"]).record_file.write_text("{half")
    shelf.done(plan.chain["pretrain"])
    damaged, whole = shelf.json("status")
    assert (damaged["state"], whole["state"]) == ("damaged", "done")
    assert "record.json is not readable JSON" in damaged["progress"]


@pytest.mark.parametrize("arguments", [(), ("smoke",)], ids=["all", "of a sweep"])
def test_no_file_of_a_thousand_stages_is_read_more_than_twice(
    shelf: Shelf, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = shelf.sweep(f"axes.seed={list(range(125))}")
    nodes = list(graph.stages.values())
    assert len(nodes) > 1000
    for number, node in enumerate(nodes):
        if number % 3:
            shelf.done(node)
        else:
            shelf.begun(node, **RUNNING, step=1, total=3, time=20.0)
    read: Counter[Path] = Counter()
    read_text = Path.read_text

    def counted(path: Path, *given: Any, **named: Any) -> str:
        read[path] += 1
        return read_text(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", counted)
    started = time.process_time()
    assert len(shelf.json("status", *arguments)) == len(nodes)
    assert time.process_time() - started < 5.0  # of the CPU: 0.2 s, unless it grows with more than their number
    assert {times for path, times in read.items() if path.name == "record.json"} == {1}
    assert max(read.values()) <= 2


def test_logs_are_those_of_the_newest_attempt_or_of_the_one_asked_for(shelf: Shelf) -> None:
    plan = shelf.sweep("axes.prior=[ce]").cells[0]
    node = plan.chain["pretrain"]
    shelf.begun(node, log="first\n")
    shelf.begun(node, log="second\n")
    shelf.begun(plan.chain["rl"], log="rl\n")
    assert shelf.call("logs", node.fingerprint[:8]).output == "second\n"
    assert shelf.call("logs", "pretrain/ce-s0", "--attempt", "1").output == "first\n"
    assert shelf.call("logs", "pretrain/ce-s0", "--follow").output == "second\n"  # nobody runs it, so nothing is waited for
    assert f"matches several stages ({node.name}, {plan.chain['rl'].name})" in shelf.refusal("logs", "ce-s0")
    assert "no log of attempt 3; there are logs of: 1, 2" in shelf.refusal("logs", "pretrain/ce-s0", "--attempt", "3")


def test_following_a_log_ends_with_the_stage_and_misses_nothing(shelf: Shelf) -> None:
    node = shelf.sweep("axes.prior=[ce]").cells[0].chain["pretrain"]
    folder = shelf.begun(node, log="begun\n")
    log = folder.last_log()
    code = (
        "import sys; from time import sleep; from pathlib import Path; from pipeline.store.files import take_lock; "
        "take_lock(Path(sys.argv[1]) / 'lock'); "
        "print('held', flush=True); log = open(sys.argv[2], 'a'); sleep(.5); log.write('working\\n'); log.flush(); "
        "sleep(.5); log.write('ended\\n'); log.flush()"
    )
    stage = subprocess.Popen([sys.executable, "-c", code, str(folder.path), str(log)], stdout=subprocess.PIPE)
    assert stage.stdout is not None
    stage.stdout.readline()
    assert shelf.call("logs", node.fingerprint[:8], "--follow").output == "begun\nworking\nended\n"
    assert stage.wait(timeout=30) == 0
