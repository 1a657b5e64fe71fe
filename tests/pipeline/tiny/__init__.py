"""Stages without torch, for tests of what is around them: the real contract, runner, locks and records, and next to no work.

`python -m tests.pipeline.tiny.KIND --spec ...` appends a line to $TINY_LOG when its work begins and when it is done. What else it does
is said by $TINY, a JSON object: {KIND: BEHAVIOUR}.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.errors import DivergedError, Stopped
from stages.contract import Stage, main


def run(kind: str) -> None:
    main(kind, work)


def work(stage: Stage) -> dict[str, Any]:
    note("start", stage)
    for role in stage.spec["parents"]:
        stage.parent(role)
    behave(json.loads(os.environ.get("TINY", "{}")).get(stage.spec["kind"], ""), stage)

    def write(folder: Path) -> None:
        if stage.rank == 0:
            (folder / "result.txt").write_text(stage.spec["fingerprint"], encoding="utf-8")

    stage.export(write)
    note("end", stage)
    return {"value": 1.0}


def note(what: str, stage: Stage) -> None:
    line = f"{what} {stage.folder.name} {os.getpid()} {time.time()}\n"
    descriptor = os.open(os.environ["TINY_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def behave(behaviour: str, stage: Stage) -> None:
    first = len(stage.folder.attempts()) <= 1
    if behaviour == "slow":
        wait_with_a_worker_and_a_port(stage)
    elif behaviour.startswith("leaves a worker"):
        leave_a_worker_and_a_port(stage)
        if behaviour.endswith("fails"):
            raise RuntimeError("with a worker running")
    elif behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wait_with_a_worker_and_a_port(stage)
    elif behaviour == "saves when asked":
        with stage.guard.saving():
            while not stage.guard.stopping:
                stage.progress(1, 2, "steps")
                time.sleep(0.02)
        (stage.folder.checkpoints / "checkpoint-1").mkdir(parents=True)
        raise Stopped("saved")
    elif behaviour == "bug at first" and first:
        raise RuntimeError("a cosmic ray")
    elif behaviour == "bug":
        raise RuntimeError("always")
    elif behaviour == "lacks a package":
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    elif behaviour == "memory at first" and first:
        raise MemoryError
    elif behaviour == "killed at first" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "preempted at first" and first:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    elif behaviour == "stops at first" and first:
        raise Stopped("saved")
    elif behaviour == "diverges":
        raise DivergedError("the loss is nan at step 7: training has diverged.")
    elif behaviour.startswith("takes "):
        time.sleep(float(behaviour.removeprefix("takes ")))


def wait_with_a_worker_and_a_port(stage: Stage) -> None:
    leave_a_worker_and_a_port(stage)
    deadline = time.time() + 60
    while time.time() < deadline:
        time.sleep(0.02)


def leave_a_worker_and_a_port(stage: Stage) -> None:
    """What an engine leaves behind if nobody takes care: a process and a listening socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[listener.fileno()])
    (stage.folder.path / "worker.json").write_text(json.dumps({"pid": worker.pid, "port": listener.getsockname()[1]}))
    stage.progress(1, 2, "steps")


def started(log: Path) -> list[str]:
    """The stages whose work has begun, in that order."""
    return [line.split()[1] for line in log.read_text().splitlines() if line.startswith("start ")]
