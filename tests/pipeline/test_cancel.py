"""`cancel` on real drivers and stages: what it ends, what it leaves, and what drivers make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.store import lease
from tests.conftest import Lab, smoke_graph
from tests.unit.stores import Shelf

LONG = ("axes.prior=[ce]", "rl=null", "corpus.documents=100000000")
"""A corpus that takes hours."""


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.time() + 60
    while not is_so():
        assert time.time() < deadline
        time.sleep(0.02)


@pytest.fixture
def driver(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    process = lab.start("sweep", "smoke", *LONG)
    yield process
    process.kill()
    process.wait()


def test_a_cancelled_stage_is_reported_and_not_started_again(lab: Lab, driver: subprocess.Popen[str]) -> None:
    node = smoke_graph(*LONG).cells[0].chain["corpus"]
    folder = lab.folder(node)
    wait_for(folder.status.exists)
    waiting = lab.start("sweep", "smoke", *LONG, "--name", "other")  # shares the corpus, and waits for it
    wait_for(lambda: (lab.home.sweep("other") / "cells.jsonl").exists())
    time.sleep(1)
    done = lab.call("cancel", node.fingerprint[:8])
    assert (done.returncode, done.stdout) == (0, f"cancelled {node.name}\n")
    for process in (driver, waiting):
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert f"{node.name} cancelled" in printed
        assert "blocked by what failed or was cancelled: 2 more" in printed
        assert "Traceback" not in printed
    assert len(folder.attempts()) == 1
    assert not folder.is_held()
    states = [entry["state"] for entry in json.loads(lab.call("status", "smoke", "--json").stdout)]
    assert states == ["cancelled", "new", "new"]
    again = lab.start("resume", "smoke")
    wait_for(lambda: len(folder.attempts()) == 2 and folder.is_held())
    assert not folder.cancelled.exists()
    assert lab.call("cancel", "smoke").returncode == 0
    again.communicate(timeout=60)


def test_cancelling_a_sweep_ends_its_driver_and_its_stages(lab: Lab, driver: subprocess.Popen[str]) -> None:
    node = smoke_graph(*LONG).cells[0].chain["corpus"]
    folder = lab.folder(node)
    wait_for(folder.status.exists)
    done = lab.call("cancel", "smoke")
    assert done.stdout.splitlines() == [f"stopped the command that ran sweep smoke (process {driver.pid})", f"cancelled {node.name}"]
    printed, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "`priorlab resume smoke` continues where it stopped" in printed
    assert not folder.is_held()
    assert "nothing to cancel: smoke is not running" in lab.call("cancel", "smoke").stdout


STAND_IN = """
import sys, time
from pathlib import Path
from pipeline.store.files import take_lock
spec = Path(sys.argv[-1])
if sys.argv[1] == "holds":
    descriptor = take_lock(spec.parent / "lock")
print("ready", flush=True)
time.sleep(60)
"""


def stand_in(word: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, word, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_only_the_holder_of_the_lock_is_ended_whatever_the_status_says(tmp_path: Path, lab: Lab) -> None:
    shelf = Shelf(lab.home)
    node = shelf.sweep("axes.prior=[ce]").cells[0].chain["pretrain"]
    bystander = stand_in("idle", "--spec", str(node.folder(lab.home).spec))
    folder = shelf.begun(node, state="running", pid=bystander.pid, time=1.0)
    assert "nothing to cancel" in shelf.call("cancel", "pretrain/ce-s0").output
    holder = stand_in("holds", "--spec", os.path.relpath(folder.spec))  # as by hand, from this folder
    try:
        assert shelf.call("cancel", "pretrain/ce-s0").output == f"cancelled {node.name}\n"
        assert holder.wait(timeout=10) == -15
        assert bystander.poll() is None
    finally:
        for process in (bystander, holder):
            process.kill()
            process.wait()


def test_a_stage_on_another_machine_is_left_alone_and_the_machine_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where locks do not reach other machines."""
    shelf = Shelf(lab.home)
    node = shelf.sweep("axes.prior=[ce]").cells[0].chain["pretrain"]
    folder = shelf.begun(node)
    with monkeypatch.context() as there:
        there.setattr(lease, "machine", lambda: "there")
        assert lease.take(folder.path) is not None
    for name in ("pretrain/ce-s0", "smoke"):
        assert "run the command on that machine" in shelf.refusal("cancel", name)
        assert not folder.cancelled.exists()


def test_a_holder_that_is_no_stage_is_left_alone_and_named(lab: Lab) -> None:
    shelf = Shelf(lab.home)
    node = shelf.sweep("axes.prior=[ce]").cells[0].chain["pretrain"]
    folder = shelf.begun(node)
    holder = stand_in("holds", str(folder.spec))  # holds the lock, but was not started as this stage
    try:
        assert f"is held by process {holder.pid} on " in shelf.refusal("cancel", "pretrain/ce-s0")
        assert holder.poll() is None
        assert not folder.cancelled.exists()
    finally:
        holder.kill()
        holder.wait()
