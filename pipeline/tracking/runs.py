"""Weights & Biases: one run per stage (group = sweep, job type = stage kind, id = fingerprint) and one summary run per sweep.

Offline unless the user is logged in. Keys stay where W&B looks for them (environment, netrc) and enter no file of ours.
metrics.jsonl in the stage folder always holds the same rows.
"""

from __future__ import annotations

import netrc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.config.recipe import TrackingConfig

if TYPE_CHECKING:
    from pipeline.compare.evaluations import Evaluation  # numpy, which stages' runs do not need here

Mode = Literal["online", "offline", "disabled"]
_HOST = "api.wandb.ai"
# What metrics are drawn against, by kind of stage: {axis: metrics}.
_AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": {"tokens": ("*",)},
    "midtrain": {"tokens": ("*",)},
    "rl": {"step": ("*",), "rollouts_generated": ("validation/*",)},
}


def resolve_mode(tracking: TrackingConfig) -> Mode:
    """`online`, `offline` or `disabled`; WANDB_MODE wins over the config."""
    for mode in get_args(Mode):
        if os.environ.get("WANDB_MODE") == mode:
            return mode
    if tracking.mode != "auto":
        return tracking.mode
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Whether a key for W&B is found, in the environment or in netrc."""
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
        # Hours of computing must not end because a server does not answer.
        print(f"warning: W&B is not available ({error}); this run is kept offline below {folder}", file=sys.stderr)
        return wandb.init(mode="offline", **arguments)


def run_id(fingerprint: str) -> str:
    """Of a stage's run."""
    return fingerprint[:32]


def artifact_name(kind: str, fingerprint: str) -> str:
    return f"{kind}-{fingerprint[:12]}"


class StageRun:
    """The W&B run of one stage. Rows carry their own `step`, so a resumed stage may log a step again."""

    def __init__(self, spec: dict[str, Any], folder: Path, tracking: TrackingConfig) -> None:
        self._run: Any = None
        self._spec, self._artifacts = spec, tracking.artifacts
        if resolve_mode(tracking) == "disabled":  # importing wandb takes longer than all the rest around a small stage
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
        for axis, metrics in _AXES.get(spec["kind"], {}).items():
            self._run.define_metric(axis)
            for metric in metrics:
                self._run.define_metric(metric, step_metric=axis)

    def log(self, row: dict[str, float]) -> None:
        if self._run is not None:
            self._run.log(row)

    def finish(self, summary: dict[str, float], export: Path) -> None:
        """Give the run its summary, and with `tracking.artifacts` the export as an artifact: a reference, nothing is uploaded."""
        if self._run is None:
            return
        if self._artifacts:
            self._log_artifact(export)
        for key, value in summary.items():
            self._run.summary[key] = value
        self._run.finish()

    def _log_artifact(self, export: Path) -> None:
        import wandb

        parents = {role: artifact_name(parent["kind"], parent["fingerprint"]) for role, parent in self._spec["parents"].items()}
        if not self._run.offline:  # W&B draws lineage from what a run used, which it takes online only; offline, metadata tells it
            for parent in parents.values():
                try:
                    self._run.use_artifact(f"{parent}:latest")
                except wandb.Error as error:  # its stage ran before artifacts were asked for
                    print(f"warning: W&B does not know the artifact {parent} ({error}); its lineage is not drawn", file=sys.stderr)
        fingerprint = self._spec["fingerprint"]
        told = {"fingerprint": fingerprint, "parents": parents}
        made = wandb.Artifact(artifact_name(self._spec["kind"], fingerprint), self._spec["kind"], metadata=told)
        made.add_reference(export.resolve().as_uri(), checksum=False)  # the stage's record has the digest of each file
        self._run.log_artifact(made)


def log_comparison(
    sweep: str,
    tracking: TrackingConfig,
    folder: Path,
    evaluations: list[Evaluation],
    summary: dict[str, Any],
    summary_run: str,
) -> None:
    """The sweep's summary run: tables of gains, differences and pass@k, their charts, and gains as summary values.

    `summary_run` is its id: the same sweep, reported again when more has finished, updates the same run.
    """
    if resolve_mode(tracking) == "disabled":
        return
    import wandb

    run = open_run(tracking, folder, id=summary_run, name=f"{sweep} summary", group=sweep, job_type="summary", tags=["summary"])
    gains = wandb.Table(columns=["arm", "prior", "metric", "before", "after", "gain", "gain_low", "gain_high"])
    for row in summary["rows"]:
        for metric in (key for key in row if key.startswith("pass@")):
            values = row[metric]
            gain, after = values["gain"] or {}, values["after"] or {}
            numbers = [values["before"]["value"], after.get("value"), *(gain.get(key) for key in ("value", "low", "high"))]
            gains.add_data(row["arm"], row["prior"], metric, *numbers)
            if gain:
                run.summary[f"gain/{row['arm']}/{metric}"] = gain["value"]
        run.summary[f"entropy/{row['arm']}"] = row["entropy"]["value"]
        run.summary[f"perplexity/{row['arm']}"] = row["perplexity"]["value"]
    run.summary["verdict"] = " ".join(summary["verdict"])
    columns = ["axis", "arm", "reference", "k", "family", "value", "low", "high", "superiority"]
    differences = wandb.Table(columns=columns, data=[[one[column] for column in columns] for one in summary["differences"]])
    curves = wandb.Table(columns=["line", "cell", "prior", "seed", "after", "k", "pass@k"])
    for evaluation in evaluations:
        if evaluation.milestone:
            continue
        cell = evaluation.plan.cell
        for k, passed in sorted(evaluation.metrics["pass@k"].items()):
            line = f"{cell.id} after {evaluation.after}"
            curves.add_data(line, cell.id, cell.recipe.prior.name, cell.recipe.seed, evaluation.after, k, float(passed.mean()))
    # W&B has no chart of intervals of its own: each gain is three points of a line, lowest, value and highest, on its setting's row.
    forest = wandb.Table(columns=["gain in pass@1", "setting", "row"])
    for row_number, row in enumerate(summary["rows"]):
        gain = row.get("pass@1", {}).get("gain")
        for key in ("low", "value", "high") if gain and gain["low"] is not None else ():
            forest.add_data(gain[key], row["arm"], len(summary["rows"]) - row_number)
    run.log(
        {
            "gains": gains,
            "differences": differences,
            "pass_at_k_table": curves,
            "pass_at_k": wandb.plot.line(curves, x="k", y="pass@k", stroke="line", title="pass@k before and after RL"),
            "forest": wandb.plot.line(forest, x="gain in pass@1", y="row", stroke="setting", title="gain in pass@1, 95% intervals"),
        }
    )
    run.finish()
