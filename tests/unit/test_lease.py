"""Leases between machines: one holder, no clock compared, a silent one replaced, and a replaced one kept from committing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import PriorlabError
from pipeline.store import lease
from pipeline.store.folders import StageFolder
from stages.contract import Stage
from stages.guard import Guard
from tests.conftest import ROOT
from tests.unit import crash_points


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "stages" / "corpus" / "countdown-0123456789ab"
    place.mkdir(parents=True)
    return place


def on(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "machine", lambda: machine)


def taken(folder: Path) -> lease.Lease:
    found = lease.take(folder)
    assert found is not None
    return found


def test_another_machines_lease_keeps_a_stage_from_being_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = StageFolder(folder)
    with monkeypatch.context() as there:
        on("there", there)
        theirs = taken(folder)
    assert stage.lock() is None
    assert stage.is_held()
    assert f"process {os.getpid()} on " in stage.holder()
    with monkeypatch.context() as there:
        on("there", there)
        theirs.release()
    lock = stage.lock()
    assert lock is not None
    stage.unlock(lock)
    assert not stage.is_held()
    assert list((folder / "leases").iterdir()) == []


@pytest.mark.parametrize("clock", [0, 10**9, 2 * 10**9])
def test_a_lease_is_dead_once_its_count_has_stood_still_whatever_the_clocks_say(
    clock: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(time, "time", lambda: float(clock))
    with monkeypatch.context() as there:
        on("there", there)
        theirs = taken(folder)
    for _ in range(6):  # twice the silence, but it beats
        assert StageFolder(folder).lock() is None
        time.sleep(0.1)
        theirs.beat()
    assert StageFolder(folder).lock() is None
    time.sleep(0.35)
    lock = StageFolder(folder).lock()
    assert lock is not None
    os.close(lock)
    assert not theirs.is_mine()


def test_a_lease_of_this_machine_is_dead_as_soon_as_the_lock_is_free(folder: Path) -> None:
    first = taken(folder)  # its holder was killed: the lock is free, the file is there
    second = taken(folder)
    assert second.is_mine()
    assert not first.is_mine()
    assert [path.name for path in (folder / "leases").iterdir()] == ["2.json"]


def test_a_stage_whose_lease_was_taken_over_commits_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 0.0)
    crash_points.OPERATIONS["commit"].prepare(folder)
    stage = Stage(folder / "spec.json", Guard())
    stage.guard.lease = taken(folder)
    with monkeypatch.context() as there:
        on("there", there)
        assert lease.take(folder) is None  # the first look
        assert taken(folder).is_mine()
    with pytest.raises(PriorlabError, match="another machine has taken this stage over"):
        stage.export(crash_points.write_export)
    assert not (folder / "export").exists()
    with pytest.raises(PriorlabError, match="another machine has taken this stage over"):
        stage.finish({})
    assert not (folder / "record.json").exists()
    stage.guard.lease.release()
    assert [path.name for path in (folder / "leases").iterdir()] == ["2.json"]  # theirs


def test_a_file_system_without_hard_links_does_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert taken(folder).is_mine()
    with monkeypatch.context() as there:
        on("there", there)
        assert lease.take(folder) is None


def test_a_torn_lease_waits_out_its_silence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "leases").mkdir()
    (folder / "leases" / "1.json").touch()
    assert lease.take(folder) is None
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 0.0)
    assert taken(folder).path.name == "2.json"


def test_of_eight_machines_one_gets_a_free_lease(tmp_path: Path) -> None:
    rounds = 20
    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, f"machine-{racer}", str(tmp_path), str(rounds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for racer in range(8)
    ]
    won = [json.loads(racer.communicate(timeout=100)[0]) for racer in racers]
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * rounds


RACE = """
import json, sys, time
from pathlib import Path
from pipeline.store import lease
lease.machine = lambda: sys.argv[1]
won = []
for number in range(int(sys.argv[3])):
    folder = Path(sys.argv[2]) / str(number)
    (folder / f"ready-{sys.argv[1]}").touch()
    while len(list(folder.glob("ready-*"))) < 8:
        time.sleep(0.001)
    won.append(lease.take(folder) is not None)
print(json.dumps(won))
"""


def test_of_eight_machines_that_replace_a_dead_one_one_goes_on(tmp_path: Path) -> None:
    """Several may win one after the other, each overtaking the last that it takes for dead; the last alone may commit."""
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "1.json").write_text(json.dumps({"token": "old", "machine": "gone", "holder": "process 1 on gone"}))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", REPLACE, f"machine-{racer}", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for racer in range(8)
    ]
    holders = [racer.communicate(timeout=100)[0].strip() for racer in racers]
    assert holders.count("mine") == 1


REPLACE = """
import sys, time
from pathlib import Path
from pipeline.store import lease
lease.machine = lambda: sys.argv[1]
folder = Path(sys.argv[2])
lease.SILENCE_SECONDS = 0.5
taken = lease.take(folder)
(folder / f"ready-{sys.argv[1]}").touch()
while len(list(folder.glob("ready-*"))) < 8:
    time.sleep(0.001)
deadline = time.monotonic() + 1.0
while taken is None and time.monotonic() < deadline:
    taken = lease.take(folder)
while len(list(folder.glob("done-*"))) < 8:
    if taken is not None:
        taken.beat()
    (folder / f"done-{sys.argv[1]}").touch()
    time.sleep(0.05)
print("mine" if taken is not None and taken.is_mine() else "not mine")
"""
