"""Worked solutions to blocks with labels: whole solutions, one after the other, as many as fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.config.finetuning import SolutionSource
from pipeline.config.stages import SFTStage
from pipeline.errors import PriorlabError
from stages.corpus.text import encode
from stages.tasks import Document, build_task
from stages.tasks.rows import column, read_rows

_AT_A_TIME = 500
_NOT_LEARNED = -100


class Solutions:
    """Blocks of token ids and labels, in memory; labels are -100 where nothing is to be learned."""

    def __init__(self, blocks: Int[np.ndarray, "blocks 2 block"], *, count: int, too_long: int) -> None:
        self._blocks = blocks
        self.block_size = blocks.shape[2]
        self.count = count
        """Solutions in the blocks."""
        self.too_long = too_long
        """Solutions left out, since they do not fit into a block."""
        self.learned_share = float((blocks[:, 1] != _NOT_LEARNED).mean())

    def __len__(self) -> int:
        return len(self._blocks)

    def rows(self, numbers: list[int] | np.ndarray) -> Int[Tensor, "rows 2 block"]:
        return torch.from_numpy(self._blocks[numbers].astype(np.int64))


def find_solutions(config: SFTStage) -> Iterator[Document]:
    """The task's, of random problems that neither RL nor evaluation has, or all of a source.

    Raises `PriorlabError` if the task has none, or at a row without text.
    """
    if config.sft.source is not None:
        return _from_rows(config.sft.source)
    assert config.sft.documents is not None
    return build_task(config.task).documents("corpus", config.sft.documents, config.seed)


def _from_rows(source: SolutionSource) -> Iterator[Document]:
    for place, row in read_rows(source, "sft.source"):
        named = {"problem": source.problem, "response": source.response}
        texts = {key: column(row, name, place, f"sft.source.{key}") for key, name in named.items()}
        for key, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise PriorlabError(f"{place} has {str(text)[:40]!r} in column {named[key]!r} (sft.source.{key}), where text belongs")
        yield Document(texts["problem"], texts["response"])


def pack(documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, block_size: int) -> Solutions:
    """Solutions in their order, each followed by end-of-text; what is left of a block is filled with end-of-text.

    Responses and the end-of-text after each are learned. Raises `PriorlabError` if no solution fits into a block.
    """
    end = tokenizer.eos_token_id
    blocks: list[np.ndarray] = []
    room = count = too_long = 0
    for prompt, response in _encoded(documents, tokenizer):
        length = len(prompt) + len(response) + 1
        if length > block_size:
            too_long += 1
            continue
        if length > room:
            blocks.append(np.stack([np.full(block_size, end, np.int32), np.full(block_size, _NOT_LEARNED, np.int32)]))
            room = block_size
        place = slice(block_size - room, block_size - room + length)
        blocks[-1][:, place] = [[*prompt, *response, end], [_NOT_LEARNED] * len(prompt) + [*response, end]]
        room -= length
        count += 1
    if not blocks:
        raise PriorlabError(
            f"of {too_long} solutions, none fits into a block of {block_size} tokens; raise sft.block_size"
            if too_long
            else "there is no solution to learn from; sft.source is empty"
        )
    packed = np.stack(blocks)
    packed[:, 1, 0] = _NOT_LEARNED  # nothing comes before it
    return Solutions(packed, count=count, too_long=too_long)


def _encoded(documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[list[int], list[int]]]:
    remaining = iter(documents)
    while batch := list(itertools.islice(remaining, _AT_A_TIME)):
        prompts, responses = zip(*batch, strict=True)
        # As RL's prompts are, with what the tokenizer starts a text with; responses go on from there.
        yield from zip(tokenizer(list(prompts))["input_ids"], encode(tokenizer, list(responses)), strict=True)
