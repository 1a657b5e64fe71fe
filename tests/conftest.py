"""Shared set-up: one small sweep, run once per session with the real command, that many tests look at."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import Graph, StageNode, build_graph
from pipeline.run.launch import Process, command, environment, process_environment, start_process
from pipeline.run.warm import WarmServer
from pipeline.store.folders import Home, StageFolder

hypothesis.settings.register_profile("priorlab", deadline=None)  # an example that takes long on a busy machine is none that fails
hypothesis.settings.load_profile("priorlab")

ROOT = Path(__file__).parent.parent
_ENVIRONMENT = dict(os.environ)
SECRETS = {name: f"planted{number}" * 5 for number, name in enumerate(("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"))}
"""In the environment of every command that tests run; tests/pipeline/test_security.py looks where they went."""


@dataclass(frozen=True)
class Lab:
    """A PRIORLAB_HOME of its own and the real command line on it."""

    home: Home

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PRIORLAB_LOCK", "WANDB_SERVICE"))}
        return inherited | {"PRIORLAB_HOME": str(self.home.path), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"} | SECRETS

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipeline.cli", *arguments]

    def call(self, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def folder(self, node: StageNode) -> StageFolder:
        return node.folder(self.home)

    def borrow(self, other: Lab, *nodes: StageNode) -> None:
        """Copies of finished stages of another lab."""
        for node in nodes:
            shutil.copytree(other.folder(node).path, self.folder(node).path, ignore=shutil.ignore_patterns("wandb"))


def smoke_graph(*overrides: str) -> Graph:
    return build_graph(load_sweep("smoke", overrides).cells())


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(Home(tmp_path / "home"))


def start(lab: Lab, node: StageNode, module: str | None = None, **more: str) -> Process:
    """The stage's process as the orchestrator starts it; `module` stands in for the stage's own, `more` is environment."""
    folder = lab.folder(node)
    words = [module if module is not None and word == f"stages.{node.kind}" else word for word in command(node, folder)]
    lock = folder.lock()
    assert lock is not None
    try:
        with (folder.path / "out.log").open("ab") as log:
            seen = for_tests(environment(node, lock, "test")) | more
            return server_for_tests().start(words, seen, log, lock) or start_process(words, seen, log, lock)
    finally:
        os.close(lock)


def for_tests(environment: dict[str, str]) -> dict[str, str]:
    """A stage's environment without W&B, and without what tests have set in this process meanwhile: stages may share a server."""
    set_by_launch = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    inherited = {name: value for name, value in _ENVIRONMENT.items() if name in environment and name != "PYTEST_CURRENT_TEST"}
    return inherited | set_by_launch | {"WANDB_MODE": "disabled"}


@functools.cache
def server_for_tests() -> WarmServer:
    """One for all stages that this process starts, ready to fork."""
    server = WarmServer(for_tests(process_environment(1, None, "test", hub=False)))
    assert not server.is_starting(wait=300)
    return server


def kill_once_saved(lab: Lab, node: StageNode, *, step: int, halfway: bool = False) -> None:
    """Start the stage and kill it, with all its processes, as soon as the checkpoint of `step` is complete, or begun (`halfway`)."""
    folder = lab.folder(node)
    process = start(lab, node)
    deadline = time.time() + 200
    checkpoint = folder.checkpoints / f"checkpoint-{step}"
    while not (checkpoint if halfway else checkpoint / "complete").exists():
        assert process.poll() is None, (folder.path / "out.log").read_text()
        assert time.time() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert folder.record() is None
    if halfway:  # on a busy machine the kill may come late
        (checkpoint / "complete").unlink(missing_ok=True)


def finish(lab: Lab, node: StageNode, process: Process) -> list[dict[str, float]]:
    """Wait for success; the rows of metrics.jsonl."""
    assert process.wait(timeout=300) == 0, (lab.folder(node).path / "out.log").read_text()
    return rows(lab, node)


def rows(lab: Lab, node: StageNode) -> list[dict[str, float]]:
    return [json.loads(line) for line in lab.folder(node).metrics.read_text().splitlines()]


@dataclass(frozen=True)
class FinishedSweep:
    lab: Lab
    graph: Graph
    printed: str

    def node(self, role: str, cell: int = 0) -> StageNode:
        """`corpus`, `pretrain`, `rl`, `evaluate@pretrain` or `evaluate@rl` of a cell."""
        plan = self.graph.cells[cell]
        kind, at, after = role.partition("@")
        return plan.evaluations[after] if at else plan.chain[kind]

    def folder(self, role: str, cell: int = 0) -> StageFolder:
        return self.lab.folder(self.node(role, cell))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    """`priorlab sweep smoke`, all of it: two priors, five kinds of work, real DeepSpeed, TRL, vLLM and W&B files.

    Where several processes share the suite, one runs it and the others wait. Tests look at it and leave it as it is.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    lab, printed = Lab(Home(shared / "smoke")), shared / "smoke.out"
    with (shared / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            done = lab.call("sweep", "smoke", timeout=580)
            assert done.returncode == 0, done.stdout + done.stderr
            printed.write_text(done.stdout)
    return FinishedSweep(lab, smoke_graph(), printed.read_text())
