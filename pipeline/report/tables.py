"""The tables of a comparison: headings and rows of text, for a terminal and for HTML, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from pipeline.compare import format as numbers
from pipeline.compare.problems import WHOLE_RESPONSES

_DASH = "-"
Rows = tuple[list[str], list[list[str]]]
"""Headings, and rows of as many cells."""


def pass_keys(rows: list[dict[str, Any]]) -> list[str]:
    return [key for key in (rows[0] if rows else {}) if key.startswith("pass@")]


def gain(interval: dict[str, Any] | None) -> str:
    """`+.083 [+.061, +.106]`, or `+.083 [-]` where the data give no interval."""
    if interval is None:
        return _DASH
    if interval["low"] is None:
        return f"{numbers.signed(interval['value'])} [{_DASH}]"
    return numbers.with_interval(interval["value"], interval["low"], interval["high"])


def share(interval: dict[str, Any] | None, *, with_interval: bool = False) -> str:
    """`.083`, or `.083 [.061, .106]` where there is an interval."""
    if interval is None:
        return _DASH
    if not with_interval or interval["low"] is None:
        return numbers.share(interval["value"])
    return f"{numbers.share(interval['value'])} [{numbers.share(interval['low'])}, {numbers.share(interval['high'])}]"


def headings(keys: list[str], *, bayes: bool = False) -> list[str]:
    """`bayes` as in `cells`; a posterior gain is shrunk towards the uniform prior, so it is not after minus before."""
    return ["setting", "entropy", "perplexity", *_of_keys(keys, bayes=bayes)]


def _of_keys(keys: list[str], *, bayes: bool = False) -> list[str]:
    gains = {key: "posterior gain [95% credible]" if bayes and key == "pass@1" else "gain [95%, jointly]" for key in keys}
    return [heading for key in keys for heading in (f"{key} before", "after", gains[key])]


def cells(row: dict[str, Any], keys: list[str], *, bayes: bool = False) -> list[str]:
    """One row of the table as text, in the order of `headings`; `bayes` shows credible intervals where there are any."""
    shown = [row["setting"], f"{row['entropy']['value']:.4f}", f"{row['perplexity']['value']:.4f}"]
    for key in keys:
        which = "bayesian_gain" if bayes and "bayesian_gain" in row[key] else "gain"
        shown += [share(row[key]["before"]), share(row[key]["after"]), gain(row[key][which])]
    return shown


def comparison(rows: list[dict[str, Any]], keys: list[str] | None = None, *, bayes: bool = False) -> Rows:
    """The comparison, or only its columns for `keys` (pass@1, ...)."""
    keys = pass_keys(rows) if keys is None else keys
    return headings(keys, bayes=bayes), [cells(row, keys, bayes=bayes) for row in rows]


def on_sets(rows: list[dict[str, Any]], keys: list[str]) -> Rows:
    """Headings and rows, one per setting and evaluation set."""
    shown = [[row["set"], row["setting"], *(text for key in keys for text in _before_after_gain(row[key]))] for row in rows]
    return ["set", "setting", *_of_keys(keys)], shown


def starts(rows: list[dict[str, Any]], keys: list[str]) -> Rows:
    """Headings and rows, one per setting and start of RL."""
    shown = [
        [row["setting"], f"{row['start']:g}", numbers.short(row["tokens"]), f"{row['entropy']['value']:.4f}"]
        + [text for key in keys for text in _before_after_gain(row[key])]
        for row in rows
    ]
    return ["setting", "start", "tokens", "entropy", *_of_keys(keys)], shown


def matched(found: list[dict[str, Any]]) -> Rows:
    """Headings and rows of comparisons at equal bases: one row per setting, start and reference, one column per metric."""
    metrics = contrast_metrics(found)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for one in found:
        base = numbers.share(one["at"]) if one["matched"] == "pass@1" else f"{one['at']:.4f}"
        names = (
            one["setting"],
            f"{one['start']:g}",
            one["reference"],
            numbers.short(one["reference_tokens"]),
            f"{one['matched']} {base}",
        )
        rows.setdefault(names, {})[one["metric"]] = gain(one)
    headings = ["setting", "start", "compared with", "at tokens", "equal base", *metrics]
    return headings, [[*names, *(row.get(metric, _DASH) for metric in metrics)] for names, row in rows.items()]


def mean_over(rows: list[dict[str, Any]]) -> str:
    """A sentence that names the evaluation sets whose mean the other tables show."""
    counts = [f"{name} ({count:,})" for name, count in {row["set"]: row["problems"] for row in rows}.items()]
    return f"Mean over {len(counts)} evaluation sets, by number of problems: {', '.join(counts)}."


def _before_after_gain(measured: dict[str, Any]) -> list[str]:
    return [share(measured["before"]), share(measured["after"]), gain(measured["gain"])]


def contrast_metrics(differences: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["metric"] for one in differences))


def contrasts(differences: list[dict[str, Any]]) -> Rows:
    """Headings and rows: one row per pair of settings, one column per metric; the axis only if there are several, and the evaluation
    set where they are told set by set.
    """
    metrics = contrast_metrics(differences)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for one in differences:
        rows.setdefault((one.get("set", ""), one["setting"], one["reference"], one["axis"]), {})[one["metric"]] = gain(one)
    first = 0 if any(of_set for of_set, *_ in rows) else 1
    last = 4 if len({axis for *_, axis in rows}) > 1 else 3
    headings = ["set", "setting", "compared with", "along"][first:last] + metrics
    return headings, [[*names[first:last], *(row.get(metric, _DASH) for metric in metrics)] for names, row in rows.items()]


def temperatures(rows: list[dict[str, Any]]) -> Rows:
    """One row per setting and temperature; the setting's best is marked."""
    keys = pass_keys(rows)
    best: dict[tuple[str, str, str], float] = {}
    for row in rows:
        for key, side in ((key, side) for key in keys for side in ("before", "after") if row[key][side] is not None):
            at = (row["setting"], key, side)
            best[at] = max(best.get(at, 0.0), row[key][side]["value"])

    def cell(row: dict[str, Any], key: str, side: str) -> str:
        shown = share(row[key][side])
        return f"{shown} (best)" if row[key][side] and row[key][side]["value"] == best[row["setting"], key, side] else shown

    headings = ["setting", "temperature", "entropy", *(heading for key in keys for heading in (f"{key} before", "after"))]
    return headings, [
        [row["setting"], f"{row['temperature']:g}", f"{row['entropy']['value']:.4f}"]
        + [cell(row, key, side) for key in keys for side in ("before", "after")]
        for row in rows
    ]


def best_rates(found: dict[str, Any]) -> Rows:
    rows = [[row["setting"], f"{row['rate']:g}", numbers.share(row["validated"])] for row in found["rows"]]
    return ["setting", "learning rate", "pass@1 at the last validation"], rows


def budgets(found: dict[str, Any]) -> Rows:
    """Headings and rows of `pipeline.compare.budgets.equal_budgets`; the KL divergence only where it was measured."""
    headings = ["setting", "rollouts at equal steps", "gain at equal steps", "gain at equal rollouts"]
    gains = ["at_steps", "at_rollouts"]
    if found["kl"] is not None:
        headings.append("gain at equal KL")
        gains.append("at_kl")
    return headings, [[row["setting"], f"{row['sampled']:,.0f}", *(numbers.signed(row[at]) for at in gains)] for row in found["rows"]]


def changed_problems(found: list[dict[str, Any]]) -> Rows:
    """Headings and rows, one per setting."""
    covers = [f"Cover@{at['tau']:g}".replace("@0.", "@.") for at in found[0]["cover"]] if found else []
    measured = [name for name in WHOLE_RESPONSES if any(one[name] is not None for one in found)]
    headings = ["setting", "lost", "gained", "by luck", "greedy lost", "gained", *covers, *(WHOLE_RESPONSES[name] for name in measured)]
    return headings, [
        [
            one["setting"],
            *(share(one[side], with_interval=True) for side in ("lost", "gained")),
            share(one["by_luck"]),
            *(_DASH if one["greedy"] is None else share(one["greedy"][side]) for side in ("lost", "gained")),
            *(_before_to_after(at) for at in [*one["cover"], *(one[name] for name in measured)]),
        ]
        for one in found
    ]


def _before_to_after(sides: dict[str, Any] | None) -> str:
    return _DASH if sides is None else f"{share(sides['before'])} to {share(sides['after'])}"


def markdown(titles: Sequence[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(escape(cell, quote=False).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
