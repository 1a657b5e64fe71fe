"""Who holds a lock: the only processes that `cancel` may signal.

The kernel lists locks per open file (/proc/PID/fdinfo), so a process number reused in the meantime is never mistaken for the stage, as
one read from a status file could be.
"""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

from pipeline.errors import PriorlabError
from pipeline.run.warm import FORKED_NAME

_PROC = Path("/proc")


def holders(lock: Path) -> list[int]:
    """Processes of this machine that hold the OS lock on a file."""
    try:
        wanted = lock.stat()
    except FileNotFoundError:
        return []
    return [int(process.name) for process in _PROC.iterdir() if process.name.isdigit() and _holds(process, wanted)]


def _holds(process: Path, wanted: os.stat_result) -> bool:
    try:
        for descriptor in (process / "fd").iterdir():
            found = descriptor.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                details = (process / "fdinfo" / descriptor.name).read_text(encoding="utf-8")
                if any(line.startswith("lock:") and "FLOCK" in line for line in details.splitlines()):
                    return True
    except OSError:  # it has ended, or is another user's
        return False
    return False


def holder_text(lock: Path) -> str:
    """What the file says about its holder: process, host and time."""
    try:
        return lock.read_text(encoding="utf-8").strip() or "a process that left no name"
    except OSError:
        return "a process that left no name"


def runs_spec(process: int, spec: Path) -> bool:
    """Whether the process, which holds the stage's lock, is the stage of this spec; its orchestrator, which holds it for an instant,
    is not. One that was forked has its server's command line, and a name of its own with the kernel."""
    try:
        if (_PROC / str(process) / "comm").read_text(encoding="utf-8", errors="replace").strip() == FORKED_NAME:
            return True
        arguments = (_PROC / str(process) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        folder = (_PROC / str(process) / "cwd").readlink()
    except OSError:
        return False
    return any((folder / path).resolve() == spec.resolve() for option, path in itertools.pairwise(arguments) if option == "--spec")


def signal_holder(process: int, lock: Path, number: signal.Signals, *, group: bool) -> None:
    """Signal a process if it still holds the lock; with `group`, its whole process group if it leads one."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        if process not in holders(lock):
            return
        if group and os.getpgid(process) == process:
            os.killpg(process, number)
        else:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:  # it ended by itself
        return
    except PermissionError as error:
        raise PriorlabError(f"process {process}, which holds {lock}, belongs to another user; ask them to end it") from error
    finally:
        os.close(handle)
