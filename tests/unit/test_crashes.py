"""A crash at any system call leaves the old state or the new one, and a restart finishes the job: real kills, at each call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store import files
from stages.contract import Stage
from stages.guard import Guard
from tests.conftest import ROOT
from tests.unit import crash_points


@pytest.mark.parametrize(
    ("operation", "calls"),
    [
        ("commit", {"rename": 3, "fsync": 7, "link": 1}),  # export, status and record; each file and folder of the export
        ("force", {"unlink": 7}),
        ("overwrite", {"write": 1, "fsync": 2, "rename": 1}),
        ("collect", {"rename": 1}),
        ("lease", {"link": 1, "utimensat": 2}),
    ],
)
def test_a_kill_at_any_call_leaves_the_old_state_or_the_new_one(operation: str, calls: dict[str, int], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.crash_points", operation, str(tmp_path / "home")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "ptrace is not allowed here" in done.stderr:
        pytest.skip("tracing a child is not allowed here")
    assert done.returncode == 0, done.stderr
    if os.uname().machine == "x86_64":
        killed_at = json.loads(done.stdout)
        assert {call: killed_at[call] for call in calls} == calls


def test_a_write_that_is_not_atomic_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_in_place(path: Path, text: str, *, durable: bool = True) -> None:
        path.write_text(text)

    monkeypatch.setattr(files, "write_text_atomically", write_in_place)
    try:
        with pytest.raises(Exception, match=r"is not readable JSON|killed at"):
            crash_points.explore(crash_points.OPERATIONS["overwrite"], tmp_path / "home")
    except PermissionError:
        pytest.skip("tracing a child is not allowed here")


def test_a_record_exists_only_once_its_files_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stages" / "corpus" / "countdown-0123456789ab"
    folder.mkdir(parents=True)
    crash_points.OPERATIONS["commit"].prepare(folder)
    synced: set[int] = set()
    fsync, replace = os.fsync, Path.replace

    def remember(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check(source: Path, target: Path) -> Path:
        if target.name == "record.json":
            parts = [source, folder / "export", *(folder / "export").rglob("*")]
            assert {part.stat().st_ino for part in parts} <= synced
        return replace(source, target)

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(Path, "replace", check)
    stage = Stage(folder / "spec.json", Guard())
    stage.export(crash_points.write_export)
    stage.finish({})
    assert folder.joinpath("record.json").exists()
