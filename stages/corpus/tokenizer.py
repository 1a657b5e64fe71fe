"""A character tokenizer for synthetic tasks: one token per character of the task's alphabet, plus end-of-text and padding."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
PAD = "<|pad|>"


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """END closes a document and, as in packed text, stands before the next: encoding with special tokens puts it before a prompt."""
    vocabulary = {token: index for index, token in enumerate([END, PAD, *sorted(set(alphabet))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, vocabulary[END])])
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
