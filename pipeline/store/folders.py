"""Where results live on disk, and the rules that keep them trustworthy.

    HOME/stages/KIND/SLUG-FP12/   spec.json  status.json  lock  cancelled.json  metrics.jsonl  attempts/0001/  checkpoints/
                                  validation.json (of RL)  leases/  export/  record.json
    HOME/sweeps/NAME/             sweep.yaml  cells.jsonl  results.csv  samples.parquet  report.html  report.md  figures/

`record.json` is written last and atomically; a stage without it is not done. To run a stage is to hold its `lock` (an OS file lock: the
kernel frees it when the attempt's last process dies, however it dies) and, between machines, its lease
(`pipeline.store.lease`). Files under `export/` are listed with their sha256 in the record, and verified by every stage that reads them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PriorlabError
from pipeline.store import lease
from pipeline.store.files import damage, lock_is_held, read_json, read_mapping, take_lock
from pipeline.store.progress import is_progress

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names that become folders below the home or are looked up as files: they cannot lead elsewhere."""


def sweep_name(name: str) -> str:
    """The name; raises `PriorlabError` if it cannot name a sweep."""
    if not NAME.fullmatch(name):
        raise PriorlabError(f"{name!r} cannot name a sweep: use letters, digits, '.', '_' and '-', at most 64")
    return name


def verify_manifest(folder: Path, manifest: dict[str, str]) -> None:
    """Raises `PriorlabError` naming every file that is missing or differs from what was recorded."""
    problems = damage(folder, manifest)
    if problems:
        raise PriorlabError(
            f"{folder} is corrupt: {'; '.join(problems)}. Rebuild it with `priorlab stage {folder.parent.name} --force`."
        )


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage, named after its slug and the first 12 digits of its fingerprint."""

    path: Path

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        """KIND/SLUG-FINGERPRINT, as `priorlab status` lists it."""
        return f"{self.kind}/{self.path.name}"

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        """Of RL: by step, how many samples of each validation problem were correct."""
        return self.path / "validation.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def cancelled(self) -> Path:
        """Says that `priorlab cancel` ended the stage; starting it again removes this."""
        return self.path / "cancelled.json"

    @property
    def record_file(self) -> Path:
        return self.path / "record.json"

    def record(self) -> dict[str, Any] | None:
        """What the finished stage wrote, or None while it is not done. Raises `PriorlabError` if the file holds something else."""
        record = read_json(self.record_file)
        if record is not None and not (isinstance(record, dict) and {"fingerprint", "manifest", "provenance"} <= record.keys()):
            raise PriorlabError(f"{self.record_file} is not a record. Remove the file to rerun its stage.")
        return record

    def new_attempt(self) -> Path:
        """A new numbered folder for the output of one attempt."""
        last = self.attempts()
        folder = self.path / "attempts" / f"{int(last[-1].name) + 1 if last else 1:04d}"
        folder.mkdir(parents=True)
        return folder

    def last_log(self) -> Path | None:
        return next((log for attempt in reversed(self.attempts()) if (log := attempt / "stdout.log").exists()), None)

    def lock(self) -> int | None:
        """A descriptor that holds the stage's lock, or None if someone else does.

        The stage process inherits it, so that the lock outlives a killed orchestrator as long as its stage still writes. The lease is
        taken with it: None also if a process on another machine has that.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = take_lock(self.path / "lock")
        if descriptor is None:
            return None
        try:
            if lease.take(self.path) is not None:
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def unlock(self, descriptor: int) -> None:
        """Release a lock that no stage inherited."""
        own = lease.handed_down(self.path)
        if own is not None:
            own.release()
        os.close(descriptor)

    def free_dead_lease(self) -> None:
        """After a stage on this machine died silently: other machines need not wait out its silence."""
        if lease.handed_down(self.path) is not None and (descriptor := self.lock()) is not None:
            self.unlock(descriptor)

    def runs_elsewhere(self) -> str | None:
        """Who runs this stage on another machine, in words; None if nobody does."""
        holder = lease.other_holder(self.path)
        return holder and f"{holder} (taken over once it has been silent for {lease.SILENCE_SECONDS:.0f} seconds)"

    def holder_is_dead(self, note: Callable[[str], None]) -> bool:
        """Whether who ran this stage elsewhere shows no sign of life; `note` is told of the wait for one.

        A machine that has rebooted counts as another one, and its stages as those of the machine before.
        """
        holder = lease.other_holder(self.path)
        if holder is None:
            return True
        note(f"{self.name} is run by {holder}; waiting up to {lease.SILENCE_SECONDS:.0f} seconds for a sign of life")
        return lease.is_silent(self.path)

    def holder(self) -> str:
        """Who runs this stage, in words."""
        elsewhere = self.runs_elsewhere()
        if elsewhere is not None:
            return elsewhere
        try:
            return (self.path / "lock").read_text(encoding="utf-8") or "another process"
        except OSError:
            return "another process"

    def attempts(self) -> list[Path]:
        """Folders of all attempts, oldest first."""
        found = [path for path in self.path.glob("attempts/*") if path.name.isdigit()]
        return sorted(found, key=lambda path: int(path.name))

    def is_held(self) -> bool:
        """Whether a process runs this stage. Only looks: unlike `lock`, it creates nothing and keeps the holder's name."""
        return lock_is_held(self.path / "lock") or lease.other_holder(self.path) is not None

    def clear(self) -> None:
        """Forget results and checkpoints (attempts' logs stay). The record goes first: from then on the stage is not done."""
        self.record_file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.export):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.metrics, self.validation, self.status, self.cancelled):
            file.unlink(missing_ok=True)


def names_parents(spec: Any) -> bool:
    """Whether a spec says which stages it was computed from, each by role."""
    parents = spec.get("parents") if isinstance(spec, dict) else None
    return isinstance(parents, dict) and all(
        isinstance(parent, dict) and all(isinstance(parent.get(part), str) for part in ("kind", "fingerprint", "folder"))
        for parent in parents.values()
    )


def status_of(folder: StageFolder) -> dict[str, Any]:
    """The stage's last progress report, which is for people; empty if it is none."""
    found = read_mapping(folder.status)
    return found if is_progress(found) else {}


_LISTING_NS = 2 * 10**9
"""A folder changed so recently may change again without another time stamp."""


@functools.lru_cache(maxsize=16)
def _names_by_digits(parent: Path, _changed_ns: int) -> dict[str, str]:
    """Names of stage folders by the digits they end with. Beside 5,000 folders, listing them for each new stage took 5 ms."""
    return {path.name.rpartition("-")[2]: path.name for path in parent.iterdir()}


@dataclass(frozen=True)
class Home:
    """The root of all runs: $PRIORLAB_HOME, or `runs` in the current folder."""

    path: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Raises `PriorlabError` if there is something else in its place."""
        home = cls(Path(os.environ.get("PRIORLAB_HOME") or "runs").absolute())
        if home.path.exists() and not home.path.is_dir():
            raise PriorlabError(f"{home.path} (PRIORLAB_HOME) is not a folder; point PRIORLAB_HOME at one")
        return home

    def stage(self, kind: str, slug: str, fingerprint: str) -> StageFolder:
        """The folder with this fingerprint: slugs are labels, so a folder made under a different one is reused."""
        parent = self.path / "stages" / kind
        usual = parent / f"{slug}-{fingerprint[:12]}"
        if usual.exists() or not parent.exists():
            return StageFolder(usual)
        changed = parent.stat().st_mtime_ns
        names_by_digits = _names_by_digits.__wrapped__ if time.time_ns() - changed < _LISTING_NS else _names_by_digits
        return StageFolder(parent / names_by_digits(parent, changed).get(fingerprint[:12], usual.name))

    def stages(self) -> list[StageFolder]:
        return [StageFolder(path.parent) for path in sorted(self.path.glob("stages/*/*/spec.json"))]

    def find_stage(self, name: str) -> StageFolder:
        """A stage by folder path, [KIND/]folder name, [KIND/]slug, or fingerprint prefix (4 digits or more)."""
        as_path = Path(name).absolute()
        matches = []
        for stage in self.stages():
            slug, _, digits = stage.path.name.rpartition("-")
            names = (stage.path.name, stage.name, slug, f"{stage.kind}/{slug}")
            if name in names or stage.path == as_path or (len(name) >= 4 and digits.startswith(name)):
                matches.append(stage)
        if len(matches) == 1:
            return matches[0]
        if not matches:
            raise PriorlabError(f"no stage {name!r} below {self.path}; `priorlab status` lists them")
        listed = ", ".join(stage.name for stage in matches)
        raise PriorlabError(f"{name!r} matches several stages ({listed}); give one of these names or more digits of the fingerprint")

    def sweep(self, name: str) -> Path:
        """Its folder, which may not exist yet. Raises `PriorlabError` for what `sweep_name` refuses."""
        return self.path / "sweeps" / sweep_name(name)

    @contextlib.contextmanager
    def sweep_lock(self, name: str) -> Iterator[None]:
        """Only one process drives a sweep; a second one is told who does. Freed by the kernel if the driver dies."""
        folder = self.sweep(name)
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = take_lock(folder / "lock")
        if descriptor is None:
            holder = (folder / "lock").read_text(encoding="utf-8") or "another process"
            raise PriorlabError(
                f"sweep {name!r} is already run by {holder}. Wait for it (`priorlab status {name}`), or give this one "
                "another name with --name."
            )
        try:
            yield
        finally:
            os.close(descriptor)
