"""Documents to blocks: token streams joined by end-of-text, cut into equal blocks, stored as Arrow (HF datasets)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.errors import PriorlabError

_BATCH_DOCUMENTS = 1000


def packed_blocks(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, block_size: int) -> Iterator[list[int]]:
    """Every document followed by end-of-text, cut each `block_size` tokens; the incomplete last block is dropped."""
    pending: list[int] = [tokenizer.eos_token_id]  # so that the first document, like all others, follows an end-of-text
    iterator = iter(documents)
    while batch := list(itertools.islice(iterator, _BATCH_DOCUMENTS)):
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            pending.extend(ids)
            pending.append(tokenizer.eos_token_id)
        whole = len(pending) - len(pending) % block_size
        for start in range(0, whole, block_size):
            yield pending[start : start + block_size]
        del pending[:whole]


def save_blocks(blocks: Iterable[list[int]], block_size: int, folder: Path) -> int:
    """Write blocks as a HF dataset with one fixed-size column, `input_ids`; returns how many."""
    array = np.fromiter(itertools.chain.from_iterable(blocks), dtype=np.int32).reshape(-1, block_size)
    if len(array) == 0:
        raise PriorlabError(
            f"the documents for {folder.name} do not fill one block of {block_size} tokens; raise corpus.documents or "
            "corpus.heldout_documents, or lower corpus.block_size"
        )
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"), length=block_size)})
    datasets.Dataset.from_dict({"input_ids": array}, features=features).save_to_disk(str(folder))
    return len(array)


class Blocks:
    """Memory-mapped blocks, read by row number."""

    def __init__(self, folder: Path) -> None:
        try:
            dataset = datasets.load_from_disk(str(folder))
        except OSError as error:
            raise PriorlabError(f"{folder} holds no packed blocks ({error}); run the corpus stage again") from error
        column = dataset.data.column("input_ids").combine_chunks()
        self.block_size: int = column.type.list_size
        self._rows = column.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.block_size)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, numbers: list[int] | np.ndarray) -> Int[Tensor, "rows block"]:
        return torch.from_numpy(self._rows[numbers].astype(np.int64))
