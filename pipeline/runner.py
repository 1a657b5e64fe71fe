"""Run a graph on this machine: up to `jobs` stage processes at a time, each in its own session, output under attempts/.

A stage whose record is there is reused. One that another process runs right now is waited for. One that fails does not stop what does
not depend on it. If this process dies, however it dies, the kernel tells its stages to end, and frees their locks when they have.
Jobs on a cluster are pipeline/slurm's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pipeline.config.cluster import ClusterConfig
from pipeline.errors import PriorlabError
from pipeline.graph import Graph, StageNode
from pipeline.launch import command, environment, failure, git_commit, needed_devices, signal_session, visible_devices
from pipeline.store import Home, StageFolder, status_of, write_json_atomically

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0
_CANCELLED = "by `priorlab cancel`"

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
    process: subprocess.Popen[bytes] | None = None
    devices: list[str] = field(default_factory=list)
    log: Path | None = None


class View(Protocol):
    """What the runner reports to."""

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        """A stage has entered another state."""
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
) -> Outcome:
    """Run every stage of the graph that has no record (or those whose fingerprint is in `only`), parents first."""
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
        runner = _LocalRunner(home, sweep, jobs, states, view)
    with _interruptible(runner):
        runner.loop()
    return Outcome(list(states.values()), runner.stopping)


class _LocalRunner:
    def __init__(self, home: Home, sweep: str, jobs: int, states: dict[str, StageState], view: View) -> None:
        self.home = home
        self.sweep = sweep
        self.jobs = jobs
        self.states = states
        self.view = view
        self.stopping = False
        self.stopped_at = 0.0
        self.commit = git_commit()
        self.free_devices = visible_devices()
        self.has_devices = bool(self.free_devices)

    def loop(self) -> None:
        while not self._finished():
            if not self.stopping:
                self._start_ready()
            self._poll()
            self.view.tick(list(self.states.values()))
            if not self._finished():
                time.sleep(_POLL_SECONDS)

    def _finished(self) -> bool:
        active = {"running"} if self.stopping else {"waiting", "ready", "running", "elsewhere"}
        return not any(state.state in active for state in self.states.values())

    def _start_ready(self) -> None:
        for state in self.states.values():
            if state.state != "waiting":
                continue
            parents = [self.states[p.fingerprint] for p in state.node.parents.values() if p.fingerprint in self.states]
            lost = [p for p in parents if p.state in ("failed", "cancelled", "blocked")]
            if lost:
                self._enter(state, "blocked", f"needs {lost[0].node.name}, which {lost[0].state}")
            elif all(p.state in ("reused", "done") for p in parents):
                state.state = "ready"
        # Later stages first: a cell that has come far is finished before the next is begun, so that first results show early.
        ready = [state for state in self.states.values() if state.state == "ready"]
        for state in sorted(ready, key=lambda s: -_depth(s.node)):
            if self.stopping:  # Ctrl-C came while an earlier one was started
                break
            if sum(other.state == "running" for other in self.states.values()) >= self.jobs:
                break
            wanted = needed_devices(state.node) if self.has_devices else 0
            if wanted <= len(self.free_devices):
                self._start(state, [self.free_devices.pop(0) for _ in range(wanted)])
            elif not any(other.devices for other in self.states.values()):
                self._enter(state, "failed", f"needs {wanted} GPUs, but this machine shows {len(self.free_devices)}")

    def _start(self, state: StageState, devices: list[str]) -> None:
        state.devices = devices
        lock = state.folder.lock()
        if lock is None:
            self._enter(state, "elsewhere", "run by another process")
            return
        try:
            if state.folder.record() is not None:  # finished by somebody between planning and now
                self._enter(state, "reused")
                return
            write_json_atomically(state.folder.spec, state.node.spec(self.home, self.sweep))
            state.folder.status.unlink(missing_ok=True)
            state.folder.cancelled.unlink(missing_ok=True)
            attempt = state.folder.new_attempt()
            state.log = attempt / "stdout.log"
            start = command(state.node, state.folder)
            write_json_atomically(attempt / "attempt.json", {"command": start, "devices": devices, "commit": self.commit})
            with state.log.open("wb") as log:
                state.process = subprocess.Popen(
                    start,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[lock],
                    env=environment(state.node, lock, self.commit, devices),
                )
        except OSError as error:
            self._enter(state, "failed", f"could not start: {error.strerror or error} ({error.filename or state.folder.path})")
            return
        except PriorlabError as error:
            self._enter(state, "failed", str(error))
            return
        finally:
            os.close(lock)  # the stage process holds it now
        state.started = time.time()
        self._enter(state, "running")
        if self.stopping:
            signal_session(state.process, signal.SIGTERM)

    def _poll(self) -> None:
        for state in self.states.values():
            if state.state == "elsewhere":
                self._poll_elsewhere(state)
            if state.state != "running" or state.process is None:
                continue
            code = state.process.poll()
            state.progress = status_of(state.folder)
            if code is None:
                if self.stopping and time.time() > self.stopped_at + _GRACE_SECONDS:
                    signal_session(state.process, signal.SIGKILL)
                continue
            signal_session(state.process, signal.SIGKILL)  # workers that outlived their parent
            state.ended = time.time()
            if state.folder.record_file.exists():  # whatever came after it
                self._enter(state, "done")
            elif state.folder.cancelled.exists():
                self._enter(state, "cancelled", _CANCELLED)
            elif self.stopping:
                self._enter(state, "waiting", "interrupted")
            else:
                self._enter(state, "failed", failure(state.folder, code))

    def _poll_elsewhere(self, state: StageState) -> None:
        state.progress = status_of(state.folder)
        if state.folder.is_held():
            return
        if state.folder.record_file.exists():
            self._enter(state, "reused")
        elif state.folder.cancelled.exists():
            self._enter(state, "cancelled", _CANCELLED)
        else:  # whoever ran it is gone without finishing: our turn
            state.state = "ready"

    def _enter(self, state: StageState, name: State, reason: str = "") -> None:
        state.state, state.reason = name, reason
        if name != "running":
            self.free_devices += state.devices
            state.devices = []
        self.view.changed(state, list(self.states.values()))

    def stop(self) -> None:
        """First call: ask the stages to end and wait for them. Second call: kill them."""
        first, self.stopping = not self.stopping, True
        self.stopped_at = time.time()
        for state in self.states.values():
            if state.process is not None and state.state == "running":
                signal_session(state.process, signal.SIGTERM if first else signal.SIGKILL)


def _depth(node: StageNode) -> int:
    return 1 + max((_depth(parent) for parent in node.parents.values()), default=0)


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
