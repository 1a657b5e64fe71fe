"""Start stages warm: forked from a process that has imported torch, vLLM, TRL and DeepSpeed once, which takes each stage ten seconds.

`multiprocessing`'s fork server takes the environment and the streams of the process that asks for it, and imports that process's main
module into every child; a stage must see its own. `stages.warm` is the server, this is the orchestrator's end of it.

A stage starts warm if it is one process whose environment is the server's, PRIORLAB_* aside: libraries read theirs when imported. It
starts cold, as a process of its own, on a machine with GPUs (libraries look for devices when imported, and CUDA does not survive a
fork), with several processes, and wherever the server has not started or has died.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import IO

from pipeline.experiment.graph import StageNode
from pipeline.run.devices import visible_devices
from pipeline.run.launch import process_environment

FORKED_NAME = "priorlab-stage"
"""What the kernel calls a forked stage's process: its command line is the server's."""
_NUMBER_BYTES = 8
"""Size of each number in a stage's pipe: first its process ID, written by the stage, then its exit code, written by the server."""
_OWN = "PRIORLAB_"
_LONGEST_END_SECONDS = 5.0
_LONGEST_START_SECONDS = 300.0
"""A server that hangs as it imports must not hold its stages back for ever."""


class WarmServer:
    """The server as its orchestrator sees it; it ends when the orchestrator does."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = _shared(environment)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._starting = True
        self._started = time.monotonic()
        self._alive = True
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stages.die_with_parent", str(os.getpid()), sys.executable, "-m", "stages.warm"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,  # what imports print; if one fails, it fails in the stages' logs as well
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )

    def is_starting(self, *, wait: float = 0.0) -> bool:
        """Whether it still imports, after at most `wait` seconds."""
        if self._starting and select.select([self._orders], [], [], wait)[0]:
            self._starting = False
            self._alive = self._orders.recv(1) != b""
        elif self._starting and time.monotonic() - self._started > _LONGEST_START_SECONDS:
            self._starting = self._alive = False
        return self._starting

    def start(self, command: list[str], environment: dict[str, str], log: IO[bytes], lock: int) -> ForkedStage | None:
        """A stage's process, or None if it has to start cold."""
        module = _module_of(command)
        if module is None or _shared(environment) != self._environment or self.is_starting() or not self._alive:
            return None
        order = {"module": module, "arguments": command[-2:], "environment": environment, "name": FORKED_NAME}
        ours, theirs = os.pipe()
        try:
            socket.send_fds(self._orders, [json.dumps(order).encode()], [log.fileno(), lock, theirs])
        except OSError:  # it has died, or the environment is larger than a message may be
            os.close(ours)
            return None
        finally:
            os.close(theirs)
        number = os.read(ours, _NUMBER_BYTES)
        if not number:
            self._alive = False
            os.close(ours)
            return None
        return ForkedStage(_number(number), ours)

    def close(self) -> None:
        """End it, at once if it still imports, and with it what it has forked."""
        self._orders.close()  # upon which it ends, and removes the temporary folders that its libraries made
        if not self._starting:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LONGEST_END_SECONDS)
        self._process.kill()
        self._process.wait()


class ForkedStage:
    """A stage's process that is the server's child: as much of `subprocess.Popen` as an orchestrator needs."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pipe = pipe
        self._handle: int | None = None
        with suppress(ProcessLookupError):  # it has ended already
            self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code, as `Popen.poll` gives it; -SIGKILL if the server died, which takes its stages with it."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code once it has ended. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select.select([self._pipe], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"stage {self.pid}", timeout or 0.0)
            code = os.read(self._pipe, _NUMBER_BYTES)
            self.returncode = _number(code) if code else -signal.SIGKILL
            os.close(self._pipe)
            if self._handle is not None:
                os.close(self._handle)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To this process and no other that may have taken over its number; nothing if it has ended."""
        if self.poll() is None and self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)


def can_fork(node: StageNode) -> bool:
    """Whether a stage may be forked: one process, one thread. Those without parents import little and start cold."""
    return bool(node.parents) and node.config.processes == node.config.threads == 1


def warm_server(nodes: Iterable[StageNode], commit: str) -> WarmServer | None:
    """A server for the stages to run, if at least two of them can be forked."""
    if visible_devices():
        return None
    environments = Counter(
        tuple(process_environment(1, None, commit, hub=node.config.reads_hub).items()) for node in nodes if can_fork(node)
    )
    if not environments:
        return None
    (environment, stages), *_ = environments.most_common(1)
    try:
        os.close(os.pidfd_open(os.getpid()))  # which some kernels do not have, or refuse
        return WarmServer(dict(environment)) if stages > 1 else None
    except (AttributeError, OSError):
        return None


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder, signed=True)


def _shared(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_OWN)}


def _module_of(command: list[str]) -> str | None:
    """The module that a command (`launch.command`) runs as the stage's only process."""
    module = command[-3]
    return module if module.startswith("stages.") and "torch.distributed.run" not in command else None
