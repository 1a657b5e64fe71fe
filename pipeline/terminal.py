"""Where commands print: tables that no pipe cuts, JSON for programs, notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from typing import Any

from rich.console import Console
from rich.table import Table

WIDE = 400
"""Columns that no table needs."""
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def plain_table(*headings: str, wrapped: Collection[str]) -> Table:
    """A table without lines; only the columns `wrapped` may take several lines on a narrow terminal."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in wrapped)
    return table


def print_wide(table: Table) -> None:
    """A table at its natural width when the output is no terminal, so that no cell is cut."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(file=sys.stdout, width=WIDE, highlight=False).print(table, soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
