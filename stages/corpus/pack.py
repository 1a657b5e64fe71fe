"""Documents to blocks: token streams joined by end-of-text, cut into equal blocks, stored as Arrow (HF datasets)."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.arrow_writer import ArrowWriter
from jaxtyping import Int, Int32
from torch import Tensor

from pipeline.errors import PriorlabError

# Tokens buffered before they are cut or written: enough to amortize Python, small beside a corpus (a task draws them for it).
_CUT, _WRITTEN = 1 << 15, 1 << 18

Ids = Int32[np.ndarray, " tokens"]
Block = Int32[np.ndarray, " block"]


def packed_blocks(documents: Iterable[Ids], end: int, block_size: int) -> Iterator[Block]:
    """Cut a stream of documents, each ending with `end`, every `block_size` tokens; the incomplete last block is dropped."""
    pending = [np.array([end], dtype=np.int32)]  # so that the first document, like all others, follows an end-of-text
    held = 1
    for ids in documents:
        pending.append(ids)
        held += len(ids)
        if held >= max(_CUT, block_size):
            *blocks, rest = _cut(pending, block_size)
            yield from blocks
            pending, held = [rest], len(rest)
    yield from _cut(pending, block_size)[:-1]


def _cut(pieces: list[Ids], block_size: int) -> list[Ids]:
    """Whole blocks, then the remainder."""
    tokens = np.concatenate(pieces)
    whole = len(tokens) - len(tokens) % block_size
    return [*tokens[:whole].reshape(-1, block_size), tokens[whole:]]


def interleaved(blocks: dict[str, Iterator[Block]], shares: dict[str, int]) -> Iterator[Block]:
    """`shares[name]` blocks per source, evenly spread: any stretch has about the overall mix.

    Raises `PriorlabError` at the first source with too few.
    """

    def placed(number: int, name: str) -> Iterator[tuple[float, int, Block]]:
        for made in range(shares[name]):
            block = next(blocks[name], None)
            if block is None:
                raise PriorlabError(
                    f"source {name!r} ends after {made:,} of the {shares[name]:,} blocks in its share; lower corpus.tokens, "
                    f"corpus.heldout_tokens or its weight; or raise corpus.sources.{name}.passes (training) or corpus.heldout_share"
                )
            yield (made + 0.5) / shares[name], number, block

    streams = [placed(number, name) for number, name in enumerate(blocks)]
    return (block for _, _, block in heapq.merge(*streams, key=lambda item: item[:2]))


def save_blocks(blocks: Iterator[Block], block_size: int, folder: Path) -> int:
    """Write blocks as a HF dataset with one fixed-size column, `input_ids`; returns how many. Keeps only a few in memory."""
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"), length=block_size)})
    raw = folder.with_name(f"{folder.name}.arrow")
    count = 0
    with ArrowWriter(path=str(raw), features=features) as writer:
        while rows := list(itertools.islice(blocks, max(1, _WRITTEN // block_size))):
            flat = pa.array(np.concatenate(rows))
            writer.write_table(pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(flat, block_size)}))
            count += len(rows)
        if count:
            writer.finalize()
    if count == 0:
        raise PriorlabError(
            f"the documents for {folder.name} do not fill one block of {block_size} tokens; raise corpus.documents or "
            "corpus.heldout_documents, or lower corpus.block_size"
        )
    datasets.Dataset.from_file(str(raw)).save_to_disk(str(folder))
    raw.unlink()
    return count


class Blocks:
    """Memory-mapped blocks, read by row number."""

    def __init__(self, folder: Path) -> None:
        try:
            dataset = datasets.load_from_disk(str(folder))
        except OSError as error:
            raise PriorlabError(f"{folder} holds no packed blocks ({error}); run the corpus stage again") from error
        column = dataset.data.column("input_ids")
        self.block_size: int = column.type.list_size
        self._parts = [part.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.block_size) for part in column.chunks]
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, numbers: list[int] | np.ndarray) -> Int[Tensor, "rows block"]:
        """Copies of these blocks' token ids, as int64. Raises `IndexError` for a number that is negative or past the last."""
        rows = np.empty((len(numbers), self.block_size), dtype=np.int64)
        for place, (number, part) in enumerate(zip(numbers, np.searchsorted(self._ends, numbers, side="right"), strict=True)):
            rows[place] = self._parts[part][number - self._ends[part]]  # from the part's end: a negative index
        return torch.from_numpy(rows)
