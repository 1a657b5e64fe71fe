"""`priorlab gc`: what no kept sweep needs.

A sweep is kept while its folder is there. Its stages are needed, and so are stages that are running, adopted checkpoints, and all that
these were computed from. When in doubt (a definition that is unreadable or not whole), nothing is deleted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PriorlabError
from pipeline.experiment.graph import build_graph
from pipeline.experiment.saved import definition, saved_sweep
from pipeline.run.backends import jobs_of
from pipeline.store.files import read_json
from pipeline.store.folders import Home, StageFolder, names_parents

_STAGE_NAME = re.compile(r".+-([0-9a-f]{12})")


@dataclass(frozen=True)
class Item:
    """Something to delete, and the bytes that frees."""

    path: Path
    stage: StageFolder | None
    why: str
    bytes: int


def kept_sweeps(home: Home) -> list[str]:
    """Sweeps with a folder that holds anything but a lock, which one that never started leaves. Raises `PriorlabError` if one cannot
    be read."""
    try:
        folders = [path for path in (home.path / "sweeps").glob("*") if path.is_dir()]
        return sorted(folder.name for folder in folders if {file.name for file in folder.iterdir()} - {"lock"})
    except OSError as error:
        raise PriorlabError(
            f"{error.filename} cannot be read ({error.strerror}), so it is unclear what is needed, and nothing is deleted"
        ) from error


def find(home: Home) -> list[Item]:
    """All there is to delete, stage by stage. Raises `PriorlabError` if it is unclear what is needed."""
    folders = [StageFolder(path) for path in sorted(home.path.glob("stages/*/*")) if path.is_dir() and _STAGE_NAME.fullmatch(path.name)]
    if folders and not kept_sweeps(home):
        raise PriorlabError(
            f"{home.path} holds stages but no sweeps, so all of them would be deleted; to do that, remove the folder yourself"
        )
    busy = _busy(folders)
    needed = _needed(home, folders, busy)
    items = [Item(path, None, "left by an interrupted gc", _freed(path)) for path in sorted(_trash(home).glob("*"))]
    for folder in folders:
        if folder in busy:
            continue
        if _digits(folder) not in needed:
            items.append(Item(folder.path, folder, "no kept sweep needs it", _freed(folder.path)))
        else:
            items += [Item(path, folder, why, _freed(path)) for path, why in _leftovers(folder)]
    return items


def delete(items: list[Item], home: Home) -> Iterator[Item]:
    """Delete what `find` found, and yield what is gone. A stage started in the meantime is left alone."""
    for item in items:
        lock = None
        if item.stage is not None:
            lock = item.stage.lock()
            if lock is None:
                continue
        try:
            path = item.path
            if item.stage is not None and path == item.stage.path:  # moved away first: a kill leaves no half stage behind
                path = _trash(home) / f"{item.stage.kind}-{path.name}"
                shutil.rmtree(path, ignore_errors=True)
                path.parent.mkdir(exist_ok=True)
                item.path.rename(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            if item.stage is not None and lock is not None:
                item.stage.unlock(lock)
        yield item
    with suppress(OSError):  # not there, or not empty
        _trash(home).rmdir()


def _busy(folders: list[StageFolder]) -> list[StageFolder]:
    """Running and queued stages. Raises `PriorlabError` if a queue must be asked and does not answer."""
    jobs = jobs_of(folders, strict=True)
    return [folder for folder in folders if folder in jobs or folder.is_held()]


def _needed(home: Home, folders: list[StageFolder], busy: list[StageFolder]) -> set[str]:
    """Fingerprint digits of all stages that must stay."""
    by_digits = {_digits(folder): folder for folder in folders}
    needed: set[str] = set()
    waiting = {digits for name in kept_sweeps(home) for digits in _stages_of(name, home)}
    waiting |= {digits for digits, folder in by_digits.items() if folder in busy or _is_adopted(folder)}
    while waiting:
        digits = waiting.pop()
        needed.add(digits)
        if digits in by_digits:
            waiting |= _parents(by_digits[digits]) - needed
    return needed


def _stages_of(sweep: str, home: Home) -> set[str]:
    """The sweep's stages as last started, and as this version of priorlab would start them."""
    folder = home.sweep(sweep)
    try:
        _, rows = definition(folder)
        stages = {name.rpartition("-")[2] for row in rows for name in row["stages"]}
    except (PriorlabError, KeyError, TypeError, AttributeError) as error:
        raise PriorlabError(
            f"it is unclear what sweep {sweep!r} needs, so nothing is deleted: {error}. Or remove {folder} to give the sweep up"
        ) from error
    with suppress(PriorlabError):  # of another version of priorlab
        saved = saved_sweep(sweep, home)
        if saved is not None:
            stages |= {fingerprint[:12] for fingerprint in build_graph(saved.cells()).stages}
    return stages


def _parents(folder: StageFolder) -> set[str]:
    spec = read_json(folder.spec)
    if spec is None:
        return set()  # nothing was ever started here
    if not names_parents(spec):
        raise PriorlabError(
            f"{folder.spec} does not say what the stage was computed from, so nothing is deleted; start its sweep again"
        )
    return {parent["fingerprint"][:12] for parent in spec["parents"].values()}


def _is_adopted(folder: StageFolder) -> bool:
    """Whether the record says so: adopted checkpoints cannot be recomputed. (A damaged record does not keep a stage.)"""
    with suppress(PriorlabError):
        return "adopted" in (folder.record() or {})
    return False


def _leftovers(folder: StageFolder) -> Iterator[tuple[Path, str]]:
    """Parts of a needed stage that nothing reads any more."""
    building = folder.path / "export.part"
    if building.exists():
        yield building, "a half-written export"
    if folder.record_file.exists() and folder.checkpoints.exists():
        yield folder.checkpoints, "step checkpoints of a finished stage"
    for path in sorted(folder.path.glob(".*.tmp")):
        yield path, "a half-written file"
    newest = folder.last_log()
    for attempt in folder.attempts():
        if newest is not None and int(attempt.name) < int(newest.parent.name):
            yield attempt, "the log of an older attempt"


def _digits(folder: StageFolder) -> str:
    return folder.path.name.rpartition("-")[2]


def _trash(home: Home) -> Path:
    return home.path / "trash"


def _freed(path: Path) -> int:
    """Bytes that deleting frees: files also hard-linked elsewhere do not count."""
    files = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    sizes = [file.lstat() for file in files]
    return sum(size.st_size for size, file in zip(sizes, files, strict=True) if size.st_nlink == 1 and not file.is_dir())
