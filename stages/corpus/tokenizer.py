"""Tokenizers for a corpus: one token per character, a byte-level BPE trained on the text, or an existing one.

They share a convention. END closes a document and, as in packed text, precedes the next, so encoding with special tokens puts it
before a prompt; padding has its own token, since a model does not train the embedding it pads with.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.config.corpus import PretrainedTokenizer, tokenizer_digest
from pipeline.errors import PriorlabError
from stages.tasks import Problem, Task
from stages.tasks.protocol import TooFewProblemsError

END = "<|end|>"
PAD = "<|pad|>"
# Prompts of each split that are looked at before training; all that a stage uses are checked once more when it starts.
_LOOKED_AT = 64


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token per character of the alphabet, plus end-of-text and padding."""
    vocabulary = {token: index for index, token in enumerate([END, PAD, *sorted(set(alphabet))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _with_end(tokenizer, END, PAD)


def bpe_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE. Digits stay single: merging them would make arithmetic a matter of vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        print(
            f"warning: the trained BPE has {found:,} tokens, corpus.tokenizer.vocab_size asks for {vocab_size:,}: this text has no "
            "more pairs to merge. Models get the smaller vocabulary; raise corpus.tokenizer.train_characters, give more text, or ask "
            "for fewer",
            file=sys.stderr,
        )
    return _with_end(tokenizer, END, PAD)


def pretrained_tokenizer(config: PretrainedTokenizer) -> PreTrainedTokenizerFast:
    """An existing tokenizer's vocabulary, rules and chat template; its end-of-text is END here, and starts prompts too."""
    place = str(config.folder or config.hub)
    if config.folder is not None and tokenizer_digest(Path(config.folder)) != config.sha256:
        raise PriorlabError(
            f"the tokenizer in {place} (corpus.tokenizer.folder) has changed since the run was planned; run the command again to use it"
        )
    if config.hub is not None and Path(config.hub).is_dir():
        raise PriorlabError(
            f"a folder called {place!r} lies in {Path.cwd()}, which transformers would load instead of the hub's tokenizer of that "
            f"name (corpus.tokenizer); give {{kind: pretrained, folder: {place}}} if you mean it, or run from another folder"
        )
    try:
        theirs = AutoTokenizer.from_pretrained(place, revision=config.revision or "main", trust_remote_code=False)
    except Exception as error:  # from any library underneath: no network, no such name, files that do not match
        raise PriorlabError(f"cannot load the tokenizer {place!r} (corpus.tokenizer): {type(error).__name__}: {error}") from error
    if getattr(theirs, "backend_tokenizer", None) is None:
        raise PriorlabError(f"the tokenizer {place!r} (corpus.tokenizer) has no fast form (tokenizer.json); choose one that does")
    if theirs.eos_token is None:
        raise PriorlabError(
            f"the tokenizer {place!r} (corpus.tokenizer) has no end-of-text token (eos_token), which separates documents and ends "
            "responses; choose one that has"
        )
    own = theirs.pad_token is not None and theirs.pad_token != theirs.eos_token
    ours = converted(theirs, pad=theirs.pad_token if own else PAD)
    ids = ours.get_vocab().values()
    if max(ids) >= len(ours):
        raise PriorlabError(
            f"the tokenizer {place!r} (corpus.tokenizer) has {len(ours)} tokens with ids up to {max(ids)}; a model has one row per "
            "token, so ids must have no gaps"
        )
    return ours


def converted(theirs: PreTrainedTokenizerFast, *, pad: str, start: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer in our convention: `start` (default: its end-of-text) before each prompt, and `pad`, added if need be, as padding."""
    tokenizer = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if pad not in theirs.all_special_tokens:
        tokenizer.add_special_tokens([AddedToken(pad, special=True, normalized=False)])
    unknown = {} if theirs.unk_token is None else {"unk_token": theirs.unk_token}
    ours = _with_end(tokenizer, str(theirs.eos_token), pad, start, **unknown)
    ours.chat_template = theirs.chat_template
    return ours


def _with_end(tokenizer: Tokenizer, end: str, pad: str, start: str | None = None, **more: str) -> PreTrainedTokenizerFast:
    start = end if start is None else start
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[start, "$A"], special_tokens=[(start, tokenizer.token_to_id(start))]
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=start, pad_token=pad, clean_up_tokenization_spaces=False, **more
    )


def check_task(task: Task, tokenizer: PreTrainedTokenizerFast) -> None:
    """Before any training: raises `PriorlabError` if RL or evaluation would refuse the task's prompts as unknown to the tokenizer."""
    for split in ("rl", "evaluate"):
        _check_known(_some_problems(task, split), tokenizer)


def _some_problems(task: Task, split: Literal["rl", "evaluate"]) -> list[Problem]:
    """Empty if the split has no problems or cannot be read: the stage that needs it says so."""
    for count in (_LOOKED_AT, 8, 1):
        try:
            return task.problems(split, count, seed=0)
        except TooFewProblemsError:
            continue
        except PriorlabError:  # a source that a stage without the hub cannot reach
            break
    return []


def check_prompts(problems: list[Problem], tokenizer: PreTrainedTokenizerFast, room: int) -> None:
    """Raises `PriorlabError` if a prompt holds what the tokenizer does not know, or more than `room` tokens, which the engine would
    refuse in mid-run."""
    _check_known(problems, tokenizer)
    lengths = [len(ids) for ids in tokenizer([problem.prompt for problem in problems])["input_ids"]]
    if max(lengths) > room:
        raise PriorlabError(
            f"{sum(length > room for length in lengths)} of {len(problems)} prompts are longer than task.max_prompt_tokens = {room}, "
            f"the longest has {max(lengths)} tokens; set task.max_prompt_tokens={max(lengths)} or leave long problems out"
        )


def _check_known(problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    # The model inside decides which token that is; the role `unk_token` around it is a label.
    unknown_token = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")
    for problem in problems:
        unknown = _unknown_in(problem.prompt, backend, unknown_token)
        if unknown is not None:
            raise PriorlabError(
                f"the prompt {problem.prompt[:60]!r} has {unknown!r}, which the tokenizer does not know; choose another "
                "corpus.tokenizer"
            )


def _unknown_in(text: str, tokenizer: Tokenizer, unknown_token: str | None) -> str | None:
    """The first piece of a text that becomes the unknown token, or no token at all; None if every piece has its own.

    By what stands in the text, not by id alone: the unknown token may also be end-of-text, as in GPT-2, and a chat template may spell
    it out.
    """
    try:
        encoding = tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # what tokenizers raises, itself, where the unknown token has no id
        return next((c for c in text if tokenizer.token_to_id(c) is None), text)
    covered = [False] * len(text)
    unknown_id = None if unknown_token is None else tokenizer.token_to_id(unknown_token)
    for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        covered[start:end] = [True] * (end - start)
        if number == unknown_id and text[start:end].strip() != unknown_token:
            return text[start:end]
    # Spaces, marks and control characters are often normalized away; letters, numbers, punctuation and symbols never should be.
    dropped = (c for c, seen in zip(text, covered, strict=True) if not seen and unicodedata.category(c)[0] in "LNPS")
    return next(dropped, None)
