"""The comparison of a sweep: its files and its W&B run, rewritten when results are new."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.compare.evaluations import load_evaluations
from pipeline.compare.findings import findings
from pipeline.compare.summary import summary
from pipeline.experiment.compose import Sweep
from pipeline.experiment.graph import Graph
from pipeline.store.files import read_mapping, write_json_atomically
from pipeline.store.folders import Home
from pipeline.tracking.comparison import log_comparison, summary_run_id

_VERSION = 14
"""Raise it when the same results make different files, so that old ones are rewritten."""


def compare_sweep(sweep: Sweep, graph: Graph, home: Home) -> dict[str, Any] | None:
    """Write the comparison if results are new. Its summary; None while nothing is evaluated."""
    folder = home.sweep(sweep.name)
    digest = _digest(sweep, graph, home)
    stamp = folder / "comparison.json"
    kept = read_mapping(stamp)
    if kept.get("digest") == digest and (folder / "report.html").exists() and (folder / "results.csv").exists():
        return kept["summary"]
    evaluations = load_evaluations(graph, home)
    if not evaluations:
        return None
    from pipeline.report.build import write_comparison  # matplotlib and pyarrow take a second to import

    found = findings([plan.cell for plan in graph.cells], evaluations, sweep.contrasts)
    shown = summary(found, home)
    write_comparison(sweep.name, sweep.description, graph, found, shown, home)
    log_comparison(sweep.name, graph.cells[0].cell.recipe.tracking, folder, evaluations, shown, summary_run_id(sweep.name, graph))
    write_json_atomically(stamp, {"digest": digest, "summary": shown})
    return shown


def _digest(sweep: Sweep, graph: Graph, home: Home) -> str:
    """Changes with the sweep's records, its description and its contrasts."""
    told = [_VERSION, sweep.name, sweep.description, sweep.contrasts, [plan.cell.id for plan in graph.cells]]
    digest = hashlib.sha256(json.dumps(told).encode())
    for node in graph.stages.values():
        record = node.folder(home).record_file
        try:
            stamp = f"{node.fingerprint} {record.stat().st_mtime_ns}"
        except FileNotFoundError:
            stamp = f"{node.fingerprint} -"
        digest.update(stamp.encode())
    return digest.hexdigest()
