"""Tokens per second of tokenising and packing, as the stage `corpus` does it, beside the bare tokenizer (`encode_batch`).

    .venv/bin/python scripts/benchmarks/corpus.py --json corpus.json
    .venv/bin/python scripts/benchmarks/corpus.py --text texts/*.jsonl.zst --tokenizer FOLDER --num-proc 8

The text is the standard library, or files as `corpus.sources` reads them; the tokenizer a BPE trained on it, or that of a folder. The
peers take turns on the same text, each from texts in memory (bare) or in Arrow (ours); medians, the first turn left out. With one
process, CPU seconds count, which a busy machine disturbs least; with several, seconds of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.config.corpus import FilesSource, PretrainedTokenizer, StdlibSource

_BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="*", default=[], help="files or globs instead of the standard library")
    parser.add_argument("--tokenizer", help="folder of a tokenizer instead of a trained BPE")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=2048)
    parser.add_argument("--characters", type=int, default=4_000_000, help="of the text, at most")
    parser.add_argument("--num-proc", type=int, nargs="*", default=[1], help="numbers of processes to tokenise with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as scratch:
        result = _measure(arguments, Path(scratch))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from stages.training import process as processes

    processes.quiet()
    from stages.corpus.pack import packed_blocks, save_blocks
    from stages.corpus.sources import Reading, find_documents
    from stages.corpus.text import StoredText
    from stages.corpus.tokenizer import bpe_tokenizer, pretrained_tokenizer

    source = FilesSource.model_validate({"paths": arguments.text}) if arguments.text else StdlibSource()
    texts = list(_at_most(arguments.characters, Reading("text", 0.01).texts(find_documents(source, "--text"))))
    if arguments.tokenizer:
        tokenizer = pretrained_tokenizer(PretrainedTokenizer.model_validate({"folder": arguments.tokenizer}))
    else:
        tokenizer = bpe_tokenizer(iter(texts), arguments.vocab_size)
    end = tokenizer.eos_token_id
    clock = time.process_time if arguments.num_proc == [1] else time.perf_counter

    def bare() -> dict[str, float]:
        started, count = clock(), 0
        for first in range(0, len(texts), _BATCH):
            batch = tokenizer.backend_tokenizer.encode_batch(texts[first : first + _BATCH], add_special_tokens=False)
            count += sum(len(encoding.ids) for encoding in batch)
        return {"bare": (count + len(texts)) / (clock() - started)}

    def ours(num_proc: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=scratch) as turn:
            folder = Path(turn)
            # Both parts are tokenised, one is packed.
            stored = StoredText(iter(texts), folder / "text", name="text", seed=0, heldout_share=0.1, passes=1)
            started = clock()
            stored.cut(tokenizer, num_proc)
            cut = clock()
            blocks = packed_blocks(stored.tokens("train"), end, arguments.block_size)
            tokens = save_blocks(blocks, arguments.block_size, folder / "train") * arguments.block_size
            done = clock()
            everything = tokens + stored.length("heldout")
        name = f"{num_proc} processes" if num_proc > 1 else "1 process"
        return {
            f"tokenise, {name}": everything / (cut - started),
            f"pack and save, {name}": tokens / (done - cut),
            f"both, {name}": 1 / ((cut - started) / everything + (done - cut) / tokens),
        }

    rates: dict[str, list[float]] = {}
    for _ in range(arguments.repeats + 1):
        for result in (bare(), *(ours(number) for number in arguments.num_proc)):
            for name, rate in result.items():
                rates.setdefault(name, []).append(rate)
    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
    characters = sum(map(len, texts))
    print(f"\n{len(texts):,} documents, {characters:,} characters, {len(tokenizer):,} tokens in the vocabulary")
    for name, rate in medians.items():
        print(f"{name:28}{rate:14,.0f} tokens/s{rate / medians['bare']:8.2f}x")
    return {"documents": len(texts), "characters": characters, "vocabulary": len(tokenizer), "tokens_per_s": medians}


def _at_most(characters: int, texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


if __name__ == "__main__":
    main()
