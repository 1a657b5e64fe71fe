"""The examples of docs/using-the-loss.md run as shown, train a model, and leave a plain checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

PAGE = Path(__file__).parents[2] / "docs" / "using-the-loss.md"
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples assume: a checkpoint and data."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=len(vocabulary), head_dim=8, max_position_embeddings=32, pad_token_id=0, eos_token_id=1, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    texts = datasets.Dataset.from_dict({"text": [" ".join(WORDS[start:]) for start in (0, 3, 5)] * 8})
    tokenized = texts.map(lambda row: {"input_ids": tokenizer(row["text"])["input_ids"]}, remove_columns="text")
    batches = [torch.tensor(tokenized[0]["input_ids"]).repeat(4, 1)] * 3
    return {"checkpoint": str(folder), "texts": texts, "tokenized": tokenized, "batches": batches}


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_trains_and_saves_an_ordinary_model(
    title: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code = EXAMPLES[title]
    assert len(code.splitlines()) < 20
    space = dict(given)
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), space)
    trained = space["model"] if "trainer" not in space else space["trainer"].model
    if "trainer" in space:  # the loss is the head's, and saw every token
        statistics = trained.get_output_embeddings().take_statistics()
        assert statistics[0] > 0
    saved = tmp_path / "saved"
    trained.save_pretrained(saved)
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (given["checkpoint"], saved))
    assert type(after) is type(before)
    moved = [not torch.equal(old, new) for old, new in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(moved)
    assert all(bool(parameter.isfinite().all()) for parameter in after.parameters())


def test_all_three_ways_are_shown() -> None:
    assert list(EXAMPLES) == ["A plain PyTorch loop", "transformers' Trainer", "TRL's SFTTrainer"]
