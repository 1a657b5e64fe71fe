"""The summary run of a sweep in W&B: tables, charts and summary values of its comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.summary import CONTRASTS
from pipeline.config.tracking import TrackingConfig
from pipeline.experiment.graph import Graph
from pipeline.tracking.runs import close_run, never_fatal, open_run, resolve_mode


def summary_run_id(sweep: str, graph: Graph) -> str:
    """Id of the sweep's summary run in W&B; it changes with the checkpoints compared."""
    nodes = (node for plan in graph.cells for node in plan.stages() if node.kind == "evaluate")
    compared = [node.fingerprint for node in nodes]
    return f"{sweep}-{hashlib.sha256(json.dumps([sweep, compared]).encode()).hexdigest()[:16]}"


@never_fatal("log the comparison")
def log_comparison(
    sweep: str,
    tracking: TrackingConfig,
    folder: Path,
    evaluations: list[Evaluation],
    summary: dict[str, Any],
    summary_run: str,
) -> None:
    """The sweep's summary run: tables of gains, contrasts and pass@k, their charts, and levels and gains as summary values.

    `summary_run` is its id: the same sweep, reported again when more has finished, updates the same run.
    """
    if resolve_mode(tracking) == "disabled":
        return
    import wandb

    run = open_run(tracking, folder, id=summary_run, name=f"{sweep} summary", group=sweep, job_type="summary", tags=["summary"])
    gains = wandb.Table(columns=["setting", "prior", *_MEASURED])
    for row in summary["rows"]:
        for metric, numbers in _measured(row):
            gains.add_data(row["setting"], row["prior"], metric, *numbers)
            _summarise(run, f"{row['setting']}/{metric}", numbers)
        run.summary[f"entropy/{row['setting']}"] = row["entropy"]["value"]
        run.summary[f"perplexity/{row['setting']}"] = row["perplexity"]["value"]
    sets = summary["sets"] or {"rows": [], "levels": []}
    on_sets = wandb.Table(columns=["set", "problems", "setting", *_MEASURED])
    for row in sets["rows"]:
        for metric, numbers in _measured(row):
            on_sets.add_data(row["set"], row["problems"], row["setting"], metric, *numbers)
            _summarise(run, f"{row['setting']}/{row['set']}/{metric}", numbers)
    run.summary["verdict"] = " ".join(summary["verdict"])
    columns = ["axis", "setting", "reference", "metric", "k", "family", "value", "low", "high", "superiority"]
    contrasts = {kind: _table(columns, summary[kind]) for kind in CONTRASTS if summary[kind]}
    if summary["starts"]:
        contrasts |= _starts(summary["starts"])
    if summary["learning"]:
        contrasts |= _learning(summary["learning"])
    if sets["rows"]:
        contrasts["sets"] = on_sets
        contrasts["sets_levels"] = _table(["set", *columns], sets["levels"])
    curves = wandb.Table(columns=["line", "cell", "prior", "seed", "after", "k", "pass@k"])
    for evaluation in evaluations:
        if evaluation.milestone or evaluation.not_finite:
            continue
        cell = evaluation.plan.cell
        for k, passed in sorted(evaluation.metrics["pass@k"].items()):
            line = f"{cell.id} after {evaluation.after}"
            curves.add_data(line, cell.id, cell.recipe.prior.name, cell.recipe.seed, evaluation.after, k, float(passed.mean()))
    ended = [(f"{one['setting']} - {one['reference']}", one) for one in summary["levels"] if one["metric"] == "pass@1"]
    gained = [(row["setting"], row["pass@1"]["gain"]) for row in summary["rows"] if row.get("pass@1", {}).get("gain")]
    run.log(
        {
            "gains": gains,
            **contrasts,
            "pass_at_k_table": curves,
            "pass_at_k": wandb.plot.line(curves, x="k", y="pass@k", stroke="line", title="pass@k before and after RL"),
            "levels_forest": _forest(ended, "pass@1 after RL, compared"),
            "forest": _forest(gained, "gain in pass@1"),
        }
    )
    close_run(run)


_MEASURED = ("metric", "before", "after", "gain", "gain_low", "gain_high")
"""Columns of tables of what was measured."""


def _measured(row: dict[str, Any]) -> Iterator[tuple[str, list[float | None]]]:
    """Of a row of the summary, each metric with the numbers of these columns."""
    for metric, values in row.items():
        if isinstance(values, dict) and "gain" in values:
            gain, after = values["gain"] or {}, values["after"] or {}
            yield metric, [values["before"]["value"], after.get("value"), *(gain.get(key) for key in ("value", "low", "high"))]


def _starts(found: dict[str, Any]) -> dict[str, Any]:
    """What RL gains from each of its starts, as a table and a chart against tokens, and comparisons at equal bases."""
    import wandb

    table = wandb.Table(columns=["setting", "start", "tokens", *_MEASURED])
    for row in found["rows"]:
        for metric, numbers in _measured(row):
            table.add_data(row["setting"], row["start"], row["tokens"], metric, *numbers)
    gained = [
        [row["setting"], row["tokens"], row["pass@1"]["gain"]["value"]] for row in found["rows"] if row.get("pass@1", {}).get("gain")
    ]
    against = wandb.Table(columns=["setting", "tokens", "gain in pass@1"], data=gained)
    title = "gain in pass@1 against tokens of pre-training"
    chart = wandb.plot.line(against, x="tokens", y="gain in pass@1", stroke="setting", title=title)
    columns = ["axis", "setting", "start", "reference", "matched", "at", "reference_tokens", "metric", "k", "family"]
    equal = _table([*columns, "value", "low", "high"], found["matched"])
    return {"starts": table, "gain_against_tokens": chart, "equal_bases": equal}


def _learning(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences while RL runs, as a table and a chart of pass@1 against steps; W&B has no bands, so low and high are lines too."""
    import wandb

    columns = ["budget", "axis", "setting", "reference", "k", "at", "value", "low", "high"]
    points = [{**curve, **point} for curve in found for point in curve["points"]]
    table = _table(columns, points)
    lines = wandb.Table(columns=["line", "step", "pass@1"])
    for point in points:
        if point["budget"] == "steps" and point["k"] == 1:
            for key, end in (("value", ""), ("low", " (low)"), ("high", " (high)")):
                if point[key] is not None:
                    lines.add_data(f"{point['setting']} - {point['reference']}{end}", point["at"], point[key])
    chart = wandb.plot.line(lines, x="step", y="pass@1", stroke="line", title="pass@1 during RL, compared, joint 95% bands")
    return {"learning": table, "learning_curves": chart}


def _table(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> Any:
    """These columns of the rows."""
    import wandb

    return wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in rows])


def _summarise(run: Any, name: str, numbers: Sequence[float | None]) -> None:
    _, after, gain, *_ = numbers
    if gain is not None:
        run.summary[f"gain/{name}"] = gain
        run.summary[f"level/{name}"] = after


def _forest(rows: Sequence[tuple[str, dict[str, Any]]], label: str) -> Any:
    """W&B has no chart of intervals: each is a line of three points (low, value, high) on a row of its own."""
    import wandb

    points = wandb.Table(columns=[label, "setting", "row"])
    for number, (name, interval) in enumerate(rows):
        for key in ("low", "value", "high") if interval["low"] is not None else ():
            points.add_data(interval[key], name, len(rows) - number)
    return wandb.plot.line(points, x=label, y="row", stroke="setting", title=f"{label}, joint 95% intervals")
