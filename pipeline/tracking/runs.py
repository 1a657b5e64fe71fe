"""Weights & Biases: one run per stage (group = sweep, job type = stage kind, id = fingerprint) and one summary run per sweep.

Offline unless the user is logged in. Keys stay where W&B looks for them (environment, netrc); we write them to no file.
metrics.jsonl in the stage folder always has the same rows. W&B is only an observer: what it would refuse is shortened, and if
it fails, stages and reports go on without it.
"""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pipeline.config.stages import KINDS
from pipeline.config.tracking import TrackingConfig

Mode = Literal["online", "offline", "disabled"]
_HOST = "api.wandb.ai"
_LONGEST_TAG = 64
"""Characters; W&B refuses a run with a longer tag."""
_LARGEST_CONFIG = 1_000_000
"""Characters of a stage's config as JSON; a corpus of many files lists them all."""
_FINISH_SECONDS = 600.0
"""How long the end of a run waits for W&B's server; the rest stays on disk."""


def resolve_mode(tracking: TrackingConfig) -> Mode:
    """`online`, `offline` or `disabled`; WANDB_MODE wins over the config."""
    for mode in get_args(Mode):
        if os.environ.get("WANDB_MODE") == mode:
            return mode
    if tracking.mode != "auto":
        return tracking.mode
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Whether the environment or netrc has a key for W&B; looks where `wandb login` writes it, without importing wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", f"https://{_HOST}")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False


def open_run(tracking: TrackingConfig, folder: Path, **run: Any) -> Any:
    """A `wandb.Run`, quiet, with its files below `folder`."""
    import wandb  # 0.7 s to import, and only stages and finished sweeps need it

    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # else it recommends that product in every stage's log
    arguments = run | {
        "project": tracking.project,
        "entity": tracking.entity,
        "dir": str(folder),
        "resume": "allow",
        "settings": wandb.Settings(
            silent=True, console="off", x_disable_stats=True, x_disable_meta=True, save_code=False, finish_timeout=_FINISH_SECONDS
        ),
    }
    try:
        return wandb.init(mode=resolve_mode(tracking), **arguments)
    except wandb.Error as error:
        # Hours of compute must not be lost because a server does not answer.
        print(f"warning: W&B is not available ({error}); this run is kept offline below {folder}", file=sys.stderr)
        return wandb.init(mode="offline", **arguments)


def close_run(run: Any) -> None:
    """Finish a `wandb.Run`; on return its offline file is whole.

    `Run.finish` only tells W&B's service to close the file. A process that ends now kills the service, and what is not written is lost.
    """
    import wandb

    run.finish()
    wandb.teardown()  # waits for the service to end


@contextmanager
def never_fatal(what: str) -> Iterator[None]:
    """Turns whatever W&B raises inside (its own errors, its transport's, those of its checks) into a warning about `what`."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"warning: W&B failed to {what}, which changes no result ({type(error).__name__}: {reason})", file=sys.stderr)


def tag(text: str) -> str:
    """`text` as W&B accepts it; different texts stay different even if both are shortened."""
    if len(text) <= _LONGEST_TAG:
        return text
    end = f"~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text[: _LONGEST_TAG - len(end)] + end


def run_id(fingerprint: str) -> str:
    """Id of a stage's run."""
    return fingerprint[:32]


def artifact_name(kind: str, fingerprint: str) -> str:
    return f"{kind}-{fingerprint[:12]}"


class StageRun:
    """The W&B run of one stage. Rows carry their own `step`, so a resumed stage may log a step again.

    Once W&B refuses a row, nothing more is logged; what it took before is kept.
    """

    def __init__(self, spec: dict[str, Any], folder: Path, tracking: TrackingConfig) -> None:
        self._run: Any = None
        self._logs = False
        self._spec, self._artifacts = spec, tracking.artifacts
        if resolve_mode(tracking) == "disabled":  # importing wandb takes longer than all other overhead of a small stage
            return
        config = spec["config"]
        if len(json.dumps(config)) > _LARGEST_CONFIG:
            config = f"in {folder / 'spec.json'}"
        with never_fatal("track this stage"):
            self._run = open_run(
                tracking,
                folder,
                id=run_id(spec["fingerprint"]),
                name=f"{spec['kind']}-{spec['slug']}",
                group=spec["sweep"],
                job_type=spec["kind"],
                tags=[tag(text) for text in (spec["kind"], spec["labels"].get("prior.name")) if text],
                config=spec["labels"] | {"fingerprint": spec["fingerprint"], "stage": config},
            )
            for axis, metrics in KINDS[spec["kind"]].charted.items():
                self._run.define_metric(axis)
                for metric in metrics:
                    self._run.define_metric(metric, step_metric=axis)
            self._logs = True

    def log(self, row: dict[str, float]) -> None:
        if not self._logs:
            return
        self._logs = False
        with never_fatal("track this stage"):
            self._run.log(row)
            self._logs = True

    def finish(self, summary: dict[str, float], export: Path) -> None:
        """Write the run's summary, and with `tracking.artifacts` log the export as an artifact: a reference, without an upload."""
        if self._run is None:
            return
        if self._artifacts:
            with never_fatal("log the artifact"):
                self._log_artifact(export)
        with never_fatal("write this stage's summary"):
            for key, value in summary.items():
                self._run.summary[key] = value
        with never_fatal("finish this stage's run"):
            close_run(self._run)

    def _log_artifact(self, export: Path) -> None:
        import wandb

        parents = {role: artifact_name(parent["kind"], parent["fingerprint"]) for role, parent in self._spec["parents"].items()}
        if not self._run.offline:  # W&B draws lineage from inputs, which only online runs have; offline, metadata has it
            for parent in parents.values():
                try:
                    self._run.use_artifact(f"{parent}:latest")
                except wandb.Error as error:  # its stage ran before artifacts were turned on
                    print(f"warning: W&B does not know the artifact {parent} ({error}); its lineage is not drawn", file=sys.stderr)
        fingerprint = self._spec["fingerprint"]
        told = {"fingerprint": fingerprint, "parents": parents}
        made = wandb.Artifact(artifact_name(self._spec["kind"], fingerprint), self._spec["kind"], metadata=told)
        made.add_reference(export.resolve().as_uri(), checksum=False)  # the stage's record has the digest of each file
        self._run.log_artifact(made)
