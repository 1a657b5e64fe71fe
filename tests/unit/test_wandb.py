"""What goes to W&B: whole runs only, failures are reported, and a view has all runs of its sweep."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from wandb_workspaces.workspaces import Workspace

from pipeline.cli.app import app
from pipeline.config.tracking import TrackingConfig
from pipeline.store.folders import Home, StageFolder
from pipeline.tracking.comparison import summary_run_id
from pipeline.tracking.runs import close_run, open_run
from pipeline.tracking.sync import waiting_runs
from pipeline.tracking.workspace import comparison_workspace
from tests.unit.stores import Shelf, shelf_at
from tests.wandb_files import read_runs


def offline_run(folder: Path) -> Path:
    run = folder / "wandb" / "offline-run-1"
    run.mkdir(parents=True)
    (run / "run-1.wandb").touch()
    return run


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    shelf = shelf_at(tmp_path)
    monkeypatch.setenv("PRIORLAB_HOME", str(shelf.home.path))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    return shelf


def test_runs_of_running_stages_are_not_sent(tmp_path: Path) -> None:
    home = Home(tmp_path)
    running, ended, sweep = (offline_run(home.path / place) for place in ("stages/rl/a", "stages/rl/b", "sweeps/c"))
    lock = StageFolder(home.path / "stages/rl/a").lock()
    assert lock is not None
    with home.sweep_lock("c"):
        assert waiting_runs(home, None) == [ended]
    os.close(lock)
    assert set(waiting_runs(home, None)) == {running, ended, sweep}


def test_runs_that_were_not_accepted_are_named_although_the_upload_reports_success(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, refused = (offline_run(shelf.home.path / "stages/rl" / name) for name in ("a", "b"))

    def upload(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        (taken / "run-1.wandb.synced").touch()
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", upload)
    ended = CliRunner().invoke(app, ["wandb", "sync"])
    assert ended.exit_code != 0
    assert f"1 of 2 wait, the first is {refused}" in str(ended.exception)
    (refused / "run-1.wandb.synced").touch()
    assert CliRunner().invoke(app, ["wandb", "sync"]).exit_code == 0


def test_a_finished_run_is_whole_on_disk(tmp_path: Path) -> None:
    run = open_run(TrackingConfig(mode="offline"), tmp_path, id="quick")
    run.summary["last"] = 1
    close_run(run)
    services = [stat.parent.name for stat in Path("/proc").glob("[0-9]*/stat") if _is_service_of(os.getpid(), stat)]
    assert services == []  # the one that wrote the file has ended, so nothing is left in its memory
    (kept,) = read_runs(tmp_path)
    assert kept.summary["last"] == 1


def _is_service_of(process: int, stat: Path) -> bool:
    with suppress(OSError):  # it ended meanwhile
        name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        return name.startswith("wandb-core") and int(rest.split()[1]) == process
    return False


def test_a_view_that_cannot_be_saved_is_a_one_line_error(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.sweep()

    def refuse(_: Workspace) -> None:
        raise ValueError("permission denied\nand more")

    monkeypatch.setattr(Workspace, "save", refuse)
    ended = CliRunner().invoke(app, ["wandb", "workspace", "smoke", "--entity", "team"])
    assert str(ended.exception) == "W&B did not save the view in team/priorlab: permission denied"


def test_a_view_includes_stages_that_another_sweep_ran_first(shelf: Shelf) -> None:
    graph = shelf.sweep()
    shown = str(comparison_workspace("smoke", "team", "priorlab", graph).runset_settings.filters)
    assert all(repr(fingerprint[:32]) in shown for fingerprint in graph.stages)
    assert summary_run_id("smoke", graph) in shown
    assert "Group" not in shown
