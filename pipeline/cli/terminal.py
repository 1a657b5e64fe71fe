"""How commands print: tables that are not cut in a pipe, JSON for programs, notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from typing import Any

from pydantic_core import to_jsonable_python
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

_NAMED = 5
console = Console(highlight=False, markup=False)  # names may have brackets: precision[power]
errors = Console(stderr=True, highlight=False, markup=False)


def plain_table(*headings: str, wrapped: Collection[str], title: str | None = None) -> Table:
    """A table without lines; only the columns `wrapped` may take several lines on a narrow terminal."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in wrapped)
    return table


def results_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], named: int = 1) -> Table:
    """A plain table with these rows; the first `named` columns are words, the others numbers."""
    table = plain_table(*headings, wrapped=(), title=title)
    for column in table.columns[named:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def some_of(names: Sequence[str]) -> str:
    """The first few of many, for a cell of a table."""
    more = f", and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def fits(table: Table) -> bool:
    """Whether the terminal can show it without cutting a cell; what is not a terminal always can."""
    widths = [max(map(cell_len, cells if column.no_wrap else " ".join(cells).split())) for column, cells in _columns(table)]
    return not console.is_terminal or sum(widths) + 2 * (len(widths) - 1) <= console.width


def _columns(table: Table) -> list[tuple[Column, list[str]]]:
    return [(column, [str(column.header), *map(str, column.cells)]) for column in table.columns]


def print_wide(table: Table) -> None:
    """Print a table without cutting a cell: in a pipe at its natural width, on a terminal too narrow for it as blocks of lines."""
    if console.is_terminal and fits(table):
        console.print(table)
        return
    columns = _columns(table)
    headings, *rows = zip(*(cells for _, cells in columns), strict=True)
    if console.is_terminal:
        if table.title:
            console.print(Text(str(table.title), style="italic"))
        for name, *cells in rows:
            named = [Text.assemble((heading, "bold"), f" {cell}") for heading, cell in zip(headings[1:], cells, strict=True) if cell]
            console.print(Text(name), *(Padding(line, (0, 0, 0, 2)) for line in _filled(named, console.width - 2)), sep="\n")
        return
    # Without rich, which takes seconds to lay out ten thousand rows.
    widths = [max(map(cell_len, cells)) for _, cells in columns]
    lines = [str(table.title)] if table.title else []
    for row in (headings, *rows):
        padded = (
            " " * (width - cell_len(cell)) + cell if column.justify == "right" else cell + " " * (width - cell_len(cell))
            for cell, width, (column, _) in zip(row, widths, columns, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _filled(pieces: Sequence[Text], width: int) -> list[Text]:
    """Lines of as many pieces as fit; none is broken, unless it is longer than a line."""
    lines: list[Text] = []
    for piece in pieces:
        if lines and lines[-1].cell_len + 2 + piece.cell_len <= width:
            lines[-1] = Text("  ").join([lines[-1], piece])
        else:
            lines.append(piece)
    return lines


def print_json(value: Any) -> None:
    """JSON has neither NaN nor infinity: `null` stands for both."""
    sys.stdout.write(json.dumps(to_jsonable_python(value, inf_nan_mode="null"), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
