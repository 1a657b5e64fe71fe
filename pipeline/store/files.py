"""Files that outlive crashes and are whole or not there: atomic writes, checksums, and locks of the operating system."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from pipeline.errors import PriorlabError

_HASH_CHUNK = 1 << 20


def write_text_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Readers see the old file or the new one, never a part. `durable` also survives a power cut (fsync)."""
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
        _sync_folder(path.parent)


def write_json_atomically(path: Path, value: Any, *, durable: bool = True) -> None:
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", durable=durable)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have all files and folders below (and with) a folder on the disk before going on."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def read_json(path: Path) -> Any | None:
    """None if the file is not there; `PriorlabError` if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PriorlabError(
            f"{path} is not readable JSON ({error}). Remove the file to have its stage run again from its last checkpoint."
        ) from error


def manifest_of(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def damage(folder: Path, manifest: dict[str, str]) -> list[str]:
    """Every file that is missing or differs from the manifest, for people."""
    problems = []
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := sha256_of(path)) != expected:
            problems.append(f"{name} has sha256 {found[:12]}, recorded was {expected[:12]}")
    return problems


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
    """An open descriptor holding an exclusive OS lock on `path`, or None. The file tells who holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):  # moved away in between, as by `priorlab gc`
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}".encode(), 0)
    return descriptor
