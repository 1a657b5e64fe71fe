"""The examples of docs/using-the-loss.md run as shown, train a model, and leave a plain checkpoint."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "using-the-loss.md"
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
ALONE = "PyTorch alone"
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


@pytest.mark.parametrize("title", [title for title in EXAMPLES if title != ALONE])
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


def test_all_four_ways_are_shown() -> None:
    assert list(EXAMPLES) == [ALONE, "A model of transformers in a plain loop", "transformers' Trainer", "TRL's SFTTrainer"]


# Finds no module that is neither Python's own, nor this code's, nor of torch, numpy and what these two require themselves.
_ONLY_TORCH_AND_NUMPY = """
import re, sys
from importlib import metadata

def required(name, found):
    if name in found:
        return
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # for other systems
        return
    found.add(name)
    for line in lines:
        if "extra ==" not in line:
            required(re.match(r"[\\w.-]+", line)[0].lower().replace("_", "-"), found)

distributions = set()
required("torch", distributions)
required("numpy", distributions)
owners = metadata.packages_distributions()
allowed = {module for module, names in owners.items() if distributions & {name.lower().replace("_", "-") for name in names}}
allowed |= set(sys.stdlib_module_names) | {"stages"}

class Only:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *place):
        own = name.partition(".")[0] in allowed or name.startswith("_sysconfigdata")  # Python's own, named by the platform
        return self.finder.find_spec(name, *place) if own else None

    def __getattr__(self, name):
        return getattr(self.finder, name)

for name in [name for name in sys.modules if name.partition(".")[0] not in allowed | {"__main__", "__mp_main__"}]:
    del sys.modules[name]  # what .pth files of an environment import at its start
sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
"""


def run_with_only_torch_and_numpy(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _ONLY_TORCH_AND_NUMPY + code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_first_example_needs_torch_and_numpy_only() -> None:
    trained = "\nassert 0 < loss.item() < float('inf')\nprint('trained', *sorted(sys.modules))"
    done = run_with_only_torch_and_numpy(EXAMPLES[ALONE] + trained)
    assert done.returncode == 0, done.stderr[-3000:]
    word, *loaded = done.stdout.split()
    assert word == "trained"
    assert not {"pipeline", "pydantic", "jaxtyping", "transformers", "yaml"} & {name.partition(".")[0] for name in loaded}


@pytest.mark.parametrize("name", ["reference", "fused", "row_step", "head", "family"])
def test_a_module_of_the_loss_needs_torch_and_numpy_only(name: str) -> None:
    done = run_with_only_torch_and_numpy(f"import stages.objective.{name}")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["pydantic", "jaxtyping", "transformers", "pipeline.config.prior"])
def test_what_the_loss_does_not_need_is_really_hidden(name: str) -> None:
    done = run_with_only_torch_and_numpy(f"import {name}")
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named" in done.stderr
