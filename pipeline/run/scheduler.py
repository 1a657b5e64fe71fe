"""One scheduler for every backend: what waits for what, what is tried again, what is recorded, and how a command ends.

A stage whose record is there is reused. One that fails is tried again as `cluster.retries` says, and stops only what depends on it. One
that another command runs is waited for.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from types import FrameType

from pipeline.config.cluster import ClusterConfig, Retries
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import Graph
from pipeline.run.backend import Backend, Command, Seen
from pipeline.run.backends import BACKENDS
from pipeline.run.launch import git_commit
from pipeline.run.retries import Attempts
from pipeline.run.state import AT_WORK, FINISHED, LOST, Outcome, StageState, State, View
from pipeline.store.folders import Home, status_of
from pipeline.store.progress import seconds_so_far

_TICK_SECONDS = 0.1
_GRACE_SECONDS = 75.0
"""A stage gives itself sixty to save a step checkpoint."""


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

    `package` is that of `Command`.
    """
    wanted = set(graph.stages if only is None else only)
    states = {f: StageState(node, node.folder(home)) for f, node in graph.stages.items() if f in wanted}
    for state in states.values():
        state.parents = [states[parent.fingerprint] for parent in state.node.parents.values() if parent.fingerprint in states]
        for parent in state.parents:
            parent.children.append(state)
        if state.folder.record() is not None:
            state.state = "reused"
    cluster = cluster or ClusterConfig(kind="local")
    backend = BACKENDS[cluster.kind](Command(home, sweep, cluster, jobs, git_commit(), package))
    scheduler = Scheduler(list(states.values()), backend, cluster.retries, view)
    with closing(backend), _interruptible(scheduler):
        scheduler.loop()
    return Outcome(scheduler.states, scheduler.stopping)


class Scheduler:
    """Runs stages until each has reached an end state, or `stop` is called."""

    def __init__(self, states: Sequence[StageState], backend: Backend, retries: Retries, view: View) -> None:
        """`states`: parents before children."""
        self.states = list(states)
        self.backend = backend
        self.view = view
        self.attempts = Attempts(retries)
        # Late stages go first: a cell is finished before the next begins, so results show early. Backends that chain start all at once.
        self._order = self.states if backend.chains else sorted(self.states, key=_depth, reverse=True)
        self._active: dict[str, StageState] = {}
        self._changed = True
        self._asked_to_stop = self._heeded = 0
        self._stopped_at = 0.0
        self._ending: list[StageState] = []
        self._taken_back: list[StageState] = []
        self._told_no_room = False

    @property
    def stopping(self) -> bool:
        return self._asked_to_stop > 0

    def stop(self) -> None:
        """First call: ask the stages to end and wait for them. Second call: kill them. For a signal handler: the loop does the work."""
        self._asked_to_stop += 1

    def loop(self) -> None:
        self.backend.begin(self.states)
        with self.backend.handover():
            for state, seen in self.backend.found(self.states):
                self._see(state, seen)
            self._start_round()
        if self.backend.detached:
            return
        while True:
            self._heed_stop()
            self._withdraw()
            if not self._at_it():
                return
            self._start()
            self._poll()
            self.view.tick(self.states)
            if self._at_it():
                time.sleep(_TICK_SECONDS)

    def _at_it(self) -> bool:
        if self.stopping:
            return self._asked_to_stop > self._heeded or any(state.state in ("queued", "running") for state in self._ending)
        return bool(self._active) or any(state.state == "waiting" for state in self.states)

    def _start(self) -> None:
        now = time.monotonic()
        if self.stopping or self.backend.full or not (self._changed or any(0 < state.not_before <= now for state in self.states)):
            return
        if any(self._startable(state) for state in self._order):
            with self.backend.handover():
                self._start_round()
        else:
            self._changed = False

    def _start_round(self) -> None:
        """Start what can be. One that finds no room holds back those behind it: else large stages would wait for all small ones."""
        self._changed = False
        for state in self._order:
            if self.stopping:
                return
            if not self._startable(state):
                continue
            try:
                state.folder = state.node.folder(self.backend.command.home)  # another sweep may have begun it under another name
                seen = self.backend.start(state)
            except PriorlabError as error:
                self._enter(state, "failed", str(error))
                continue
            except OSError as error:
                reason = f"could not start: {error.strerror or error} ({error.filename or state.folder.path})"
                self._enter(state, "failed", reason)
                continue
            if seen is None:
                self._changed = True  # so that it is asked again
                if self.backend.no_room and not self._told_no_room:
                    self._told_no_room = True
                    self.view.note(self.backend.no_room)
                return
            if seen.state == "later":
                self._changed = True
                continue
            self._see(state, seen)

    def _startable(self, state: StageState) -> bool:
        far_enough = FINISHED + AT_WORK if self.backend.chains else FINISHED
        return (
            state.state == "waiting"
            and state.not_before <= time.monotonic()
            and all(parent.state in far_enough for parent in state.parents)
        )

    def _poll(self) -> None:
        started = [state for state in self._active.values() if state.state != "elsewhere"]
        for state, seen in self.backend.poll(started):
            self._see(state, seen)
        for state in list(self._active.values()):
            if state.state != "queued":
                state.progress = status_of(state.folder)
            if state.state == "elsewhere" and not state.folder.is_held():
                self._see(state, Seen("ended"))

    def _see(self, state: StageState, seen: Seen) -> None:
        """Take in what a backend has seen."""
        ours = state.state in ("queued", "running")
        cancelled = state.folder.cancelled.exists()
        if seen.state in ("queued", "running") or (seen.state == "elsewhere" and not (ours and (self.stopping or cancelled))):
            if state.state != seen.state:
                self._enter(state, seen.state, seen.reason)
            state.reason = seen.reason
        elif state.folder.record_file.exists():  # whatever came after it
            self._enter(state, "done" if ours else "reused")
        elif cancelled:
            self._enter(state, "cancelled", "by `priorlab cancel`")
        elif self.stopping:
            self._enter(state, "waiting", "interrupted")
        elif lost := next((parent for parent in state.parents if parent.state in LOST), None):  # its record came late, or never
            self._block(state, lost)
        elif not ours or any(parent.state not in FINISHED for parent in state.parents):
            self._enter(state, "waiting")  # whoever ran it is gone without finishing, or a parent is tried again: its turn will come
        else:
            self._fail_or_retry(state, seen)

    def _fail_or_retry(self, state: StageState, seen: Seen) -> None:
        name = state.node.fingerprint
        delay = self.attempts.next_delay(name, seen.cause)
        if delay is None:
            state.log = state.folder.last_log() or seen.log
            self._enter(state, "failed", seen.reason)
            return
        state.not_before = time.monotonic() + delay
        state.alone = seen.cause == "out_of_memory"
        self._enter(state, "waiting", f"{seen.reason}; {self.attempts.words(name, seen.cause, delay)}")

    def _enter(self, state: StageState, name: State, reason: str = "") -> None:
        """Set a stage's state, and what follows from it for those that depend on it."""
        if state.state in ("queued", "running") and name not in AT_WORK:
            state.ended = time.monotonic()
            if self.backend.chains:  # only the stage itself knows when its job started
                seconds = seconds_so_far(status_of(state.folder))
                state.started = 0.0 if seconds is None else state.ended - seconds
        if name in ("queued", "running"):
            state.started = state.ended = 0.0
        if name == "running":
            state.started, state.log = time.monotonic(), state.folder.last_log()
        if name != "waiting":
            state.not_before = 0.0
        state.state, state.reason, self._changed = name, reason, True
        if name in AT_WORK:
            self._active[state.node.fingerprint] = state
        else:
            self._active.pop(state.node.fingerprint, None)
        self.view.changed(state, self.states)
        for child in state.children:
            if name in LOST and child.state in ("waiting", "queued"):
                self._block(child, state)
            elif name == "waiting" and child.state == "queued":  # behind a parent that is tried again, or not
                self._taken_back.append(child)
                self._enter(child, "waiting")

    def _block(self, state: StageState, lost: StageState) -> None:
        if state.state == "queued":
            self._taken_back.append(state)
        how = {"failed": "failed", "cancelled": "was cancelled", "blocked": "is blocked"}[lost.state]
        self._enter(state, "blocked", f"needs {lost.node.name}, which {how}")

    def _withdraw(self) -> None:
        if self._taken_back:
            self.backend.withdraw(self._taken_back)
            self._taken_back = []

    def _heed_stop(self) -> None:
        """Hand on one call of `stop`; what has not ended after a while is killed."""
        late = bool(self._ending) and time.monotonic() > self._stopped_at + _GRACE_SECONDS
        if self._asked_to_stop == self._heeded and not late:
            return
        first = self._heeded == 0
        self._heeded = min(self._heeded + 1, self._asked_to_stop)
        started = [state for state in self._active.values() if state.state != "elsewhere"]
        before, self._ending = self._ending, self.backend.interrupt(started, kill=not first)
        if first:
            self._stopped_at = time.monotonic()
            if self._ending:
                self.view.note(self.backend.stopping)
        for state in before:
            if state.state in ("queued", "running") and state not in self._ending:  # no longer waited for
                self._enter(state, "waiting", "cancelled")


def _depth(state: StageState) -> int:
    """Length of the longest chain of its ancestors."""
    depth, nodes = 0, [state.node]
    while nodes := [parent for node in nodes for parent in node.parents.values()]:
        depth += 1
    return depth


@contextmanager
def _interruptible(scheduler: Scheduler) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) once ends the stages in order, twice kills them."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        scheduler.stop()

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
