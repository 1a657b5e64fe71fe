"""Run a graph on this machine: up to `jobs` stage processes at a time, each in its own session, output under attempts/.

Later stages go first: a cell that has come far is finished before the next is begun, so that first results show early. A stage starts
when its GPUs are free and its memory fits beside what runs; one that does not fit yet holds back those behind it, or large stages would
wait for as long as there are small ones.

One that another process runs right now is waited for. One that fails is tried again as `cluster.retries` says, and does not stop what
does not depend on it. If this process dies, however it dies, the kernel tells its stages to end, and frees their locks when they have.
"""

from __future__ import annotations

import heapq
import os
import signal
import time
from collections import defaultdict

from pipeline.config.cluster import ClusterConfig
from pipeline.errors import PriorlabError
from pipeline.files import write_json_atomically
from pipeline.graph import StageNode
from pipeline.launch import command, environment, failure, git_commit, needed_devices, signal_session, visible_devices
from pipeline.memory import expected_gib, free_gib, total_gib
from pipeline.retries import Attempts, cause_of_exit
from pipeline.runner import StageState, State, View
from pipeline.store import Home, status_of
from pipeline.warm import WarmServer, start_process, warm_server

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 75.0
"""A stage gives itself sixty to save a step checkpoint."""
_CANCELLED = "by `priorlab cancel`"
_FINISHED = ("reused", "done")
_LOST = ("failed", "cancelled", "blocked")


class LocalRunner:
    def __init__(
        self, home: Home, sweep: str, jobs: int, cluster: ClusterConfig, states: dict[str, StageState], view: View, package: str
    ) -> None:
        self.home = home
        self.sweep = sweep
        self.jobs = jobs
        self.cluster = cluster
        self.states = states
        self.view = view
        self.package = package
        self.stopping = False
        self.stopped_at = 0.0
        self.commit = git_commit()
        self.free_devices = visible_devices()
        self.has_devices = bool(self.free_devices)
        self.attempts = Attempts(cluster.retries)
        self._memory = free_gib()
        self._peaks: dict[str, float] = {}
        self._running: list[StageState] = []
        self._elsewhere: list[StageState] = []
        self._delayed: list[tuple[float, StageState]] = []
        self._ready: list[tuple[int, int, StageState]] = []
        self._rank = {fingerprint: place for place, fingerprint in enumerate(states)}
        self._children: dict[str, list[StageState]] = defaultdict(list)
        self._missing: dict[str, int] = {}
        self._told = False
        self._server: WarmServer | None = None

    def loop(self) -> None:
        self._connect()
        if self.package == "stages":
            self._server = warm_server((s.node for s in self.states.values() if s.state not in _FINISHED), self.commit)
        while not self._finished():
            if not self.stopping:
                self._start_ready()
            elif not self._told:
                self._told = True
                self.view.note("stopping: what trains saves a step checkpoint first; Ctrl-C again kills it")
            self._poll()
            self.view.tick(list(self.states.values()))
            if not self._finished():
                time.sleep(_POLL_SECONDS)
        if self._server is not None:
            self._server.close()

    def stop(self) -> None:
        """First call: ask the stages to end and wait for them. Second call: kill them."""
        first, self.stopping = not self.stopping, True
        self.stopped_at = time.time()
        for state in self._running:
            self._signal(state, signal.SIGTERM if first else signal.SIGKILL)

    def _connect(self) -> None:
        """What waits for what."""
        for fingerprint, state in self.states.items():
            parents = {p.fingerprint: self.states[p.fingerprint] for p in state.node.parents.values() if p.fingerprint in self.states}
            for parent in parents.values():
                self._children[parent.node.fingerprint].append(state)
            self._missing[fingerprint] = sum(parent.state not in _FINISHED for parent in parents.values())
            if state.state not in _FINISHED and not self._missing[fingerprint]:
                self._make_ready(state)
        if self._ready:
            for state in self.states.values():
                if state.state in _FINISHED:
                    self._learn_peak(state)

    def _finished(self) -> bool:
        return not (self._running or (not self.stopping and (self._ready or self._elsewhere or self._delayed)))

    def _make_ready(self, state: StageState) -> None:
        state.state = "ready"
        heapq.heappush(self._ready, (-_depth(state.node), self._rank[state.node.fingerprint], state))

    def _start_ready(self) -> None:
        due = [state for when, state in self._delayed if when <= time.time()]
        self._delayed = [(when, state) for when, state in self._delayed if when > time.time()]
        for state in due:
            self._make_ready(state)
        while self._ready and not self.stopping and len(self._running) < self.jobs:
            state = self._ready[0][-1]
            impossible = self._never_fits(state)
            if not impossible and (self._waits_for_server(state) or not self._fits_now(state)):
                break
            heapq.heappop(self._ready)
            if impossible:
                self._enter(state, "failed", impossible)
            else:
                wanted = needed_devices(state.node) if self.has_devices else 0
                self._start(state, [self.free_devices.pop(0) for _ in range(wanted)])

    def _waits_for_server(self, state: StageState) -> bool:
        """The first stages build what others train on, and import little: they start cold while the server imports."""
        return self._server is not None and bool(state.node.parents) and self._server.is_starting()

    def _never_fits(self, state: StageState) -> str:
        """Why this machine is too small for a stage, or nothing."""
        devices = len(self.free_devices) + sum(len(other.devices) for other in self._running)
        wanted = needed_devices(state.node)
        if self.has_devices and wanted > devices:
            return f"needs {wanted} GPUs, but this machine shows {devices}"
        declared = self.cluster.resources(state.node.kind).memory_gib
        if declared is not None and declared > total_gib():
            return f"needs cluster.{state.node.kind}.memory_gib = {declared:g}, but this machine has {total_gib():.1f} GiB"
        return ""

    def _fits_now(self, state: StageState) -> bool:
        if self.has_devices and needed_devices(state.node) > len(self.free_devices):
            return False
        needed = self._expected(state)
        reserved = sum(self._expected(other) for other in self._running)
        fits = reserved + needed <= self._memory and needed <= free_gib()
        if not self._running:
            return fits or self.cluster.resources(state.node.kind).memory_gib is None  # a guess alone keeps nothing from running
        return fits and not state.alone and not any(other.alone for other in self._running)

    def _expected(self, state: StageState) -> float:
        kind = state.node.kind
        return expected_gib(state.node, self.cluster.resources(kind), self._peaks.get(kind))

    def _learn_peak(self, state: StageState) -> None:
        try:
            record = state.folder.record() or {}
        except PriorlabError:
            return
        peak = record.get("provenance", {}).get("peak_memory_gib", 0.0)
        self._peaks[state.node.kind] = max(peak, self._peaks.get(state.node.kind, 0.0))

    def _start(self, state: StageState, devices: list[str]) -> None:
        state.devices = devices
        try:
            lock = state.folder.lock()
        except OSError as error:
            self._enter(state, "failed", _why(error, state))
            return
        if lock is None:
            self._elsewhere.append(state)
            self._enter(state, "elsewhere", f"run by {state.folder.holder()}")
            return
        started = False
        try:
            if state.folder.record() is not None:  # finished by somebody between planning and now
                self._enter(state, "reused")
                return
            write_json_atomically(state.folder.spec, state.node.spec(self.home, self.sweep))
            state.folder.status.unlink(missing_ok=True)
            state.folder.cancelled.unlink(missing_ok=True)
            attempt = state.folder.new_attempt()
            state.log = attempt / "stdout.log"
            start = command(state.node, state.folder, self.package)
            write_json_atomically(attempt / "attempt.json", {"command": start, "devices": devices, "commit": self.commit})
            with state.log.open("wb") as log:
                state.process = start_process(start, environment(state.node, lock, self.commit, devices), log, lock, self._server)
            started = True
        except (OSError, PriorlabError) as error:
            self._enter(state, "failed", _why(error, state))
            return
        finally:
            if started:
                os.close(lock)  # the stage process holds it now
            else:
                state.folder.unlock(lock)
        state.started = time.time()
        self._running.append(state)
        self._enter(state, "running")
        if self.stopping:
            self._signal(state, signal.SIGTERM)

    def _poll(self) -> None:
        for state in list(self._elsewhere):
            self._poll_elsewhere(state)
        for state in list(self._running):
            assert state.process is not None
            code = state.process.poll()
            state.progress = status_of(state.folder)
            if code is None:
                if self.stopping and time.time() > self.stopped_at + _GRACE_SECONDS:
                    self._signal(state, signal.SIGKILL)
                continue
            signal_session(state.process, signal.SIGKILL)  # workers that outlived their parent
            self._running.remove(state)
            state.ended = time.time()
            self._leave(state, code)

    def _leave(self, state: StageState, code: int) -> None:
        """A stage's process has ended."""
        if state.folder.record_file.exists():  # whatever came after it
            self._learn_peak(state)
            self._enter(state, "done")
            return
        state.folder.free_dead_lease()
        if state.folder.cancelled.exists():
            self._enter(state, "cancelled", _CANCELLED)
        elif self.stopping:
            self._enter(state, "waiting", "interrupted")
        elif (holder := state.folder.runs_elsewhere()) is not None:  # this machine slept, or did not reach the home
            self._elsewhere.append(state)
            self._enter(state, "elsewhere", f"taken over by {holder}")
        else:
            reason, cause = failure(state.folder, code), cause_of_exit(code)
            delay = self.attempts.next_delay(state.node.fingerprint, cause)
            if delay is None:
                self._enter(state, "failed", reason)
                return
            state.alone = cause == "out_of_memory"
            self._delayed.append((time.time() + delay, state))
            self._enter(state, "waiting", f"{reason}; {self.attempts.words(state.node.fingerprint, cause, delay)}")

    def _poll_elsewhere(self, state: StageState) -> None:
        state.progress = status_of(state.folder)
        if state.folder.is_held():
            return
        self._elsewhere.remove(state)
        if state.folder.record_file.exists():
            self._enter(state, "reused")
        elif state.folder.cancelled.exists():
            self._enter(state, "cancelled", _CANCELLED)
        else:  # whoever ran it is gone without finishing: our turn
            self._make_ready(state)

    def _enter(self, state: StageState, name: State, reason: str = "") -> None:
        state.state, state.reason = name, reason
        if name != "running":
            self.free_devices += state.devices
            state.devices = []
        self.view.changed(state, list(self.states.values()))
        for child in self._children[state.node.fingerprint]:
            if name in _LOST and child.state == "waiting":
                self._enter(child, "blocked", f"needs {state.node.name}, which {name}")
            elif name in _FINISHED:
                self._missing[child.node.fingerprint] -= 1
                if child.state == "waiting" and not self._missing[child.node.fingerprint]:
                    self._make_ready(child)

    @staticmethod
    def _signal(state: StageState, number: signal.Signals) -> None:
        """Asked to end, a stage takes care of what it has started: its workers are needed until its step is done."""
        assert state.process is not None
        if number == signal.SIGKILL:
            signal_session(state.process, number)
        else:
            state.process.send_signal(number)


def _why(error: Exception, state: StageState) -> str:
    if isinstance(error, OSError):
        return f"could not start: {error.strerror or error} ({error.filename or state.folder.path})"
    return str(error)


def _depth(node: StageNode) -> int:
    return 1 + max((_depth(parent) for parent in node.parents.values()), default=0)
