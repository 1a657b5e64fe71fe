"""Import a checkpoint made elsewhere as a pretrain stage's export, if it fits the recipe's corpus (`python -m stages.adopt`).

It fits if its tokenizer has the corpus's vocabulary, end of text and tokens of held-out text, if it has at least the recipe's number of
positions and no further ends, and if its weights are finite and match its config. Where public bases differ in what starts a prompt and
what pads, the tokenizer is converted to our convention. The record then has `adopted`: the source folder and the sha256 of its files.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.corpus import TOKENIZER_FILES
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
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    missing = [name for name in ("vocab_size", "max_position_embeddings") if not hasattr(config, name)]
    if missing:
        raise PriorlabError(f"its config.json ({config.model_type}) has no {missing[0]}, so it cannot be trained here")
    tokenizer, as_it_is = _checked_tokenizer(source, stage.parent("corpus"), config.vocab_size)
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

    copied = {name: digest for name, digest in manifest.items() if as_it_is or name not in TOKENIZER_FILES}

    def write(folder: Path) -> None:
        for number, name in enumerate(copied):
            stage.progress(number, len(copied), "files")
            if stage.spec["adopt"]["link"]:
                _link((source / name).resolve(), folder / name)
            else:
                shutil.copyfile(source / name, folder / name)
        if manifest_of(folder) != copied:
            raise PriorlabError(f"{source} changed during adoption; run the command again")
        if not as_it_is:
            tokenizer.save_pretrained(folder)

    stage.export(write)
    return {"files": len(manifest), "vocabulary": len(tokenizer), "positions": positions}


def _link(file: Path, name: Path) -> None:
    try:
        name.hardlink_to(file)
    except OSError as error:
        raise PriorlabError(f"cannot link {file} into {name.parent} ({error.strerror}); leave out --link to copy it") from error


def _checked_tokenizer(source: Path, corpus: Path, rows: int) -> tuple[PreTrainedTokenizerFast, bool]:
    """The tokenizer for the checkpoint's prompts, and whether it is the checkpoint's own, unchanged. `rows`: rows of its embedding.

    Raises `PriorlabError` at the first difference from the corpus's tokenizer that decides how text is read.
    """
    from transformers import AutoTokenizer

    from stages.corpus.pack import Blocks
    from stages.corpus.tokenizer import PAD

    theirs, ours = (AutoTokenizer.from_pretrained(folder, trust_remote_code=False) for folder in (source, corpus / "tokenizer"))
    their_ids, our_ids = theirs.get_vocab(), ours.get_vocab()
    differing = [token for token in their_ids.keys() | our_ids.keys() if their_ids.get(token) != our_ids.get(token)]
    if decisive := set(differing) - ({PAD} - their_ids.keys()):  # the corpus may have added padding
        token = min(decisive)
        raise PriorlabError(
            f"its tokenizer differs from the corpus's: token {token!r} has id {their_ids.get(token)}, in the corpus "
            f"{our_ids.get(token)}. A checkpoint can be adopted only as a recipe whose corpus uses the same tokenizer: "
            f"corpus.tokenizer={{kind: pretrained, folder: {source}}}"
        )
    if theirs.eos_token_id != ours.eos_token_id:
        raise PriorlabError(f"its tokenizer has eos_token_id {theirs.eos_token_id}, the corpus's {ours.eos_token_id}; they must agree")
    blocks = Blocks(corpus / "heldout")
    texts = [
        ours.decode(row, skip_special_tokens=True) for row in blocks.rows(list(range(min(len(blocks), _COMPARED_BLOCKS)))).tolist()
    ]
    for text in texts:
        if theirs(text, add_special_tokens=False)["input_ids"] != ours(text, add_special_tokens=False)["input_ids"]:
            raise PriorlabError(f"its tokenizer splits held-out text unlike the corpus's, first in {text[:60]!r}")
    alike = not differing and all(getattr(theirs, name) == getattr(ours, name) for name in _SPECIAL)
    if alike and all(theirs(text)["input_ids"] == ours(text)["input_ids"] for text in texts):
        return theirs, True
    return _in_our_convention(theirs, ours, rows), False


def _in_our_convention(theirs: PreTrainedTokenizerFast, ours: PreTrainedTokenizerFast, rows: int) -> PreTrainedTokenizerFast:
    """Prompts start as its makers' do, if they have a token for that; else with its end, which precedes a document in packed text.

    Padding is the corpus's if the model has a row for it, else a token with that name, else the end: no step of RL trains on it.
    """
    from stages.corpus.tokenizer import converted

    starts = theirs.bos_token_id is not None and theirs("")["input_ids"][:1] == [theirs.bos_token_id]
    named = [token.content for token in theirs.added_tokens_decoder.values() if token.special and "pad" in token.content.lower()]
    pad = ours.pad_token if ours.pad_token_id < rows else next(iter(named), theirs.eos_token)
    return converted(theirs, pad=str(pad), start=theirs.bos_token if starts else None)


if __name__ == "__main__":
    main("pretrain", adopt)
