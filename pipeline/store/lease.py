"""Leases: which machine may run a stage, beside the OS lock that decides among the processes of one.

The kernel frees the OS lock of a dead process at once, but not every shared file system carries it to other machines. So whoever has
the lock also takes a lease: the file `leases/NUMBER.json` with the next free number, created by hard link, which one machine alone can
win. While the stage runs, the file's modification time is counted up, as a number and not as a time: no clock is compared with another.

A lease ends when its file is removed; when its number is overtaken (the holder finds out before it commits anything, and stops); or
when it is dead: on its own machine, as soon as the OS lock is free; seen from another, after its count has stood still for
`SILENCE_SECONDS` of the observer's own clock.
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
"""Twelve missed beats, and twice as long as NFS clients keep attributes of files by default."""
_FOLDER = "leases"


@dataclass(frozen=True)
class _Found:
    """The newest lease of a folder, as it lies on disk; a torn file has an unknown holder."""

    path: Path
    number: int
    count: int
    token: str
    machine: str
    holder: str


@dataclass
class Lease:
    """One's own lease."""

    folder: Path
    path: Path
    token: str
    _count: int = field(default=0, repr=False)

    def is_mine(self) -> bool:
        """False once another machine has taken over: then nothing may be committed any more."""
        newest = _newest(self.folder)
        return newest is not None and newest.token == self.token

    def beat(self) -> None:
        """Count up. The file may be gone; `is_mine` tells."""
        self._count += 1
        with suppress(FileNotFoundError):
            os.utime(self.path, ns=(self._count * 10**9, self._count * 10**9))  # whole seconds: not all file systems keep more

    def release(self) -> None:
        if self.is_mine():
            self.path.unlink(missing_ok=True)


def machine() -> str:
    """Of this start of this machine's kernel: the processes that its locks hold among."""
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
    if not lease.is_mine():  # somebody came in between, and has overtaken the number
        lease.path.unlink(missing_ok=True)
        return None
    for older in _numbers(folder):
        if older < int(lease.path.stem):
            (leases / f"{older}.json").unlink(missing_ok=True)
    return lease


def _create(path: Path, text: str, temporary: Path) -> bool:
    """Whether this process has created the file, whole; `temporary` is this machine's own, and the OS lock keeps it to this process."""
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
    """The lease that the process which handed down the OS lock has taken, or None if another machine has it by now."""
    newest = _newest(folder)
    return Lease(folder, newest.path, newest.token, newest.count) if newest is not None and newest.machine == machine() else None


def other_holder(folder: Path) -> str | None:
    """Who on another machine has the lease, for people; None if nobody, or if it is dead. Ask repeatedly: only time shows a death."""
    newest = _newest(folder)
    return newest.holder if newest is not None and newest.machine != machine() and _may_live(newest) else None


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
        except FileNotFoundError:  # released in this instant
            continue
        except (ValueError, KeyError, TypeError):  # a crash between creating and writing, where there are no hard links
            return _Found(path, number, count, "", "", "a process that left no name")
    return None


def _numbers(folder: Path) -> list[int]:
    with suppress(FileNotFoundError), os.scandir(folder / _FOLDER) as entries:
        return [int(entry.name.removesuffix(".json")) for entry in entries if entry.name.removesuffix(".json").isdigit()]
    return []
