"""What mid-training accepts to continue from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast, Qwen3Config

from pipeline.errors import PriorlabError
from stages.corpus.tokenizer import PAD
from stages.midtrain.model import continued_model

THEIRS = {"<end>": 0, "a": 1, "b": 2}


def tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), eos_token="<end>")


def test_a_corpus_may_add_padding_that_an_adopted_model_has_no_row_for_and_nothing_else(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=8
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer(THEIRS).save_pretrained(tmp_path)
    for ours in (THEIRS, THEIRS | {PAD: 3}):
        model = continued_model(tmp_path, tokenizer(ours), rope_base=None, positions=16, temperature=1)
        assert model.config.vocab_size == 3
    with pytest.raises(PriorlabError, match="does not use the tokenizer"):
        continued_model(tmp_path, tokenizer(THEIRS | {"c": 3}), rope_base=None, positions=16, temperature=1)


@pytest.mark.parametrize(("rope_base", "positions"), [(None, 64), (5e5, 16)])
def test_positions_that_are_weights_are_neither_stretched_nor_turned(rope_base: float | None, positions: int, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(GPT2Config(vocab_size=3, n_positions=32, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    tokenizer(THEIRS).save_pretrained(tmp_path)
    with pytest.raises(PriorlabError, match="learned its 32 positions"):
        continued_model(tmp_path, tokenizer(THEIRS), rope_base=rope_base, positions=positions, temperature=1)
    assert continued_model(tmp_path, tokenizer(THEIRS), rope_base=None, positions=16, temperature=1).config.n_positions == 32
