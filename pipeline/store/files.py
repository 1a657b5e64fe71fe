"""Files that survive crashes, whole or absent: atomic writes, checksums, and OS locks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import PriorlabError


def write_text_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Readers see the old file or the new, never a part. `durable` also survives a power cut (fsync)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def write_json_atomically(path: Path, value: Any, *, durable: bool = True) -> None:
    write_text_atomically(path, json.dumps(value, indent=2) + "\n", durable=durable)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder, and all files and folders below it, to disk."""
    for path in [folder, *folder.rglob("*")]:
        _sync(path)


def read_json(path: Path) -> Any | None:
    """None if the file is missing; `PriorlabError` if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PriorlabError(
            f"{path} is not readable JSON ({error}). Remove the file to rerun its stage from the last checkpoint."
        ) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """What a file says that nothing depends on; empty if it is missing, unreadable, or no mapping."""
    try:
        value = read_json(path)
    except PriorlabError:
        return {}
    return value if isinstance(value, dict) else {}


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, without lines that are not rows, such as one that a kill cut short. Empty if there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def files_below(folder: Path) -> list[str]:
    """Relative paths of every file below a folder, sorted."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def manifest_of(folder: Path, files: Iterable[str] | None = None) -> dict[str, str]:
    """sha256 of every file below a folder, or of some, by relative path."""
    return {name: sha256_of(folder / name) for name in (files_below(folder) if files is None else files)}


def damage(folder: Path, manifest: dict[str, str]) -> list[str]:
    """Every file that is missing or differs from the manifest, in words."""
    problems = []
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := sha256_of(path)) != expected:
            problems.append(f"{name} has sha256 {found[:12]}, expected {expected[:12]}")
    return problems


def check_unchanged(path: Path, sha256: str, key: str) -> None:
    """Raises `PriorlabError` if a file that a config names is not what it was when the run was planned; `key` names it."""
    if sha256_of(path) != sha256:
        raise PriorlabError(
            f"{path} ({key}) has changed since the run was planned (sha256 {sha256[:12]}); run the command again to use its new "
            "content, or restore the old"
        )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_is_held(path: Path) -> bool:
    """Whether some process holds the OS lock on a file; creates and writes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def take_lock(path: Path) -> int | None:
    """An open descriptor holding an exclusive OS lock on `path`, or None. The file says who holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):  # moved meanwhile, as by `priorlab gc`
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}".encode(), 0)
    return descriptor
