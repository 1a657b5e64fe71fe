"""A source's documents one by one, and a record of what could not be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.config.corpus import FilesSource, HubSource, StdlibSource
from pipeline.config.digests import library_digest, library_modules
from pipeline.errors import PriorlabError
from stages.corpus.files import Found, read_file, text_in, top_column
from stages.hub import explained, on_hub

DocumentSource = FilesSource | HubSource | StdlibSource
# Bad documents of a source that are printed, and that are listed in the export.
_PRINTED, _KEPT = 10, 1000
# Until this many documents are read, the share of bad ones is taken of this many: early on it says little.
_FEW = 1000
# Rows in a stream's shuffle buffer.
_SHUFFLED_AT_A_TIME = 10_000


def find_documents(source: DocumentSource, key: str, seed: int = 0) -> Iterator[Found]:
    """All of a source in a fixed order, or a stream's first documents after shuffling by the seed.

    `key` is the source's config key, e.g. `corpus.sources.web`.
    """
    match source:
        case FilesSource():
            for file in source.files:
                yield from read_file(file, source, key)
        case HubSource():
            yield from _from_hub(source, key) if source.documents is None else _streamed_from_hub(source, source.documents, key, seed)
        case StdlibSource():
            yield from _standard_library(source, key)


def _from_hub(source: HubSource, key: str) -> Iterator[Found]:
    import datasets

    with _explained(source, key):
        rows = datasets.load_dataset(on_hub(source.dataset), source.subset, split=source.split, revision=source.revision)
    top = top_column(source.column, rows.column_names, source.dataset, key)
    for number, row in enumerate(rows.select_columns([top]), start=1):
        yield text_in(row, source.column, f"{source.dataset}, row {number}", key)


def _streamed_from_hub(source: HubSource, documents: int, key: str, seed: int) -> Iterator[Found]:
    """Files in random order, rows drawn from a shuffle buffer: nothing beyond that is fetched."""
    import datasets

    with _explained(source, key):
        name = on_hub(source.dataset)
        stream = datasets.load_dataset(name, source.subset, split=source.split, revision=source.revision, streaming=True)
        stream = stream.shuffle(seed=seed, buffer_size=_SHUFFLED_AT_A_TIME).take(documents)
        for number, row in enumerate(stream, start=1):
            if number == 1:
                top_column(source.column, list(row), source.dataset, key)
            yield text_in(row, source.column, f"{source.dataset}, document {number} of the stream", key)


def _explained(source: HubSource, key: str) -> AbstractContextManager[None]:
    return explained(source.dataset, source.subset, source.split, key=key, instead="{kind: files, paths: [COPY.parquet]}")


def _standard_library(source: StdlibSource, key: str) -> Iterator[Found]:
    if library_digest() != source.sha256:
        raise PriorlabError(
            f"this Python's standard library differs from the one the run was planned with ({key}: {source.python}, sha256 "
            f"{source.sha256[:12]}); run the command again, or use that Python"
        )
    for name, path in library_modules():
        try:
            yield Found(name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            yield Found(str(path), wrong=f"is not UTF-8: {error}")


class Reading:
    """A source's texts; counts and names bad documents, and stops past the share that the config allows."""

    def __init__(self, name: str, max_bad_share: float) -> None:
        self.name = name
        self.max_bad_share = max_bad_share
        self.documents = self.empty = 0
        self.bad: list[Found] = []
        self._more_bad = 0

    @property
    def bad_documents(self) -> int:
        return len(self.bad) + self._more_bad

    def counts(self) -> dict[str, int]:
        return {"documents": self.documents, "empty_documents": self.empty, "bad_documents": self.bad_documents}

    def texts(self, found: Iterator[Found]) -> Iterator[str]:
        """Readable texts that are not blank. Raises `PriorlabError` past the allowed share, at once or at the end."""
        for one in found:
            wrong = one.wrong or ("" if _is_unicode(one.text) else "has half of a surrogate pair, which is not text")
            if wrong:
                self._count(Found(one.place, wrong=wrong))
                self._check(at_least=_FEW)
            elif not one.text.strip():
                self.empty += 1
            else:
                self.documents += 1
                yield one.text
        self._check(at_least=1)

    def _count(self, one: Found) -> None:
        if len(self.bad) == _KEPT:
            self._more_bad += 1
            return
        self.bad.append(one)
        if len(self.bad) <= _PRINTED:
            more = "; more are in bad_documents.jsonl" if len(self.bad) == _PRINTED else ""
            print(f"warning: source {self.name!r}: {one.place} {one.wrong}{more}", file=sys.stderr)

    def _check(self, at_least: int) -> None:
        read = self.documents + self.empty + self.bad_documents
        if self.bad_documents > self.max_bad_share * max(read, at_least):
            shown = "; ".join(f"{one.place} {one.wrong}" for one in self.bad[:3])
            raise PriorlabError(
                f"source {self.name!r}: {self.bad_documents} of {read} documents cannot be read, more than corpus.max_bad_share = "
                f"{self.max_bad_share:g} allows: {shown}{'; ...' if self.bad_documents > 3 else ''}. Fix them, or raise "
                "corpus.max_bad_share"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def save_bad(readings: list[Reading], path: Path) -> None:
    """Where skipped documents were; no file if there are none."""
    rows = [{"source": reading.name, "place": one.place, "wrong": one.wrong} for reading in readings for one in reading.bad]
    if rows:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
