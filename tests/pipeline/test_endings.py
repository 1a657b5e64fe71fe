"""However a run ends, nothing of it survives: no process, no port. And what a stage does when it is asked to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.store.folders import Home, StageFolder
from tests.conftest import ROOT, smoke_graph
from tests.pipeline.tiny import started

ONE = ("axes.prior=[ce]", "rl=null")


class Run:
    """A driver of tiny stages in a home of its own."""

    def __init__(self, home: Path, behaviour: dict[str, str], *overrides: str, jobs: int = 1) -> None:
        self.home = Home(home)
        self.log = home.with_suffix(".log")
        self.overrides = overrides
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.tiny.driver", "tiny", str(jobs), *overrides],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PRIORLAB_HOME": str(home), "TINY_LOG": str(self.log), "TINY": json.dumps(behaviour)},
        )  # fmt: skip

    def folder(self, kind: str) -> StageFolder:
        return next(node.folder(self.home) for node in smoke_graph(*self.overrides).stages.values() if node.kind == kind)

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        deadline = time.time() + 60
        while not is_so():
            assert self.process.poll() is None, self.process.communicate()
            assert time.time() < deadline
            time.sleep(0.02)

    def end(self, timeout: float = 60) -> tuple[dict[str, tuple[str, str]], str]:
        """State and reason of each kind of stage, and what was printed for people."""
        printed, notes = self.process.communicate(timeout=timeout)
        states = json.loads(printed) if printed else {}
        return {name.partition("/")[0]: tuple(state) for name, state in states.items()}, notes

    def survivors(self) -> list[str]:
        """Processes of this run: all inherit its home."""
        wanted, found = f"PRIORLAB_HOME={self.home.path}\0".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (process / "environ").read_bytes() and (process / "cmdline").read_bytes():  # a zombie has none
                    found.append(f"{process.name} {(process / 'cmdline').read_bytes()!r}")
            except OSError:
                continue
        return found

    def held(self) -> list[str]:
        return [folder.path.name for folder in self.home.stages() if folder.is_held()]

    def nothing_is_left(self) -> None:
        deadline = time.time() + 10  # signals of the kernel to what outlived its parent
        while (self.survivors() or self.held()) and time.time() < deadline:
            time.sleep(0.05)
        assert self.survivors() == []
        assert self.held() == []  # a process that ends gives up its memory, and with it its name, before its files
        for told in self.home.path.glob("stages/*/*/worker.json"):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", json.loads(told.read_text())["port"]), timeout=1)
        assert list(self.home.path.glob("stages/*/*/leases/*")) == []


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(behaviour: dict[str, str], *overrides: str, jobs: int = 1) -> Run:
        runs.append(Run(tmp_path / "home", behaviour, *(overrides or ONE), jobs=jobs))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.communicate()


def stage_process(run: Run) -> int:
    process: int = json.loads(run.folder("corpus").status.read_text())["pid"]
    return process


def ctrl_c(run: Run) -> None:
    run.process.send_signal(signal.SIGINT)


def ctrl_c_twice(run: Run) -> None:
    ctrl_c(run)
    time.sleep(0.5)
    ctrl_c(run)


def terminate(run: Run) -> None:
    run.process.terminate()


def kill_driver(run: Run) -> None:
    run.process.kill()


def kill_stage(run: Run) -> None:
    os.kill(stage_process(run), signal.SIGKILL)


def cancel_stage(run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "cancel", run.folder("corpus").path.name],
        cwd=ROOT, env=os.environ | {"PRIORLAB_HOME": str(run.home.path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", [ctrl_c, ctrl_c_twice, terminate, kill_driver, kill_stage, cancel_stage])
def test_no_process_and_no_port_survives(way: Callable[[Run], None], begin: Callable[..., Run]) -> None:
    run = begin({"corpus": "slow"}, *ONE, "cluster=local", "cluster.retries.out_of_memory=0")
    run.wait_for(lambda: any(run.home.path.glob("stages/*/*/worker.json")) and len(run.survivors()) == 3)
    way(run)
    states, notes = run.end()
    assert way is kill_driver or states["corpus"][0] in ("waiting", "failed", "cancelled"), notes
    run.nothing_is_left()


def test_a_stage_that_ends_by_itself_takes_its_workers_along(begin: Callable[..., Run]) -> None:
    for kind in ("leaves a worker", "leaves a worker and fails"):
        run = begin({"corpus": kind}, *ONE, "cluster=local", "cluster.retries.bug=0")
        states, notes = run.end()
        assert states["corpus"][0] == ("failed" if "fails" in kind else "done"), notes
        run.nothing_is_left()
        if "fails" not in kind:
            run.folder("corpus").clear()


def test_a_stage_that_hears_nothing_is_killed_by_the_second_ctrl_c(begin: Callable[..., Run]) -> None:
    run = begin({"corpus": "deaf"})
    run.wait_for(lambda: any(run.home.path.glob("stages/*/*/worker.json")))
    ctrl_c(run)
    time.sleep(1)
    assert run.process.poll() is None
    ctrl_c(run)
    _, notes = run.end(timeout=5)
    assert "stopping: training stages save a step checkpoint first; Ctrl-C again kills" in notes
    run.nothing_is_left()


def test_asked_to_end_a_stage_saves_first(begin: Callable[..., Run]) -> None:
    run = begin({"pretrain": "saves when asked"})
    run.wait_for(lambda: run.folder("pretrain").status.exists() and "steps" in run.folder("pretrain").status.read_text())
    ctrl_c(run)
    states, _ = run.end()
    assert run.process.returncode == 130
    assert states["pretrain"] == ("waiting", "interrupted")
    assert (run.folder("pretrain").checkpoints / "checkpoint-1").exists()
    assert run.folder("pretrain").record() is None
    run.nothing_is_left()


def test_a_cell_is_finished_before_the_next_is_begun(begin: Callable[..., Run]) -> None:
    run = begin({}, "axes.prior=[ce, tail, head]")
    _, notes = run.end()
    assert run.process.returncode == 0, notes
    order = [name.rpartition("-")[0] for name in started(run.log)]
    assert order == ["corpus/countdown"] + [
        f"{kind}/{prior}-s0{after}"
        for prior in ("ce", "tail", "head")
        for kind, after in (("pretrain", ""), ("evaluate", "-pretrain"), ("rl", ""), ("evaluate", "-rl"))
    ]


@pytest.mark.parametrize(("memory", "most"), [(0.6, 1), (0.4, 2)])
def test_what_does_not_fit_into_memory_beside_what_runs_waits(memory: float, most: int, begin: Callable[..., Run]) -> None:
    from pipeline.run.memory import free_gib

    need = free_gib() * memory
    run = begin(
        {"pretrain": "takes 1.5"}, "axes.prior=[ce, tail, head]", "rl=null", "cluster=local", f"cluster.pretrain.memory_gib={need}",
        jobs=4,
    )  # fmt: skip
    _, notes = run.end()
    assert run.process.returncode == 0, notes
    lines = [line.split() for line in run.log.read_text().splitlines() if "pretrain/" in line]
    running, at_once = 0, []
    for what, *_ in sorted(lines, key=lambda line: float(line[-1])):
        running += 1 if what == "start" else -1
        at_once.append(running)
    assert max(at_once) == most


def test_a_stage_that_needs_more_memory_than_there_is_says_so(begin: Callable[..., Run]) -> None:
    run = begin({}, *ONE, "cluster=local", "cluster.pretrain.memory_gib=100000")
    states, _ = run.end()
    assert states["pretrain"][0] == "failed"
    assert "needs cluster.pretrain.memory_gib = 100000, but this machine has" in states["pretrain"][1]
    assert states["evaluate"][0] == "blocked"


def test_folders_of_the_current_folder_stand_in_for_no_package(tmp_path: Path) -> None:
    for name in ("pipeline", "stages", "datasets", "torch"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.pipeline.tiny.driver", "tiny", "1", *ONE],
        cwd=tmp_path / "work", capture_output=True, text=True, timeout=60,
        env=os.environ
        | {"PRIORLAB_HOME": str(tmp_path / "home"), "TINY_LOG": str(tmp_path / "log"), "TINY": "{}", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
