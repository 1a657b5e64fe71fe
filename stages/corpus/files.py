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
from pipeline.store.files import check_unchanged
from stages.tasks.rows import column

_ROWS_PER_READ = 1000
_BYTES_PER_READ = 1 << 20
_BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError, OverflowError)
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
        check_unchanged(path, file.sha256, f"{key}.paths")
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


def _decoded(raw: bytes, path: Path, line: int) -> Found:
    """The text of bytes that begin in this line of a file."""
    place = f"{path}, line {line}"
    try:
        return Found(place, raw.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        before, bad = error.object[: error.start], error.object[error.start : error.start + 4]
        line, column = line + before.count(b"\n"), error.start - (before.rfind(b"\n") + 1)
        return Found(f"{path}, line {line}", wrong=f"is not UTF-8: {error.reason} {bad!r} at byte {column}")


def _json_lines(path: Path, source: FilesSource, key: str) -> Iterator[Found]:
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            line = _decoded(raw, path, number)
            if line.wrong:
                yield line
            elif line.text.strip():
                yield _json_line(line.place, line.text, source, key)


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
        nested = source.column in [file.schema.column(number).path for number in range(len(file.schema))]
        number = 0
        for batch in file.iter_batches(_ROWS_PER_READ, columns=[source.column if nested else top]):
            for row in batch.to_pylist():
                number += 1
                yield text_in(row, source.column, f"{path}, row {number}", key)


def _text(path: Path, source: FilesSource, _key: str) -> Iterator[Found]:
    """The whole file, or the text between separators, which may contain line breaks. A bad byte spoils the document it is in.

    A line break in the separator stands for that of the file: "\\n" also for Windows' "\\r\\n", which then becomes "\\n" in the text.
    """
    line, separator = 1, (source.separator or "").encode()
    with _open(path) as file:
        for raw in _between(separator, file) if separator else filter(None, [file.read()]):
            yield _decoded(raw, path, line)
            line += raw.count(b"\n") + separator.count(b"\n")


def _between(separator: bytes, file: BinaryIO) -> Iterator[bytes]:
    """What stands between separators; nothing for the end of the file right after one."""
    translates = b"\n" in separator and b"\r" not in separator
    rest = b""
    while block := file.read(max(_BYTES_PER_READ, len(rest))):  # at least as much again: a long document is then not searched often
        while translates and block.endswith(b"\r") and (more := file.read(1)):
            block += more
        *whole, rest = (rest + (block.replace(b"\r\n", b"\n") if translates else block)).split(separator)
        yield from whole
    if rest:
        yield rest


_FORMATS = {"jsonl": _json_lines, "parquet": _parquet, "txt": _text}
