"""Where commands print: tables that no pipe cuts, JSON for programs, notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

WIDE = 400
"""Columns that no table needs."""
_NAMED = 5
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def plain_table(*headings: str, wrapped: Collection[str]) -> Table:
    """A table without lines; only the columns `wrapped` may take several lines on a narrow terminal."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in wrapped)
    return table


def some_of(names: Sequence[str]) -> str:
    """The first few of many, for a cell of a table."""
    more = f", and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def print_wide(table: Table) -> None:
    """A table at its natural width when the output is no terminal, so that no cell is cut."""
    if console.is_terminal:
        console.print(table)
        return
    # By hand: laying out ten thousand rows takes rich minutes.
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    widths = [max(map(cell_len, column)) for column in columns]
    right = [column.justify == "right" for column in table.columns]
    lines = [str(table.title)] if table.title else []
    for cells in zip(*columns, strict=True):
        padded = (
            " " * (width - cell_len(cell)) + cell if is_right else cell + " " * (width - cell_len(cell))
            for cell, width, is_right in zip(cells, widths, right, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
