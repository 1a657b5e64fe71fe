"""Digests of the text that configs point to, so that identity follows content, not names or paths.

Each process reads a file once, while its mtime and size stay the same: all cells of a sweep share the digest.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from functools import lru_cache
from pathlib import Path

from pipeline.store.files import sha256_of

# The library's tests (many installations lack them), installed packages, and one file that describes the machine.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_MACHINE = "_sysconfigdata"


def file_digest(path: Path) -> str:
    """sha256 of a file's content. Raises `OSError`."""
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=100_000)
def _digest(path: Path, _modified_ns: int, _size: int) -> str:
    return sha256_of(path)


def digest_of_digests(parts: list[tuple[str, str]]) -> str:
    """One sha256 over several named ones, in any order."""
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(parts)).encode()).hexdigest()


def library_modules() -> list[tuple[str, Path]]:
    """Modules of the running Python's standard library that are written in Python: (relative path, file), sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in _NOT_LIBRARY]
        for name in files:
            if name.endswith(".py") and not name.startswith(_MACHINE):
                path = Path(folder, name)
                found[path.relative_to(root).as_posix()] = path
    return sorted(found.items())


@lru_cache(maxsize=1)
def library_digest() -> str:
    """sha256 over paths and contents of these modules: distributions patch them, so the version is not enough."""
    return digest_of_digests([(name, sha256_of(path)) for name, path in library_modules()])
