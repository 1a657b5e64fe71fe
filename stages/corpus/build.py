"""From sources to blocks: read and split, make the tokenizer, tokenize, pack, and mix by block.

A later stage's corpus takes the tokenizer of the first, which is then its parent.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from pipeline.config.corpus import BPETokenizer, CharacterTokenizer, CorpusConfig, TaskSource
from pipeline.config.stages import CorpusStage
from pipeline.errors import PriorlabError
from stages.contract import Stage
from stages.corpus.pack import Block, interleaved, packed_blocks, save_blocks
from stages.corpus.sources import Reading, find_documents, save_bad
from stages.corpus.text import Part, StoredText, TaskText, weighted_strings
from stages.corpus.tokenizer import bpe_tokenizer, character_tokenizer, check_task, pretrained_tokenizer
from stages.tasks import Task, build_task

_REPORTED_DOCUMENTS = 1000


def build(stage: Stage) -> dict[str, Any]:
    """Exports train/, heldout/ and tokenizer/, and bad_documents.jsonl if there were any; returns the record's metrics."""
    config = stage.config_as(CorpusStage)
    task = build_task(config.task)
    metrics: dict[str, Any] = {}

    def write(folder: Path) -> None:
        work = folder / "work"
        metrics.update(_write(stage, config.corpus, task, folder, work))
        shutil.rmtree(work, ignore_errors=True)

    stage.export(write)
    return metrics


def _write(stage: Stage, corpus: CorpusConfig, task: Task, folder: Path, work: Path) -> dict[str, Any]:
    readings = {name: Reading(name, corpus.max_bad_share) for name, source in corpus.used_sources.items() if source.kind != "task"}
    texts = {name: _text(stage, corpus, task, name, readings.get(name), work) for name in corpus.used_sources}
    stage.progress(0, 0, "making the tokenizer")
    tokenizer = _first_tokenizer(stage, task, texts) if "tokenizer" in stage.spec["parents"] else _tokenizer(corpus, task, texts)
    tokenizer.save_pretrained(folder / "tokenizer")
    for name, text in texts.items():
        stage.progress(0, 0, f"tokenizing {name}")
        text.cut(tokenizer, corpus.num_proc)
    save_bad(list(readings.values()), folder / "bad_documents.jsonl")
    metrics: dict[str, Any] = {"vocabulary": len(tokenizer), "block_size": corpus.block_size}
    parts: tuple[tuple[Part, int | None], ...] = (("train", corpus.tokens), ("heldout", corpus.heldout_tokens))
    for part, size in parts:
        packed = {name: packed_blocks(text.tokens(part), tokenizer.eos_token_id, corpus.block_size) for name, text in texts.items()}
        shares = None if size is None else corpus.shares(size)
        blocks = next(iter(packed.values())) if shares is None else interleaved(packed, shares)
        blocks = _counted(stage, blocks, sum((shares or {}).values()), f"{part} blocks")
        metrics[f"{part}_blocks"] = save_blocks(blocks, corpus.block_size, folder / part)
        for name, count in (shares or {}).items():
            metrics[f"{name}/{part}_blocks"] = count
    for name, reading in readings.items():
        metrics |= {f"{name}/{what}": count for what, count in reading.counts().items()}
        text = texts[name]
        assert isinstance(text, StoredText)
        metrics[f"{name}/passes"] = metrics[f"{name}/train_blocks"] * corpus.block_size / text.length("train")
    return metrics


def _text(stage: Stage, corpus: CorpusConfig, task: Task, name: str, reading: Reading | None, work: Path) -> TaskText | StoredText:
    source = corpus.used_sources[name]
    if isinstance(source, TaskSource):
        if corpus.documents is None or corpus.heldout_documents is None:
            return TaskText(task, corpus.seed, None)
        return TaskText(task, corpus.seed, {"train": corpus.documents, "heldout": corpus.heldout_documents})
    assert reading is not None
    found = _reported(stage, reading.texts(find_documents(source, f"corpus.sources.{name}", corpus.seed)), name)
    return StoredText(
        found, work / name, name=name, seed=corpus.seed, heldout_share=corpus.heldout_share, passes=source.passes
    )  # fmt: skip


def _first_tokenizer(stage: Stage, task: Task, texts: dict[str, TaskText | StoredText]) -> PreTrainedTokenizerFast:
    """The parent's. Raises `PriorlabError` if it has one token per character and the text has new ones."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stage.parent("tokenizer") / "tokenizer", trust_remote_code=False)
    if stage.config_as(CorpusStage).corpus.tokenizer.kind == "characters":
        characters = set(task.alphabet) | {c for text in texts.values() if isinstance(text, StoredText) for c in text.alphabet()}
        missing = sorted(characters - tokenizer.get_vocab().keys())
        if missing:
            raise PriorlabError(
                f"midtrain.corpus has {len(missing)} characters that the first corpus has no token for, such as {missing[0]!r}; use "
                "byte tokens in both: corpus.tokenizer={kind: bpe, vocab_size: 4096}"
            )
    return tokenizer


def _reported(stage: Stage, texts: Iterator[str], name: str) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number % _REPORTED_DOCUMENTS == 0:
            stage.progress(0, 0, f"reading {name}: {number:,} documents")
        yield text


def _counted(stage: Stage, blocks: Iterator[Block], total: int, unit: str) -> Iterator[Block]:
    for number, block in enumerate(blocks, start=1):
        stage.progress(number, total, unit)
        yield block


def _tokenizer(corpus: CorpusConfig, task: Task, texts: dict[str, TaskText | StoredText]) -> PreTrainedTokenizerFast:
    match corpus.tokenizer:
        case CharacterTokenizer():
            return character_tokenizer(task.alphabet + "".join(t.alphabet() for t in texts.values() if isinstance(t, StoredText)))
        case BPETokenizer() as bpe:
            strings = {name: text.strings() for name, text in texts.items()}
            weights = {name: source.weight for name, source in corpus.used_sources.items()}
            return bpe_tokenizer(weighted_strings(strings, weights, bpe.train_characters), bpe.vocab_size)
        case pretrained:
            tokenizer = pretrained_tokenizer(pretrained)
            check_task(task, tokenizer)
            return tokenizer
