"""Where a corpus's tokens come from: stored text, tokenized once, or a task's solutions, drawn on demand.

Stored text goes through memory-mapped Arrow files, so that only a few documents are in memory, and is tokenized by HF datasets'
`map`, whose result does not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerFast

from pipeline.errors import PriorlabError
from stages.corpus.pack import Ids
from stages.tasks import Task

Part = Literal["train", "heldout"]
_TASK_SPLIT: dict[Part, Literal["corpus", "heldout"]] = {"train": "corpus", "heldout": "heldout"}
_DOCUMENTS_AT_A_TIME = 500


class TaskText:
    """Worked solutions; special tokens in them are parsed, as in RL's prompts, where a chat template writes them."""

    def __init__(self, task: Task, seed: int, counts: dict[Part, int] | None) -> None:
        """`counts` bounds the documents; None: no bound."""
        self.task = task
        self.seed = seed
        self.counts = counts
        self.tokenizer: PreTrainedTokenizerFast | None = None

    def strings(self) -> Iterator[str]:
        """Training text for the tokenizer."""
        for document in self.task.documents("corpus", 2**62, self.seed):
            yield from document

    def cut(self, tokenizer: PreTrainedTokenizerFast, num_proc: int) -> None:
        """Keeps only the tokenizer: solutions are tokenized as they are drawn."""
        self.tokenizer = tokenizer

    def tokens(self, part: Part) -> Iterator[Ids]:
        """Documents, each followed by end-of-text."""
        assert self.tokenizer is not None
        count = 2**62 if self.counts is None else self.counts[part]
        documents = self.task.documents(_TASK_SPLIT[part], count, self.seed)
        end = [self.tokenizer.eos_token_id]
        while batch := list(itertools.islice(documents, _DOCUMENTS_AT_A_TIME)):
            prompts, responses = (encode(self.tokenizer, list(texts)) for texts in zip(*batch, strict=True))
            for prompt, response in zip(prompts, responses, strict=True):
                yield np.array(prompt + response + end, dtype=np.int32)


class StoredText:
    """Documents of files, hub or library in Arrow files, held out by the hash of their text: duplicates share a split."""

    def __init__(self, texts: Iterator[str], folder: Path, *, name: str, seed: int, heldout_share: float, passes: int) -> None:
        """Reads all texts into `folder`."""
        self.folder = folder
        self.name = name
        self.seed = seed
        self.passes = passes
        self._ids: dict[Part, _Ragged] = {}
        folder.mkdir(parents=True)
        features = datasets.Features({"text": datasets.Value("large_string")})
        writers = {part: ArrowWriter(path=str(self._path(part)), features=features) for part in _TASK_SPLIT}
        self.documents = dict.fromkeys(writers, 0)
        while batch := list(itertools.islice(texts, _DOCUMENTS_AT_A_TIME)):
            parts: dict[Part, list[str]] = {part: [] for part in writers}
            for text in batch:
                parts["heldout" if is_heldout(text, heldout_share) else "train"].append(text)
            for part, writer in writers.items():
                kept = parts[part]
                writer.write_table(pa.table({"text": pa.array(kept, pa.large_string())}))
                self.documents[part] += len(kept)
        for part, writer in writers.items():
            if not self.documents[part]:
                raise PriorlabError(
                    f"source {name!r} has {sum(self.documents.values())} documents, none of them for {part}; it needs more, or "
                    "another corpus.heldout_share"
                )
            writer.finalize()
            writer.close()

    def strings(self) -> Iterator[str]:
        """Training text for the tokenizer, each document once, in random order."""
        column = datasets.Dataset.from_file(str(self._path("train"))).data.column("text")
        for number in self._order("train", 0):
            yield column[number].as_py()

    def alphabet(self) -> str:
        """Every character in it."""
        characters: set[str] = set()
        for part in self.documents:
            for texts in datasets.Dataset.from_file(str(self._path(part))).data.column("text").chunks:
                characters |= set().union(*texts.to_pylist())
        return "".join(sorted(characters))

    def cut(self, tokenizer: PreTrainedTokenizerFast, num_proc: int) -> None:
        """Tokenize all of it."""
        for part in self.documents:
            stored = datasets.Dataset.from_file(str(self._path(part))).with_format("arrow")
            cut = stored.map(
                Cutter(tokenizer),
                batched=True,
                batch_size=_DOCUMENTS_AT_A_TIME,
                num_proc=min(num_proc, self.documents[part]) if num_proc > 1 else None,
                remove_columns=["text"],
                features=datasets.Features({"ids": datasets.List(datasets.Value("int32"))}),
                cache_file_name=str(self.folder / f"{part}-ids.arrow"),
                load_from_cache_file=False,
                new_fingerprint=f"{self.name}-{part}",  # else datasets would hash the tokenizer to name a file that already has one
            )
            self._ids[part] = _Ragged(cut.data.column("ids"))

    def tokens(self, part: Part) -> Iterator[Ids]:
        """Documents, each followed by end-of-text, in a new random order per pass; held-out text once."""
        for number in range(self.passes if part == "train" else 1):
            for document in self._order(part, number):
                yield self._ids[part][document]

    def length(self, part: Part) -> int:
        """Tokens in all documents."""
        return self._ids[part].total

    def _order(self, part: Part, number: int) -> np.ndarray:
        name = int.from_bytes(hashlib.sha256(f"{self.name} {part}".encode()).digest()[:8], "big")
        return np.random.default_rng([self.seed, name, number]).permutation(self.documents[part])

    def _path(self, part: Part) -> Path:
        return self.folder / f"{part}-text.arrow"


def is_heldout(text: str, share: float) -> bool:
    """Depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64


@dataclass
class Cutter:
    """Texts to ids in Arrow, each followed by end-of-text; special tokens spelled out in a text are text."""

    tokenizer: PreTrainedTokenizerFast

    def __call__(self, texts: pa.Table) -> pa.Table:
        end = self.tokenizer.eos_token_id
        documents = encode(self.tokenizer, texts.column("text").to_pylist(), split_special_tokens=True)
        lengths = [len(ids) + 1 for ids in documents]
        flat = np.fromiter(
            itertools.chain.from_iterable(itertools.chain(ids, (end,)) for ids in documents), dtype=np.int32, count=sum(lengths)
        )
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.table({"ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))})


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], *, split_special_tokens: bool = False) -> list[list[int]]:
    """Token ids of each text, by tokenizers itself: on short texts, transformers' wrapper doubles the time."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


class _Ragged:
    """Variable-length rows of an Arrow column, as views of the file."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

    def __getitem__(self, number: int) -> Ids:
        part = int(np.searchsorted(self._ends, number, side="right"))
        offsets = self._offsets[part]
        row = number - int(self._ends[part]) + len(offsets) - 1
        return self._values[part][offsets[row] : offsets[row + 1]]

    @property
    def total(self) -> int:
        return int(sum(int(offsets[-1]) - int(offsets[0]) for offsets in self._offsets))


def weighted_strings(texts: dict[str, Iterator[str]], weights: dict[str, float], characters: int) -> Iterator[str]:
    """About `characters` characters, from sources by weight, until the first source runs out."""
    taken = dict.fromkeys(texts, 0)
    while sum(taken.values()) < characters:
        name = min(texts, key=lambda name: taken[name] / weights[name])
        text = next(texts[name], None)
        if text is None:
            return
        taken[name] += len(text)
        yield text
