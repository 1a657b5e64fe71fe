"""Kill a process at each of its system calls in turn, and check what is left.

`python -m tests.unit.crash_points OPERATION FOLDER` runs the operation in a forked child under ptrace, and kills it with SIGKILL as it
enters its first, second, third ... system call that could change something, until it completes. After each kill the folder must hold
the old state or the new one, and rerunning the operation must produce the new one. Prints the calls it was killed at.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PriorlabError
from pipeline.home import garbage
from pipeline.store import lease
from pipeline.store.files import damage, read_json, write_json_atomically
from pipeline.store.folders import Home, StageFolder
from stages import contract
from stages.contract import Stage
from stages.guard import Guard

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_TRACESYSGOOD, _EXITKILL = 1, 1 << 20
_ENTRY = 1
# Numbers on x86-64; other machines are killed at every call, which is slower and shows the same.
_CHANGING = {
    1: "write", 18: "pwrite64", 20: "writev", 40: "sendfile", 73: "flock", 74: "fsync", 75: "fdatasync", 76: "truncate",
    77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 86: "link", 87: "unlink", 88: "symlink", 257: "openat",
    258: "mkdirat", 263: "unlinkat", 264: "renameat", 265: "linkat", 280: "utimensat", 316: "renameat2", 326: "copy_file_range",
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Operation:
    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    is_old: Callable[[Path], bool]
    is_new: Callable[[Path], bool]


def kill_at_call(number: int, run: Callable[[], None]) -> str | None:
    """The call that the child was killed at; None if it ended before its call `number`. `PermissionError` if tracing is forbidden."""
    child = os.fork()
    if child == 0:
        if _libc.ptrace(_TRACEME, 0, 0, 0) != 0:
            os._exit(99)
        os.kill(os.getpid(), signal.SIGSTOP)
        run()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise PermissionError("ptrace is not allowed here")
    _libc.ptrace(_SETOPTIONS, child, 0, ctypes.c_void_p(_TRACESYSGOOD | _EXITKILL))
    seen = 0
    while True:
        _libc.ptrace(_SYSCALL, child, 0, 0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            if os.waitstatus_to_exitcode(status) != 0:
                raise RuntimeError(f"the operation itself failed with {os.waitstatus_to_exitcode(status)}")
            return None
        call = _entered(child)
        if call is None:
            continue
        seen += 1
        if seen == number:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return call


def _entered(child: int) -> str | None:
    """The name of the call that a stopped child is about to make, if that could change something."""
    info = ctypes.create_string_buffer(88)
    _libc.ptrace(_GET_SYSCALL_INFO, child, ctypes.c_void_p(len(info)), info)
    if info.raw[0] != _ENTRY:
        return None
    number, *arguments = struct.unpack_from("7Q", info.raw, 24)
    if os.uname().machine != "x86_64":
        return str(number)
    if number == 257 and not arguments[2] & (os.O_CREAT | os.O_TRUNC):  # opened for reading
        return None
    return _CHANGING.get(number)


def explore(operation: Operation, place: Path) -> Counter[str]:
    """Raises `AssertionError` naming the call after which the folder was in neither state."""
    calls: Counter[str] = Counter()
    while True:
        folder = place / "stages" / "pretrain" / "ce-s0-0123456789ab"
        shutil.rmtree(place, ignore_errors=True)
        folder.mkdir(parents=True)
        operation.prepare(folder)
        assert operation.is_old(folder)
        assert not operation.is_new(folder)
        call = kill_at_call(calls.total() + 1, functools.partial(operation.run, folder))
        if call is None:
            assert operation.is_new(folder)
            return calls
        calls[call] += 1
        where = f"killed at {call}, the {calls.total()}th call"
        assert operation.is_old(folder) or operation.is_new(folder), where
        if not operation.is_new(folder):
            operation.run(folder)
            assert operation.is_new(folder), f"{where}, and a rerun did not finish"


_FILES = {"config.json": "{}", "model.safetensors": "weights" * 999, "tokenizer/vocabulary.txt": "a b c"}


def _stage(folder: Path) -> Stage:
    stage = Stage(folder / "spec.json", Guard())
    stage.guard.lease = lease.handed_down(folder)
    return stage


def _begun(folder: Path) -> None:
    from pipeline.experiment.compose import load_sweep
    from pipeline.experiment.graph import build_graph

    node = build_graph(load_sweep("smoke").cells()).cells[0].chain["corpus"]
    write_json_atomically(folder / "spec.json", node.spec(Home(folder.parent.parent.parent), "smoke"))
    (folder / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-5" / "complete").write_text("{}")


def write_export(folder: Path) -> None:
    for name, text in _FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def _commit(folder: Path) -> None:
    """What a stage does once its work is done: lock and lease, export, record, end."""
    lock = StageFolder(folder).lock()
    assert lock is not None
    stage = _stage(folder)
    stage.export(write_export)
    stage.finish({"loss": 1.0})
    StageFolder(folder).unlock(lock)


def _is_done(folder: Path) -> bool:
    record = StageFolder(folder).record()  # raises if torn
    return record is not None and set(record["manifest"]) == set(_FILES) and not damage(folder / "export", record["manifest"])


def _no_record(folder: Path) -> bool:
    return not (folder / "record.json").exists() and (folder / "checkpoints").exists()


def _done(folder: Path) -> None:
    _begun(folder)
    _commit(folder)
    (folder / "metrics.jsonl").write_text("{}\n")


def _clear(folder: Path) -> None:
    lock = StageFolder(folder).lock()
    assert lock is not None
    StageFolder(folder).clear()
    StageFolder(folder).unlock(lock)


def _is_clear(folder: Path) -> bool:
    """Not done: a rerun rebuilds everything, whatever is left of the export."""
    return not (folder / "record.json").exists()


def _overwrite(folder: Path) -> None:
    write_json_atomically(folder / "spec.json", {"state": "new" * 9999})


def _spec(folder: Path) -> object:
    found = read_json(folder / "spec.json")  # raises if it is torn
    assert isinstance(found, dict)
    return found["state"][:3]


def _collect(folder: Path) -> None:
    home = Home(folder.parent.parent.parent)
    with contextlib.suppress(PriorlabError):
        (home.path / "sweeps" / "kept").mkdir(parents=True, exist_ok=True)
        (home.path / "sweeps" / "kept" / "sweep.yaml").write_text("axes: {}\n")
        (home.path / "sweeps" / "kept" / "cells.jsonl").write_text('{"stages": []}\n')  # of a cell that needs none
    list(garbage.delete(garbage.find(home), home))


def _is_gone(folder: Path) -> bool:
    return not folder.exists() and not (folder.parent.parent.parent / "trash").exists()


def _is_gone_or_being_deleted(folder: Path) -> bool:
    return not folder.exists() or _is_done(folder)


def _dead_lease(folder: Path) -> None:
    """A lease of this machine whose holder was killed after beating once."""
    taken = lease.take(folder)
    assert taken is not None


def _take_over(folder: Path) -> None:
    taken = lease.take(folder)
    assert taken is not None
    assert taken.is_mine()
    (folder / "taken").touch()


OPERATIONS = {
    "commit": Operation(_begun, _commit, _no_record, _is_done),
    "force": Operation(_done, _clear, _is_done, _is_clear),
    "overwrite": Operation(
        lambda f: write_json_atomically(f / "spec.json", {"state": "old"}), _overwrite, lambda f: _spec(f) == "old",
        lambda f: _spec(f) == "new",
    ),
    "collect": Operation(_done, _collect, _is_gone_or_being_deleted, _is_gone),
    "lease": Operation(_dead_lease, _take_over, lambda f: not (f / "taken").exists(), lambda f: (f / "taken").exists()),
}  # fmt: skip


def main() -> None:
    os.environ["WANDB_MODE"] = "disabled"
    contract.provenance()  # its imports and look-ups are not part of the commit
    print(json.dumps(explore(OPERATIONS[sys.argv[1]], Path(sys.argv[2]))))


if __name__ == "__main__":
    main()
