"""What goes to W&B: whole runs only, failures are reported, and a view has all runs of its sweep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner
from wandb_workspaces.workspaces import Workspace

from pipeline.cli.app import app
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import PriorlabError
from pipeline.store.folders import Home, StageFolder
from pipeline.tracking.comparison import summary_run_id
from pipeline.tracking.runs import close_run, open_run
from pipeline.tracking.sync import send, waiting_runs
from pipeline.tracking.workspace import comparison_workspace
from tests.unit.stores import Shelf, shelf_at
from tests.wandb_files import read_runs
from tests.wandb_server import WandbServer, serving


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


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("whole"), "whole")


def written(place: Path, name: str) -> bytes:
    """W&B's own offline log of a whole run."""
    run = open_run(TrackingConfig(mode="offline"), place, id=name)
    for step in range(20):
        run.log({"step": step, "loss": 1.0 / (1 + step)})
    close_run(run)
    (file,) = place.rglob("*.wandb")
    return file.read_bytes()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


def tracked(shelf: Shelf, name: str, log: bytes) -> Path:
    """A finished stage's offline run with this log."""
    run = shelf.home.path / "stages/rl" / name / "wandb" / f"offline-run-20260101_000000-{name}"
    run.mkdir(parents=True)
    (run / f"run-{name}.wandb").write_bytes(log)
    return run


CUT = {
    "only its header": lambda log: log[:7],
    "empty": lambda log: b"",
    "in its first record": lambda log: log[:20],
    "in the middle": lambda log: log[: len(log) // 2],
    "in its last record": lambda log: log[:-60],
    "another file": lambda log: b"x" * 500,
    "damaged": lambda log: log[:200] + bytes([log[200] ^ 255]) + log[201:],
}


@pytest.mark.parametrize("cut", CUT.values(), ids=CUT)
def test_a_log_that_is_cut_short_holds_no_other_back_and_is_named_once(
    shelf: Shelf, server: WandbServer, log: bytes, cut: Callable[[bytes], bytes]
) -> None:
    """Real logs, W&B's real command, and a server that answers as W&B's does."""
    bad = tracked(shelf, "b", cut(log))
    good = [tracked(shelf, name, log) for name in ("a", "c", "d")]
    ended = CliRunner().invoke(app, ["wandb", "sync"])
    assert ended.exit_code == 0, ended.output
    assert [any(run.glob("*.synced")) for run in good] == [True] * 3
    assert f"what can be read was sent, and will not be sent again: {bad}\n" in ended.output
    again = CliRunner().invoke(app, ["wandb", "sync"])
    assert again.output == "0 offline runs wait\n"


def test_a_run_that_is_not_accepted_is_named_and_holds_no_other_back(
    shelf: Shelf, server: WandbServer, log: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.sync._AT_ONCE", 2)  # so that a batch follows
    server.refused = {"refused"}
    refused, *good = (tracked(shelf, name, written(tmp_path, "refused") if name == "a" else log) for name in "abcd")
    (tmp_path / "wandb.py").write_text("raise SystemExit('not this one')")  # of the current folder
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PriorlabError, match=f"1 of 4 wait, the first is {refused}"):
        send([refused, *good])
    assert [any(run.glob("*.synced")) for run in good] == [True] * 3


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
