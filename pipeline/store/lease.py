"""Leases: which machine may run a stage; the OS lock decides among the processes of one.

The kernel frees a dead process's OS lock at once, but not every shared file system shows locks to other machines. So whoever holds the
lock also takes a lease: the file `leases/NUMBER.json` with the next free number, created by hard link, which only one machine can win.
While the stage runs, the file's modification time is a counter, not a time: the clocks of two machines are never compared.

A lease ends when its file is removed; when a higher number appears (the holder notices before it commits anything, and stops); or when
it is dead: on its own machine, once the OS lock is free; seen from another, once its counter has stood still for `SILENCE_SECONDS` of
the observer's clock.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

BEAT_SECONDS = 10.0
SILENCE_SECONDS = 120.0
"""Twelve missed beats, and twice as long as NFS clients cache file attributes by default."""
_LOOK_SECONDS = 0.5
_FOLDER = "leases"


@dataclass(frozen=True)
class _Found:
    """The newest lease of a folder, as found on disk; a torn file has an unknown holder."""

    path: Path
    number: int
    count: int
    token: str
    machine: str
    holder: str


@dataclass
class Lease:
    """A lease we hold."""

    folder: Path
    path: Path
    token: str
    _count: int = field(default=0, repr=False)

    def is_mine(self) -> bool:
        """False once another machine has taken over: nothing may be committed after that."""
        newest = _newest(self.folder)
        return newest is not None and newest.token == self.token

    def beat(self) -> None:
        """Count up. The file may be gone: ask `is_mine`."""
        self._count += 1
        with suppress(FileNotFoundError):
            os.utime(self.path, ns=(self._count * 10**9, self._count * 10**9))  # whole seconds: not all file systems keep more

    def release(self) -> None:
        if self.is_mine():
            self.path.unlink(missing_ok=True)


def machine() -> str:
    """This boot of this machine: OS locks hold among its processes."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()}-{uuid.getnode():x}"


def take(folder: Path) -> Lease | None:
    """The lease of a stage's folder, or None if another machine has it. The caller holds the folder's OS lock."""
    newest = _newest(folder)
    if newest is not None and _may_live(newest):
        return None
    leases, here, token = folder / _FOLDER, machine(), uuid.uuid4().hex
    leases.mkdir(exist_ok=True)
    lease = Lease(folder, leases / f"{1 if newest is None else newest.number + 1}.json", token)
    text = json.dumps({"token": token, "machine": here, "holder": f"process {os.getpid()} on {socket.gethostname()}"})
    if not _create(lease.path, text, leases / f".{here}.tmp"):
        return None
    lease.beat()
    if not lease.is_mine():  # someone got in between, with a higher number
        lease.path.unlink(missing_ok=True)
        return None
    for older in _numbers(folder):
        if older < int(lease.path.stem):
            (leases / f"{older}.json").unlink(missing_ok=True)
    return lease


def _create(path: Path, text: str, temporary: Path) -> bool:
    """Whether this process created the file, whole; `temporary` is this machine's, and the OS lock keeps others away from it."""
    temporary.write_text(text, encoding="utf-8")
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def handed_down(folder: Path) -> Lease | None:
    """The lease taken by the process that handed down the OS lock, or None if another machine has it by now."""
    newest = _newest(folder)
    return Lease(folder, newest.path, newest.token, newest.count) if newest is not None and newest.machine == machine() else None


def other_holder(folder: Path) -> str | None:
    """Who on another machine has the lease, in words; None if nobody has, or it is dead. Ask repeatedly: only time shows a death."""
    newest = _newest(folder)
    return newest.holder if newest is not None and newest.machine != machine() and _may_live(newest) else None


def is_silent(folder: Path) -> bool:
    """Whether the lease's holder shows no sign of life for `SILENCE_SECONDS`; waits for one so long."""
    first, started = _newest(folder), time.monotonic()
    while (newest := _newest(folder)) is not None and time.monotonic() - started < SILENCE_SECONDS:
        if first is None or (newest.token, newest.count) != (first.token, first.count):
            return False
        time.sleep(_LOOK_SECONDS)
    return True


_seen: dict[Path, tuple[str, int, float]] = {}
"""Per lease: token and count as this process last saw them change, and when, on its own monotonic clock."""


def _may_live(lease: _Found) -> bool:
    if lease.machine == machine():  # the caller has the OS lock, or has asked for it
        return False
    now = time.monotonic()
    token, count, since = _seen.get(lease.path, ("", -1, now))
    if (token, count) != (lease.token, lease.count):
        _seen[lease.path] = (lease.token, lease.count, now)
        return True
    return now - since < SILENCE_SECONDS


def _newest(folder: Path) -> _Found | None:
    for number in sorted(_numbers(folder), reverse=True):
        path = folder / _FOLDER / f"{number}.json"
        try:
            count = int(path.stat().st_mtime)
            said = json.loads(path.read_text(encoding="utf-8"))
            return _Found(path, number, count, said["token"], said["machine"], said["holder"])
        except FileNotFoundError:  # just released
            continue
        except (ValueError, KeyError, TypeError):  # a crash between creating and writing, without hard links
            return _Found(path, number, count, "", "", "an unnamed process")
    return None


def _numbers(folder: Path) -> list[int]:
    with suppress(FileNotFoundError), os.scandir(folder / _FOLDER) as entries:
        return [int(entry.name.removesuffix(".json")) for entry in entries if entry.name.removesuffix(".json").isdigit()]
    return []
