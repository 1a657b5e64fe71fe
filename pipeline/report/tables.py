"""The comparison table: for a terminal, for Markdown, for HTML."""

from __future__ import annotations

from html import escape
from typing import Any

from rich.table import Table

_DASH = "-"


def pass_keys(rows: list[dict[str, Any]]) -> list[str]:
    return [key for key in (rows[0] if rows else {}) if key.startswith("pass@")]


def signed(interval: dict[str, float] | None) -> str:
    """`+.083 [+.061, +.106]`"""
    if interval is None:
        return _DASH
    return f"{_gain(interval['value'])} [{_gain(interval['low'])}, {_gain(interval['high'])}]"


def share(interval: dict[str, float] | None) -> str:
    return _DASH if interval is None else _fraction(interval["value"])


def _gain(value: float) -> str:
    return ("-" if value < 0 else "+") + _fraction(abs(value))


def _fraction(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.00"


def headings(keys: list[str]) -> list[str]:
    pairs = [[f"{key} before", "after", "gain [95%]"] for key in keys]
    return ["prior", "entropy", "perplexity", *(heading for pair in pairs for heading in pair)]


def cells(row: dict[str, Any], keys: list[str]) -> list[str]:
    """One row of the table as text, in the order of `headings`."""
    shown = [row["arm"], f"{row['entropy']['value']:.4f}", f"{row['perplexity']['value']:.4f}"]
    for key in keys:
        shown += [share(row[key]["before"]), share(row[key]["after"]), signed(row[key]["gain"])]
    return shown


def terminal_table(rows: list[dict[str, Any]], title: str, keys: list[str] | None = None) -> Table:
    """All of the comparison, or its columns for some `keys` (pass@1, ...) only."""
    keys = pass_keys(rows) if keys is None else keys
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for position, heading in enumerate(headings(keys)):
        table.add_column(heading, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row, keys))
    return table


def markdown_table(rows: list[dict[str, Any]]) -> str:
    titles = headings(pass_keys(rows))
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += [
        "| " + " | ".join(escape(cell, quote=False).replace("|", "\\|") for cell in cells(row, pass_keys(rows))) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"
