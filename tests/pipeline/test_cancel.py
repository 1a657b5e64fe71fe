"""`cancel` on real drivers and stages: what it ends, what it leaves, and what drivers make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.store import lease
from pipeline.store.folders import StageFolder
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
        assert "blocked by failed or cancelled stages: 2 more" in printed
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
    taken = taken_elsewhere(folder, monkeypatch)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.01)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.01):
            taken.beat()

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        for name in ("pretrain/ce-s0", "smoke"):
            assert "run the command on that machine" in shelf.refusal("cancel", name)
            assert not folder.cancelled.exists()
    finally:
        ended.set()
        beating.join()


def taken_elsewhere(folder: StageFolder, monkeypatch: pytest.MonkeyPatch) -> lease.Lease:
    with monkeypatch.context() as there:
        there.setattr(lease, "machine", lambda: "there")
        taken = lease.take(folder.path)
    assert taken is not None
    return taken


@pytest.mark.parametrize("name", ["pretrain/ce-s0", "smoke"])
def test_a_stage_that_a_reboot_ended_is_not_running_once_it_has_been_silent(
    name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine counts as another one since."""
    shelf = Shelf(lab.home)
    folder = shelf.begun(shelf.sweep("axes.prior=[ce]").cells[0].chain["pretrain"])
    taken_elsewhere(folder, monkeypatch)
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.01)
    done = shelf.call("cancel", name)
    assert done.exit_code == 0
    assert "waiting up to 0 seconds for a sign of life" in done.output
    assert f"nothing to cancel: {name} is not running" in done.output
    assert not folder.is_held()


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
