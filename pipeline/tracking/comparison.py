"""The summary run of a sweep in W&B: tables, charts and summary values of its comparison."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.compare.evaluations import Evaluation
from pipeline.config.tracking import TrackingConfig
from pipeline.experiment.graph import Graph
from pipeline.tracking.runs import close_run, open_run, resolve_mode


def summary_run_id(sweep: str, graph: Graph) -> str:
    """Id of the sweep's summary run in W&B; it changes with the checkpoints compared."""
    compared = [node.fingerprint for plan in graph.cells for node in [*plan.evaluations.values(), *plan.milestones.values()]]
    return f"{sweep}-{hashlib.sha256(json.dumps([sweep, compared]).encode()).hexdigest()[:16]}"


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
        if evaluation.milestone or evaluation.not_finite:
            continue
        cell = evaluation.plan.cell
        for k, passed in sorted(evaluation.metrics["pass@k"].items()):
            line = f"{cell.id} after {evaluation.after}"
            curves.add_data(line, cell.id, cell.recipe.prior.name, cell.recipe.seed, evaluation.after, k, float(passed.mean()))
    # W&B has no chart of intervals: each gain is a line of three points (low, value, high) on its setting's row.
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
    close_run(run)
