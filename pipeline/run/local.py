"""Stages as processes of this machine: up to `jobs` at a time, each in its own session, output under attempts/.

A stage starts when its GPUs are free and its memory fits beside what runs. If this process dies, however it dies, the kernel tells its
stages to end, and frees their locks when they have.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.errors import PriorlabError
from pipeline.run.backend import Backend, Command, Seen
from pipeline.run.devices import Devices, needed_devices, visible_devices
from pipeline.run.launch import Process, command, environment, exit_code, failure, signal_session, start_process
from pipeline.run.memory import expected_gib, free_gib, total_gib
from pipeline.run.retries import cause_of_exit
from pipeline.run.state import FINISHED, StageState
from pipeline.run.warm import WarmServer, can_fork, warm_server
from pipeline.store.files import write_json_atomically


@dataclass
class _Started:
    state: StageState
    process: Process
    devices: list[str]


class LocalBackend(Backend):
    chains = False
    stopping = "stopping: training stages save a step checkpoint first; Ctrl-C again kills"

    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self._devices = Devices(visible_devices(), command.cluster.stages_per_gpu)
        self._memory = free_gib()
        self._peaks: dict[str, float] = {}
        self._running: dict[str, _Started] = {}
        self._server: WarmServer | None = None

    def begin(self, states: Sequence[StageState]) -> None:
        if self.command.package == "stages":
            self._server = warm_server((state.node for state in states if state.state == "waiting"), self.command.commit)
        if any(state.state == "waiting" for state in states):
            for state in states:
                if state.state in FINISHED:
                    self._learn_peak(state)

    @property
    def full(self) -> bool:
        return len(self._running) >= self.command.jobs

    def start(self, state: StageState) -> Seen | None:
        self._check_it_ever_fits(state)
        if self.full:
            return None
        if self._waits_for_server(state):
            return Seen("later")
        if not self._fits_now(state):
            if not self._running:
                self.close()  # the server's memory may be what is missing
                self.no_room = (
                    f"{state.node.name} waits until {self._declared_gib(state):g} GiB of memory are free "
                    f"(cluster.{state.node.kind}.memory_gib); other programs of this machine hold it"
                )
            return None
        lock = state.folder.lock()
        if lock is None:
            return Seen("elsewhere", f"run by {state.folder.holder()}")
        started = False
        try:
            if state.folder.record() is not None:  # finished by somebody between planning and now
                return Seen("ended")
            self._start(state, lock)
            started = True
        finally:
            if started:
                os.close(lock)  # the stage process holds it now
            else:
                state.folder.unlock(lock)
        return Seen("running")

    def _start(self, state: StageState, lock: int) -> None:
        node, folder, command_ = state.node, state.folder, self.command
        write_json_atomically(folder.spec, node.spec(command_.home, command_.sweep))
        folder.status.unlink(missing_ok=True)
        folder.cancelled.unlink(missing_ok=True)
        attempt = folder.new_attempt()
        start = command(node, folder, command_.package)
        devices = self._devices.free()[: self._wanted(state)]
        write_json_atomically(attempt / "attempt.json", {"command": start, "devices": devices, "commit": command_.commit})
        with (attempt / "stdout.log").open("wb") as log:
            seen = environment(
                node, lock, command_.commit, devices,
                share=1 / command_.cluster.stages_per_gpu, cores=len(os.sched_getaffinity(0)) // command_.jobs,
            )  # fmt: skip
            forked = None if self._server is None else self._server.start(start, seen, log, lock)
            process = forked or start_process(start, seen, log, lock)
        self._devices.take(devices)
        self._running[node.fingerprint] = _Started(state, process, devices)

    def _waits_for_server(self, state: StageState) -> bool:
        """The first stages build what others train on, and import little: they start cold while the server imports."""
        return self._server is not None and can_fork(state.node) and self._server.is_starting()

    def _check_it_ever_fits(self, state: StageState) -> None:
        """Raises `PriorlabError` if this machine is too small for a stage."""
        wanted, there = self._wanted(state), len(self._devices.names)
        if wanted > there:
            raise PriorlabError(f"needs {wanted} GPUs, but this machine shows {there}")
        declared = self._declared_gib(state)
        if declared is not None and declared > total_gib():
            raise PriorlabError(
                f"needs cluster.{state.node.kind}.memory_gib = {declared:g}, but this machine has {total_gib():.1f} GiB"
            )

    def _fits_now(self, state: StageState) -> bool:
        if self._wanted(state) > len(self._devices.free()):
            return False
        beside = [other.state for other in self._running.values()]
        needed = self._expected_gib(state)
        free = free_gib()
        if not beside:
            return needed <= free or self._declared_gib(state) is None  # a guess alone keeps nothing from running
        fits = sum(map(self._expected_gib, beside)) + needed <= self._memory and needed <= free
        return fits and not any(other.alone for other in (state, *beside))

    def _wanted(self, state: StageState) -> int:
        """GPUs, of a machine that has any."""
        return needed_devices(state.node.config) if self._devices.names else 0

    def _declared_gib(self, state: StageState) -> float | None:
        return self.command.cluster.resources(state.node.kind).memory_gib

    def _expected_gib(self, state: StageState) -> float:
        return expected_gib(state.node.config, self._declared_gib(state), self._peaks.get(state.node.kind))

    def _learn_peak(self, state: StageState) -> None:
        """Of a finished stage."""
        try:
            record = state.folder.record() or {}
        except PriorlabError:
            return
        peak = record.get("provenance", {}).get("peak_memory_gib", 0.0)
        self._peaks[state.node.kind] = max(peak, self._peaks.get(state.node.kind, 0.0))

    def poll(self, active: Sequence[StageState]) -> Iterator[tuple[StageState, Seen]]:
        for name, one in list(self._running.items()):
            code = one.process.poll()
            if code is not None:
                signal_session(one.process, signal.SIGKILL)  # workers that outlived their parent
                del self._running[name]
                self._devices.give_back(one.devices)
                yield one.state, self._ended(one.state, code)

    def _ended(self, state: StageState, code: int) -> Seen:
        if state.folder.record_file.exists():
            self._learn_peak(state)
            return Seen("ended")
        state.folder.free_dead_lease()
        holder = state.folder.runs_elsewhere()
        if holder is not None:  # this machine slept, or did not reach the home
            return Seen("elsewhere", f"taken over by {holder}")
        code = exit_code(state.folder, code)
        return Seen("ended", failure(state.folder, code), cause_of_exit(code))

    def interrupt(self, active: Sequence[StageState], *, kill: bool) -> list[StageState]:
        """Asked to end, a stage takes care of what it has started: its workers are needed until its step is done."""
        for one in self._running.values():
            if kill:
                signal_session(one.process, signal.SIGKILL)
            else:
                one.process.send_signal(signal.SIGTERM)
        return [one.state for one in self._running.values()]

    def close(self) -> None:
        """End the server; stages that start later start cold."""
        if self._server is not None:
            self._server.close()
            self._server = None
