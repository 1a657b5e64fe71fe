"""Run a graph: what its stages' states are, and who brings them to an end, this machine (`pipeline.local`) or Slurm (`pipeline.slurm`).

A stage whose record is there is reused.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pipeline.config.cluster import ClusterConfig
from pipeline.graph import Graph, StageNode
from pipeline.launch import Process
from pipeline.store import Home, StageFolder

State = str  # waiting | ready | queued | running | elsewhere | reused | done | failed | cancelled | blocked


@dataclass
class StageState:
    """One stage in this run, as the live view and the end report show it."""

    node: StageNode
    folder: StageFolder
    state: State = "waiting"
    reason: str = ""
    started: float = 0.0
    ended: float = 0.0
    progress: dict[str, Any] = field(default_factory=dict)
    process: Process | None = None
    devices: list[str] = field(default_factory=list)
    alone: bool = False
    """It ran out of memory beside others."""
    log: Path | None = None


class View(Protocol):
    """What the runner reports to."""

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        """A stage has entered another state."""
        ...

    def note(self, text: str) -> None:
        """Something about the whole run."""
        ...

    def tick(self, states: list[StageState]) -> None:
        """Called several times a second while stages run."""
        ...


class Runner(Protocol):
    """Brings all stages to an end state, or as far as it comes before `stop` is called (by a signal handler)."""

    stopping: bool

    def loop(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    states: list[StageState]
    interrupted: bool

    @property
    def left(self) -> int:
        """Jobs that go on without this process."""
        return sum(state.state in ("queued", "running") for state in self.states)

    @property
    def failed(self) -> list[StageState]:
        return [state for state in self.states if state.state == "failed"]

    @property
    def cancelled(self) -> list[StageState]:
        return [state for state in self.states if state.state == "cancelled"]

    @property
    def complete(self) -> bool:
        return all(state.state in ("reused", "done") for state in self.states)


def run(
    graph: Graph,
    home: Home,
    *,
    sweep: str,
    jobs: int,
    view: View,
    cluster: ClusterConfig | None = None,
    only: Iterable[str] | None = None,
    package: str = "stages",
) -> Outcome:
    """Run every stage of the graph that has no record (or those whose fingerprint is in `only`), parents first.

    `package` holds the programs of the stages, a module for each kind, with the contract of `stages.contract`.
    """
    wanted = set(graph.stages if only is None else only)
    states = {f: StageState(node, node.folder(home)) for f, node in graph.stages.items() if f in wanted}
    for state in states.values():
        if state.folder.record() is not None:
            state.state = "reused"
    runner: Runner
    if cluster is not None and cluster.kind == "slurm":
        from pipeline.slurm.runner import SlurmRunner  # built on this module

        runner = SlurmRunner(home, sweep, cluster, states, view)
    else:
        from pipeline.local import LocalRunner

        runner = LocalRunner(home, sweep, jobs, cluster or ClusterConfig(kind="local"), states, view, package)
    with _interruptible(runner):
        runner.loop()
    return Outcome(list(states.values()), runner.stopping)


@contextmanager
def _interruptible(runner: Runner) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) once ends the stages in order, twice kills them."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        runner.stop()

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
