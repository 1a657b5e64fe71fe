"""A sweep's findings as plain data, for the terminal, the report, W&B and `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.compare.best import best_rates, temperatures
from pipeline.compare.budgets import equal_budgets
from pipeline.compare.contrasts import Kind, compare_pairs, measured_pairs
from pipeline.compare.findings import ON_SETS, Findings
from pipeline.compare.intervals import Interval, JointInterval, mean_interval
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.power import evaluated_on, measured_spreads
from pipeline.compare.problems import changed_problems
from pipeline.compare.settings import pairs
from pipeline.compare.starts import Matched, at_equal_bases, curves, start_of, tokens
from pipeline.compare.verdict import verdict
from pipeline.store.folders import Home

CONTRASTS: dict[str, Kind] = {
    "declared": "declared",
    "levels": "level",
    "differences": "gain",
    "adjusted": "adjusted",
    "best_temperature": "best",
}
"""Key in a summary -> which differences between settings it holds."""


def summary(found: Findings, home: Home) -> dict[str, Any]:
    """The comparison as plain data.

    `rows` (one per setting); contrasts between settings: those `declared` by the sweep, `levels` after RL, `differences` of gains,
    `adjusted` levels given the base, and levels at each one's `best_temperature`; `temperatures` (one row per setting and
    temperature); `best_rates`, each setting at the learning rate that validated best; `problems` that each setting lost and gained;
    `sets`, rows and contrasts on each evaluation set (None with a single one); `starts`, rows by where RL starts and comparisons at
    matched bases (None with a single start); `equal_budgets`; `learning` curves, compared; `predictors` of the level; `spreads`, from
    which the next sweep is planned; the `verdict`; and `not_finite`, the evaluations left out and what is NaN or infinite in each.
    """
    spreads = measured_spreads(found.differences["level"], found.settings)
    return {
        "rows": [_row(setting, found) for setting in found.settings],
        **{key: [one.as_dict() for one in found.differences[kind]] for key, kind in CONTRASTS.items()},
        "temperatures": [row for setting in found.settings for row in _temperature_rows(setting, found)],
        "best_rates": _best_rates(found, home),
        "problems": [changed for setting in found.settings if (changed := changed_problems(setting)) is not None],
        "sets": _sets(found),
        "starts": _starts(found),
        "equal_budgets": equal_budgets(found.settings, home),
        "learning": [one.as_dict() for one in found.learning],
        "predictors": [one.__dict__ | {"shown": one.shown} for one in found.predictors],
        "spreads": None if spreads is None else {"task": evaluated_on(found.planned[0].cells)} | asdict(spreads),
        "not_finite": {evaluation.name: evaluation.not_finite for evaluation in found.not_finite},
        "verdict": verdict(found.planned, found.settings, found.gains, found.differences, found.predictors, found.ks, found.not_finite),
    }


def _row(setting: MeasuredSetting, found: Findings) -> dict[str, Any]:
    row: dict[str, Any] = {"setting": setting.name, "prior": setting.prior, "seeds": setting.seeds, "chance": setting.chance}
    for metric in ("entropy", "perplexity"):
        row[metric] = setting.before_at(metric).as_dict()
    for quantity in found.shown:
        row[quantity.name] = _measured(setting, quantity, found.gains)
    if 1 in found.ks:
        row["pass@1"]["bayesian_gain"] = _as_dict(setting.bayesian_gain())
    return row


def _measured(setting: MeasuredSetting, quantity: Quantity, gained: Mapping[tuple[str, Quantity], JointInterval]) -> dict[str, Any]:
    at = (quantity.metric, quantity.k, quantity.of_set)
    return {
        "before": setting.before_at(*at).as_dict(),
        "after": _as_dict(setting.after_at(*at)),
        "gain": _as_dict(gained.get((setting.name, quantity))),
    }


def _starts(found: Findings) -> dict[str, Any] | None:
    """`rows` (one per setting and start of RL) and comparisons at `matched` bases; None without several starts."""
    known = curves(found.settings)
    if not known:
        return None
    shown = [quantity for quantity in found.shown if quantity.metric == "pass@k"]
    rows = [
        {"setting": curve.name, "start": start_of(one), "tokens": tokens(one), "entropy": one.before_at("entropy").as_dict()}
        | {quantity.name: _measured(one, quantity, found.gains) for quantity in shown}
        for curve in known
        for one in curve.starts
    ]
    by: tuple[Matched, ...] = ("pass@1", "entropy")
    return {"rows": rows, "matched": [one.as_dict() for matched in by for one in at_equal_bases(known, matched, shown)]}


def _sets(found: Findings) -> dict[str, Any] | None:
    """`rows` (one per set and setting), and the contrasts on each set; None with a single set."""
    shown = found.on_sets.shown
    rows = []
    for name in dict.fromkeys(quantity.of_set for quantity in shown):
        for setting in found.settings:
            row: dict[str, Any] = {"set": name, "setting": setting.name, "problems": len(setting.before[0].on(name).problems)}
            on_set = [quantity for quantity in shown if quantity.of_set == name]
            rows.append(row | {quantity.name: _measured(setting, quantity, found.on_sets.gains) for quantity in on_set})
    contrasts = {key: [one.as_dict() for one in found.on_sets.differences[kind]] for key, kind in CONTRASTS.items() if kind in ON_SETS}
    return {"rows": rows, **contrasts} if rows else None


def _as_dict(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.as_dict()


def _temperature_rows(setting: MeasuredSetting, found: Findings) -> list[dict[str, Any]]:
    rows = []
    for at in temperatures(setting):
        sides = {"before": [e.temperatures[at] for e in setting.before], "after": [e.temperatures[at] for e in setting.after]}
        row: dict[str, Any] = {"setting": setting.name, "temperature": at}
        row["entropy"] = mean_interval(np.stack([e.values("entropy") for e in sides["before"]])).as_dict()
        for quantity in found.shown:
            measured = {side: [quantity.of(e) for e in of_side if quantity.in_(e)] for side, of_side in sides.items()}
            sizes = setting.before[0].sizes
            row[quantity.name] = {side: mean_interval(np.stack(of), sizes).as_dict() if of else None for side, of in measured.items()}
        rows.append(row)
    return rows


def _best_rates(found: Findings, home: Home) -> dict[str, Any] | None:
    """Each setting at its own learning rate, and the contrasts between them; None without such an axis or its validation."""
    best = best_rates(found.planned, found.settings, home, {one.plan.cell.id for one in found.not_finite})
    if not best:
        return None
    settings = [one.setting for one in best]
    contrasts = []
    for axis, along in pairs([setting.planned for setting in settings]).items():
        between = compare_pairs("best", axis, measured_pairs(along, settings), found.shown, pooled=found.pooled)
        contrasts += [one.as_dict() for one in between]
    rows = [{"setting": one.setting.name, "rate": one.rate, "validated": one.validated} for one in best]
    return {"rows": rows, "contrasts": contrasts}
