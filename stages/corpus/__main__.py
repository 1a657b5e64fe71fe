"""The stage `corpus`: tokenizer, training blocks and held-out blocks from a task's worked solutions."""

from typing import TYPE_CHECKING, Any

from stages.contract import Stage, main

if TYPE_CHECKING:
    from pathlib import Path


def build(stage: Stage) -> dict[str, Any]:
    from stages import processes

    processes.quiet()
    from stages.corpus.pack import packed_blocks, save_blocks
    from stages.corpus.tokenizer import character_tokenizer
    from stages.tasks import build_task

    task, corpus = build_task(stage.config.task), stage.config.corpus
    tokenizer = character_tokenizer(task.alphabet)
    metrics: dict[str, Any] = {"vocabulary": len(tokenizer), "block_size": corpus.block_size}

    def write(folder: "Path") -> None:
        tokenizer.save_pretrained(folder / "tokenizer")
        for name, split, count in (
            ("train", "corpus", corpus.documents),
            ("heldout", "heldout", corpus.heldout_documents),
        ):
            stage.progress(0, count, "documents")
            blocks = packed_blocks(task.documents(split, count, corpus.seed), tokenizer, corpus.block_size)
            metrics[f"{name}_blocks"] = save_blocks(blocks, corpus.block_size, folder / name)

    stage.export(write)
    return metrics


if __name__ == "__main__":
    main("corpus", build)
