"""The stage `corpus`: tokenizer, training blocks and held-out blocks from a task's worked solutions.

The corpus of a later stage takes the tokenizer of the first, which is then a parent.
"""

from typing import TYPE_CHECKING, Any

from pipeline.config.recipe import CorpusStage
from stages.contract import Stage, main

if TYPE_CHECKING:
    from pathlib import Path

    from stages.tasks import Split


def build(stage: Stage) -> dict[str, Any]:
    from stages import processes

    processes.quiet()
    from transformers import PreTrainedTokenizerFast

    from stages.corpus.pack import packed_blocks, save_blocks
    from stages.corpus.tokenizer import character_tokenizer
    from stages.tasks import build_task

    config = stage.config_as(CorpusStage)
    task, corpus = build_task(config.task), config.corpus
    if "tokenizer" in stage.spec["parents"]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(stage.parent("tokenizer") / "tokenizer", trust_remote_code=False)
    else:
        tokenizer = character_tokenizer(task.alphabet)
    metrics: dict[str, Any] = {"vocabulary": len(tokenizer), "block_size": corpus.block_size}

    def write(folder: "Path") -> None:
        tokenizer.save_pretrained(folder / "tokenizer")
        wanted: list[tuple[str, Split, int]] = [
            ("train", "corpus", corpus.documents),
            ("heldout", "heldout", corpus.heldout_documents),
        ]
        for name, split, count in wanted:
            stage.progress(0, count, "documents")
            blocks = packed_blocks(task.documents(split, count, corpus.seed), tokenizer, corpus.block_size)
            metrics[f"{name}_blocks"] = save_blocks(blocks, corpus.block_size, folder / name)

    stage.export(write)
    return metrics


if __name__ == "__main__":
    main("corpus", build)
