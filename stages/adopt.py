"""Take in a checkpoint made elsewhere as a pretrain stage's export, if it fits the recipe's corpus (`python -m stages.adopt`).

It fits if it has the same tokenizer (vocabulary, special tokens, tokens of held-out text), at least the recipe's number of positions,
the same end, and finite weights that match its config. The record then has `adopted`: the source folder and the sha256 of its files.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.stages import PretrainStage
from pipeline.errors import PriorlabError
from pipeline.store.files import manifest_of
from stages.contract import Stage, main

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_COMPARED_BLOCKS = 64
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def adopt(stage: Stage) -> dict[str, Any]:
    from stages.training import process as processes

    processes.quiet()
    from transformers import AutoConfig

    from stages.checkpoint import verify_export

    wanted = stage.config_as(PretrainStage).model.max_positions
    source, manifest = Path(stage.spec["adopt"]["source"]), stage.spec["adopt"]["manifest"]
    tokenizer = _checked_tokenizer(source, stage.parent("corpus"))
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    positions = config.max_position_embeddings
    if positions < wanted:
        raise PriorlabError(f"the checkpoint has {positions} positions, the recipe needs model.max_positions={wanted}; lower it")
    end = getattr(config, "eos_token_id", None)
    if end not in (None, tokenizer.eos_token_id):  # engines stop at these too
        raise PriorlabError(
            f"its config.json has eos_token_id {end}, its tokenizer {tokenizer.eos_token_id}: responses would end "
            "differently from those of models trained here; make the two agree"
        )
    verify_export(source)

    def write(folder: Path) -> None:
        for number, name in enumerate(manifest):
            stage.progress(number, len(manifest), "files")
            if stage.spec["adopt"]["link"]:
                _link((source / name).resolve(), folder / name)
            else:
                shutil.copyfile(source / name, folder / name)
        if manifest_of(folder) != manifest:
            raise PriorlabError(f"{source} changed during adoption; run the command again")

    stage.export(write)
    return {"files": len(manifest), "vocabulary": len(tokenizer), "positions": positions}


def _link(file: Path, name: Path) -> None:
    try:
        name.hardlink_to(file)
    except OSError as error:
        raise PriorlabError(f"cannot link {file} into {name.parent} ({error.strerror}); leave out --link to copy it") from error


def _checked_tokenizer(source: Path, corpus: Path) -> PreTrainedTokenizerFast:
    """Raises `PriorlabError` at the first difference from the corpus's tokenizer."""
    from transformers import AutoTokenizer

    from stages.corpus.pack import Blocks

    theirs, ours = (AutoTokenizer.from_pretrained(folder, trust_remote_code=False) for folder in (source, corpus / "tokenizer"))
    their_ids, our_ids = theirs.get_vocab(), ours.get_vocab()
    if their_ids != our_ids:
        token = min(token for token in their_ids.keys() | our_ids.keys() if their_ids.get(token) != our_ids.get(token))
        raise PriorlabError(
            f"its tokenizer differs from the corpus's: token {token!r} has id {their_ids.get(token)}, in the corpus "
            f"{our_ids.get(token)}. A checkpoint can be adopted only as a recipe whose corpus uses the same tokenizer"
        )
    for name in _SPECIAL:
        if getattr(theirs, name) != getattr(ours, name):
            raise PriorlabError(
                f"its tokenizer has {name} {getattr(theirs, name)}, the corpus's {getattr(ours, name)}; they must agree"
            )
    blocks = Blocks(corpus / "heldout")
    for row in blocks.rows(list(range(min(len(blocks), _COMPARED_BLOCKS)))).tolist():
        text = ours.decode(row, skip_special_tokens=True)
        if theirs(text)["input_ids"] != ours(text)["input_ids"]:
            raise PriorlabError(f"its tokenizer splits held-out text unlike the corpus's, first in {text[:60]!r}")
    return ours


if __name__ == "__main__":
    main("pretrain", adopt)
