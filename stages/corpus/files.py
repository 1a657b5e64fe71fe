"""Documents in files: .jsonl, .parquet and .txt, the first and last also compressed. Bad documents are reported by file and line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.corpus import FilesSource, TextFile
from pipeline.errors import PriorlabError
from pipeline.store.files import sha256_of
from stages.tasks.rows import column

_ROWS_PER_READ = 1000
_BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError)
"""What readers raise on files that are truncated, of another type, or in an encoding that they do not know."""


@dataclass(frozen=True)
class Found:
    """What is at a place: a text, or what is `wrong` there."""

    place: str
    text: str = ""
    wrong: str = ""


def read_file(file: TextFile, source: FilesSource, key: str) -> Iterator[Found]:
    """Each document, in file order. `key` is the source's config key.

    Raises `PriorlabError` if the file has changed since planning, or reading fails: how much is lost then is unknown.
    """
    path = Path(file.path)
    empty = True
    try:
        if sha256_of(path) != file.sha256:
            raise PriorlabError(
                f"{path} ({key}.paths) has changed since the run was planned (sha256 {file.sha256[:12]}); run the command again to "
                "use its new content, or restore the old"
            )
        for found in _FORMATS[file.format](path, source, key):
            empty = False
            yield found
    except _BROKEN as error:
        raise PriorlabError(f"{path} ({key}.paths) cannot be read to its end: {type(error).__name__}: {error}") from error
    if empty:
        yield Found(str(path), wrong="is empty")


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast("BinaryIO", io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")


def _lines(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Place, text (None if it is not UTF-8) and what is wrong, for each line."""
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield place, None, f"is not UTF-8: {error.reason} {raw[error.start : error.start + 4]!r} at byte {error.start}"
            else:
                yield place, text, ""


def _json_lines(path: Path, source: FilesSource, key: str) -> Iterator[Found]:
    for place, line, wrong in _lines(path):
        if line is None:
            yield Found(place, wrong=wrong)
        elif line.strip():
            yield _json_line(place, line, source, key)


def _json_line(place: str, line: str, source: FilesSource, key: str) -> Found:
    try:
        row = json.loads(line.strip())
    except (ValueError, RecursionError) as error:  # also of a number with more digits than Python reads
        return Found(place, wrong=f"is not JSON: {error}")
    if not isinstance(row, dict):
        return Found(place, wrong=f"is {line.strip()[:40]!r}, not a JSON object")
    return text_in(row, source.column, place, key)


def top_column(name: str, names: list[str], place: str, key: str) -> str:
    """The text's column, or the column it is nested in."""
    top = name if name in names else name.partition(".")[0]
    if top not in names:
        raise PriorlabError(f"{place} has no column {name!r} ({key}.column); it has {', '.join(names)}")
    return top


def text_in(row: dict[str, Any], name: str, place: str, key: str) -> Found:
    """The document in a row's column."""
    try:
        value = column(row, name, place, f"{key}.column")
    except PriorlabError as error:
        return Found(place, wrong=str(error).removeprefix(f"{place} "))
    if not isinstance(value, str):
        return Found(place, wrong=f"has {str(value)[:40]!r} in column {name!r}, not text")
    return Found(place, value)


def _parquet(path: Path, source: FilesSource, key: str) -> Iterator[Found]:
    with pq.ParquetFile(path) as file:
        top = top_column(source.column, file.schema_arrow.names, str(path), key)
        number = 0
        for batch in file.iter_batches(_ROWS_PER_READ, columns=[top]):
            for row in batch.to_pylist():
                number += 1
                yield text_in(row, source.column, f"{path}, row {number}", key)


def _text(path: Path, source: FilesSource, _key: str) -> Iterator[Found]:
    """The whole file, or the text between separators (which may contain line breaks). A bad line spoils its document.

    A line break in the separator stands for that of the file: "\\n" also for Windows' "\\r\\n", which then becomes "\\n" in the text.
    """
    separator = source.separator
    translates = separator is not None and "\n" in separator and "\r" not in separator
    pieces: list[str] = []
    tail = ""  # of the pieces: a separator may start in it
    begun, spoilt = str(path), None
    for place, line, wrong in _lines(path):
        if line is None:
            spoilt = spoilt or Found(place, wrong=wrong)
            continue
        if translates:
            line = line.replace("\r\n", "\n")
        if not pieces:
            begun = place
        window = tail + line
        if separator is None or separator not in window:
            pieces.append(line)
            tail = "" if separator is None else window[max(0, len(window) - len(separator) + 1) :]
            continue
        *whole, rest = "".join([*pieces, line]).split(separator)
        for text in whole:
            yield spoilt or Found(begun, text)
            begun, spoilt = place, None
        pieces = [rest] if rest else []
        tail = rest[max(0, len(rest) - len(separator) + 1) :]
    if spoilt or pieces:
        yield spoilt or Found(begun, "".join(pieces))


_FORMATS = {"jsonl": _json_lines, "parquet": _parquet, "txt": _text}
