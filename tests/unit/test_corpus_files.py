"""Reading text: each format gives its documents, and whatever is none is named with file and line, counted, and bounded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.corpus import FilesSource, HubSource, StdlibSource
from pipeline.errors import PriorlabError
from stages.corpus.sources import Reading, find_documents, save_bad

TEXTS = ["one\ntwo", "naïve ☃", "three"]


def read(path: Path, max_bad_share: float = 0.0, **options: Any) -> tuple[list[str], Reading]:
    source = FilesSource.model_validate({"paths": [str(path)], **options})
    reading = Reading("mine", max_bad_share)
    return list(reading.texts(find_documents(source, "corpus.sources.mine"))), reading


def compress(suffix: str, content: bytes) -> bytes:
    if suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return gzip.compress(content) if suffix == ".gz" else content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_and_text_are_read_compressed_or_not(suffix: str, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"body": {"en": text}}, ensure_ascii=False) + "\n" for text in TEXTS).encode()
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(compress(suffix, rows))
    assert read(path, column="body.en")[0] == TEXTS
    path.write_bytes(compress(suffix, rows[: len(rows) // 2]) + compress(suffix, rows[len(rows) // 2 :]))  # as `cat a.gz b.gz`
    assert read(path, column="body.en")[0] == TEXTS
    path = tmp_path / f"file.txt{suffix}"
    path.write_bytes(compress(suffix, "\ufeffall of\n\nit\n".encode()))
    assert read(path)[0] == ["all of\n\nit\n"]


@pytest.fixture(params=[1, 2, 5, 1 << 20])
def bytes_per_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.corpus.files._BYTES_PER_READ", request.param)


@pytest.mark.usefixtures("bytes_per_read")
@pytest.mark.parametrize("separator", ["|", "\n\n", "<end>\n", "\n"])
def test_a_separator_divides_a_text_file_wherever_it_falls(separator: str, tmp_path: Path) -> None:
    texts = ["one", "two <en d> ><", "<end", "", "four"]
    path = tmp_path / "many.txt"
    path.write_text(separator.join(texts))
    found, reading = read(path, separator=separator)
    assert found == [text for text in texts if text]
    assert reading.counts() == {"documents": 4, "empty_documents": 1, "bad_documents": 0}


@pytest.mark.usefixtures("bytes_per_read")
@pytest.mark.parametrize("separator", ["\n\n", "\n--\n", "\n", "--\n"])
def test_line_ends_of_windows_are_line_ends_to_a_separator(separator: str, tmp_path: Path) -> None:
    text = separator.join(["one\ntwo" if separator != "\n" else "one", "three", "four"])
    path = tmp_path / "many.txt"
    path.write_bytes(text.encode())
    expected, _ = read(path, separator=separator)
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert read(path, separator=separator)[0] == expected
    assert len(expected) == 3
    assert read(path, separator="|")[0] == [text.replace("\n", "\r\n")]  # as it is where no line break is looked for


def test_a_column_that_is_no_text_stops_the_stage_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": pa.array([b"caf\xe9"]).view(pa.string())}), path)
    with pytest.raises(
        PriorlabError, match=r"rows\.parquet \(corpus\.sources\.mine\.paths\) cannot be read to its end: UnicodeDecodeError"
    ):
        read(path, max_bad_share=1.0)


def test_a_nested_parquet_column_is_read_without_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    no_date_of_python_s = pa.array([2**40] * 3).view(pa.timestamp("s"))
    body = pa.StructArray.from_arrays([pa.array(TEXTS), no_date_of_python_s], ["text", "when"])
    pq.write_table(pa.table({"body": body}), path)
    assert read(path, column="body.text")[0] == TEXTS
    with pytest.raises(PriorlabError, match=r"rows\.parquet \(corpus\.sources\.mine\.paths\) cannot be read to its end: OverflowError"):
        read(path, column="body.what")


def test_parquet_is_read_and_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [*TEXTS, None], "id": [1, 2, 3, 4]}), path)
    found, reading = read(path, max_bad_share=0.5)
    assert found == TEXTS
    assert [(one.place, one.wrong) for one in reading.bad] == [(f"{path}, row 4", "has 'None' in column 'text', not text")]
    with pytest.raises(PriorlabError, match=r"rows\.parquet has no column 'body' \(corpus\.sources\.mine\.column\); it has text, id"):
        read(path, column="body")


BAD: dict[str, tuple[bytes, str]] = {
    "broken JSON": (b'{"text": "cut of', "line 3 is not JSON: Unterminated string"),
    "no object": (b"[1, 2]", "line 3 is '[1, 2]', not a JSON object"),
    "no column": (b'{"txt": "x"}', "line 3 has no column 'text' (corpus.sources.mine.column); it has txt"),
    "no text": (b'{"text": 7}', "line 3 has '7' in column 'text', not text"),
    "not UTF-8": (b'{"text": "caf\xe9 x"}', "line 3 is not UTF-8: invalid continuation byte b'\\xe9 x\"' at byte 13"),
    "half a surrogate pair": (b'{"text": "\\ud83d"}', "line 3 has half of a surrogate pair"),
    "nested too deep": (b"[" * 100_000, "line 3 is not JSON: "),
    "a number of 5,000 digits": (b'{"text": "good", "id": ' + b"9" * 5000 + b"}", "line 3 is not JSON: Exceeds the limit"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_file_and_line_and_stops_the_stage_past_the_share(case: str, tmp_path: Path, capsys: Any) -> None:
    line, message = BAD[case]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n{"text": " "}\n')
    found, reading = read(path, max_bad_share=0.25)
    assert found == ["good", "good"]
    assert reading.counts() == {"documents": 2, "empty_documents": 1, "bad_documents": 1}
    assert f"warning: source 'mine': {path}, {message}" in capsys.readouterr().err
    with pytest.raises(PriorlabError) as error:
        read(path, max_bad_share=0.2)
    assert "1 of 4 documents cannot be read, more than corpus.max_bad_share = 0.2 allows" in str(error.value)
    assert f"{path}, {message}" in str(error.value)
    save_bad([reading], tmp_path / "bad.jsonl")
    (row,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert (row["source"], row["place"]) == ("mine", f"{path}, line 3")


def test_text_that_is_no_utf8_spoils_the_document_it_is_in_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_bytes(b"good\n--\nso so\nb\xe4d\nso so\n--\ngood\n")
    found, reading = read(path, max_bad_share=0.5, separator="--\n")
    assert found == ["good\n", "good\n"]
    assert [one.place for one in reading.bad] == [f"{path}, line 4"]
    path.write_bytes(b"good|b\xe4d|fine")  # on one line
    found, reading = read(path, max_bad_share=0.5, separator="|")
    assert found == ["good", "fine"]
    assert [(one.place, one.wrong) for one in reading.bad] == [
        (f"{path}, line 1", r"is not UTF-8: invalid continuation byte b'\xe4d' at byte 1")
    ]


def test_an_empty_file_is_named_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "nothing.jsonl"
    path.write_bytes(b"\n")
    with pytest.raises(PriorlabError, match=r"1 of 1 documents cannot be read.*nothing\.jsonl is empty"):
        read(path)


def _cut_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-20])


def _no_gzip(path: Path) -> None:
    path.write_bytes(b'{"text": "x"}\n')


@pytest.mark.parametrize("write", [_cut_gzip, _no_gzip])
def test_a_file_that_cannot_be_read_to_its_end_stops_the_stage(write: Callable[[Path], None], tmp_path: Path) -> None:
    for name in ("rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet"):
        write(tmp_path / name)
        with pytest.raises(PriorlabError, match=rf"{name} \(corpus\.sources\.mine\.paths\) cannot be read to its end"):
            read(tmp_path / name, max_bad_share=1.0)


def test_many_bad_rows_stop_the_stage_long_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("no\n" * 5000)
    with pytest.raises(PriorlabError, match="11 of 11 documents cannot be read"):
        read(path, max_bad_share=0.01)


def test_a_file_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = FilesSource.model_validate({"paths": [str(path)]})
    path.write_text("two")
    with pytest.raises(PriorlabError, match="has changed since the run was planned"):
        list(find_documents(source, "corpus.sources.mine"))


def test_the_standard_library_is_there_without_its_tests_and_another_one_is_refused() -> None:
    places = [found.place for found in find_documents(StdlibSource(), "corpus.sources.code")]
    assert places == sorted(places)
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(places)
    assert not [place for place in places if {"test", "tests", "site-packages"} & set(place.split("/"))]
    other = StdlibSource(python="3.11.0", sha256="0" * 64)
    with pytest.raises(PriorlabError, match=r"differs from the one the run was planned with \(corpus\.sources\.code: 3\.11\.0"):
        list(find_documents(other, "corpus.sources.code"))


def test_a_data_set_is_read_as_those_of_the_hub_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the hub: the library loads both by name."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "hub").mkdir()
    pq.write_table(
        pa.table({"body": [{"en": text} for text in [*TEXTS, None]], "id": [1, 2, 3, 4]}), tmp_path / "hub" / "train.parquet"
    )
    source = HubSource(dataset=str(tmp_path / "hub"), column="body.en")
    found = list(find_documents(source, "corpus.sources.web"))
    assert [one.text for one in found if not one.wrong] == TEXTS
    assert [one.place for one in found if one.wrong] == [f"{tmp_path}/hub, row 4"]
    with pytest.raises(PriorlabError, match=r"hub has no column 'text' \(corpus\.sources\.web\.column\); it has body, id"):
        list(find_documents(source.model_copy(update={"column": "text"}), "corpus.sources.web"))
    with pytest.raises(PriorlabError, match=r"cannot load the dataset '.*/hub' \(subset None, split dev\) of corpus\.sources\.web"):
        list(find_documents(source.model_copy(update={"split": "dev"}), "corpus.sources.web"))


def test_a_stream_gives_so_many_documents_in_an_order_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "hub").mkdir()
    texts = [f"text {number}" for number in range(50)]
    for shard in range(5):
        pq.write_table(pa.table({"body": [{"en": text} for text in texts[shard::5]]}), tmp_path / "hub" / f"train-{shard}.parquet")
    source = HubSource(dataset=str(tmp_path / "hub"), column="body.en", documents=20)

    def streamed(seed: int, **changes: object) -> list[str]:
        return [one.text for one in find_documents(source.model_copy(update=changes), "corpus.sources.web", seed)]

    first = streamed(1)
    assert first == streamed(1) != streamed(2)
    assert len(set(first)) == 20
    assert set(first) < set(texts)
    assert len({texts.index(text) % 5 for text in first}) > 1  # of several files
    assert sorted(streamed(1, documents=90)) == sorted(texts)  # no more than there are
    with pytest.raises(PriorlabError, match=r"hub has no column 'text' \(corpus\.sources\.web\.column\); it has body"):
        streamed(1, column="text")
    with pytest.raises(PriorlabError, match=r"cannot load the dataset '.*/hub' \(subset None, split dev\) of corpus\.sources\.web"):
        streamed(1, split="dev")
