"""Weights & Biases: one run per stage (group = sweep, job type = stage kind, id = fingerprint) and one summary run per sweep.

Offline unless the user is logged in. Keys stay where W&B looks for them (environment, netrc); we write them to no file.
metrics.jsonl in the stage folder always has the same rows.
"""

from __future__ import annotations

import netrc
import os
import sys
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.config.stages import KINDS
from pipeline.config.tracking import TrackingConfig

Mode = Literal["online", "offline", "disabled"]
_HOST = "api.wandb.ai"


def resolve_mode(tracking: TrackingConfig) -> Mode:
    """`online`, `offline` or `disabled`; WANDB_MODE wins over the config."""
    for mode in get_args(Mode):
        if os.environ.get("WANDB_MODE") == mode:
            return mode
    if tracking.mode != "auto":
        return tracking.mode
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Whether the environment or netrc has a key for W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", f"https://{_HOST}").split("//")[-1].split("/")[0].split(":")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def open_run(tracking: TrackingConfig, folder: Path, **run: Any) -> Any:
    """A `wandb.Run`, quiet, with its files below `folder`."""
    import wandb  # 0.7 s to import, and only stages and finished sweeps need it

    folder.mkdir(parents=True, exist_ok=True)
    arguments = run | {
        "project": tracking.project,
        "entity": tracking.entity,
        "dir": str(folder),
        "resume": "allow",
        "settings": wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True, save_code=False),
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


def run_id(fingerprint: str) -> str:
    """Id of a stage's run."""
    return fingerprint[:32]


def artifact_name(kind: str, fingerprint: str) -> str:
    return f"{kind}-{fingerprint[:12]}"


class StageRun:
    """The W&B run of one stage. Rows carry their own `step`, so a resumed stage may log a step again."""

    def __init__(self, spec: dict[str, Any], folder: Path, tracking: TrackingConfig) -> None:
        self._run: Any = None
        self._spec, self._artifacts = spec, tracking.artifacts
        if resolve_mode(tracking) == "disabled":  # importing wandb takes longer than all other overhead of a small stage
            return
        self._run = open_run(
            tracking,
            folder,
            id=run_id(spec["fingerprint"]),
            name=f"{spec['kind']}-{spec['slug']}",
            group=spec["sweep"],
            job_type=spec["kind"],
            tags=[spec["kind"], *([spec["labels"]["prior.name"]] if "prior.name" in spec["labels"] else [])],
            config=spec["labels"] | {"fingerprint": spec["fingerprint"], "stage": spec["config"]},
        )
        for axis, metrics in KINDS[spec["kind"]].charted.items():
            self._run.define_metric(axis)
            for metric in metrics:
                self._run.define_metric(metric, step_metric=axis)

    def log(self, row: dict[str, float]) -> None:
        if self._run is not None:
            self._run.log(row)

    def finish(self, summary: dict[str, float], export: Path) -> None:
        """Write the run's summary, and with `tracking.artifacts` log the export as an artifact: a reference, without an upload."""
        if self._run is None:
            return
        if self._artifacts:
            self._log_artifact(export)
        for key, value in summary.items():
            self._run.summary[key] = value
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
