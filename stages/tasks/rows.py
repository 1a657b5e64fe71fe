"""Rows of a dataset, from the Hugging Face hub or a local file, and their columns; errors name the row and the key to fix."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.tasks import ProblemSource
from pipeline.errors import PriorlabError
from pipeline.store.files import check_unchanged
from stages.hub import explained, on_hub


def read_rows(source: ProblemSource, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place, for messages. `key` is the source's config key, e.g. `task.train`."""
    if source.file is None:
        place, rows = str(source.hub), _from_hub(source, key)
    else:
        place, rows = source.file, _from_file(Path(source.file), source, key)
    for number, row in enumerate(rows, start=1):
        yield f"row {number} of {place}", row


def column(row: dict[str, Any], path: str, place: str, key: str) -> Any:
    """The value at a path like `reward_model.ground_truth` or `prompt.0.content`; a column of exactly that name wins."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise PriorlabError(f"{place} has no column {path!r} ({key}); it has {', '.join(row)}")
    return value


def _from_hub(source: ProblemSource, key: str) -> Iterator[dict[str, Any]]:
    import datasets  # slow, and local files do without

    name = str(source.hub)
    with explained(name, source.subset, source.split, key=key, instead=f"{key}.hub=null {key}.file=COPY.parquet"):
        rows = datasets.load_dataset(on_hub(name), source.subset, split=source.split, revision=source.revision)
    yield from rows


def _from_file(path: Path, source: ProblemSource, key: str) -> Iterator[dict[str, Any]]:
    try:
        check_unchanged(path, str(source.sha256), f"{key}.file")
        yield from _FORMATS[path.suffix](path, key)
    except UnicodeDecodeError as error:
        raise PriorlabError(f"{path} ({key}.file) is not UTF-8: {error}") from error
    except (OSError, ValueError, OverflowError) as error:  # of Arrow too, which knows dates that Python does not
        raise PriorlabError(f"cannot read {path} ({key}.file): {error}") from error


def _parquet(path: Path, _key: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        if kind == pa.float32():  # as a Python float, 0.1 would become 0.10000000149011612
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
    yield from table.to_pylist()


def _csv(path: Path, key: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # for the whole process; the default of 131,072 characters is less than a long solution
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, restkey="(cells beyond the header)")
        try:
            yield from rows
        except csv.Error as error:
            raise PriorlabError(f"line {rows.line_num} of {path} ({key}.file) is not CSV: {error}") from error


def _json_lines(path: Path, key: str) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"line {number} of {path} ({key}.file)"
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise PriorlabError(f"{place} is not UTF-8: {error}") from error
            except (ValueError, RecursionError) as error:  # also of a number with more digits than Python reads
                raise PriorlabError(f"{place} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise PriorlabError(f"{place} is {str(row)[:40]!r}...; each line must be a JSON object")
            yield row


_FORMATS = {".jsonl": _json_lines, ".parquet": _parquet, ".csv": _csv}
