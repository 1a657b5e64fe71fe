"""Public bases: folders in the layouts they come in, made of the smoke sweep's weights, so that what comes out is known."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pipeline.errors import PriorlabError
from pipeline.store.files import manifest_of
from stages.checkpoint import verify_export
from stages.corpus.tokenizer import END, PAD, character_tokenizer
from tests.conftest import FinishedSweep, Lab


def renamed(tokenizer: PreTrainedTokenizerFast, name: str, **changes: Any) -> Tokenizer:
    """The same tokens, PAD under another name, and other parts of tokenizer.json replaced."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = {name if token == PAD else token: number for token, number in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["content"] = name if token["content"] == PAD else token["content"]
    return Tokenizer.from_str(json.dumps(content | changes))


def like_qwen(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """No start of text, padding with its end, embedding rows beyond the vocabulary, output layer tied to it; one file."""
    rows = len(tokenizer) + 12
    pad = tokenizer.pad_token_id
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.get_input_embeddings().weight.data[len(old) :] = old[pad]  # of no use to the model, as in its makers' training
    backend = renamed(tokenizer, "<|reserved|>", post_processor=None)
    model.config.bos_token_id = None
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END).save_pretrained(folder)


def like_llama(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A start of text of its own, no padding, a row for every token and none to spare, an output layer of its own, in many shards."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    embedding = model.get_input_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(embedding.clone())
    changed = embedding.clone()
    changed[pad] = embedding[end]  # its start of text does what the end did in front of prompts
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(changed, freeze=False))
    model.config.bos_token_id, model.config.pad_token_id = pad, None
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [pad], "tokens": ["<|begin|>"]}},
    }
    backend = renamed(tokenizer, "<|begin|>", post_processor=template)
    model.save_pretrained(folder, max_shard_size="100KB")
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token="<|begin|>")
    theirs.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    theirs.save_pretrained(folder)


END_ONLY = character_tokenizer("0123456789")

Layout = Callable[[PreTrainedModel, PreTrainedTokenizerFast, Path], None]


@pytest.mark.parametrize(("layout", "start", "pads_with"), [(like_qwen, END, PAD), (like_llama, "<|begin|>", END)])
def test_a_recipe_runs_on_a_public_base_with_its_own_tokenizer(
    smoke: FinishedSweep, lab: Lab, tmp_path: Path, layout: Layout, start: str, pads_with: str
) -> None:
    """RL and evaluation go on; greedy responses are those of the same weights trained here."""
    export = smoke.folder("pretrain").export
    base = tmp_path / "base"
    layout(AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export), base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    own = f"corpus.tokenizer={{kind: pretrained, folder: {base}}}"
    done = lab.call("adopt", str(base), "--as", "smoke", own, "prior.name=theirs")
    assert done.returncode == 0, done.stdout + done.stderr
    command = shlex.split(done.stdout.splitlines()[-1].removeprefix("continue with: "))
    ran = lab.call(*command[1:])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    plan = {
        entry["stage"].split("-s")[0]: entry for entry in json.loads(lab.call("plan", *command[2:], "axes.prior=[ce]", "--json").stdout)
    }
    adopted = Path(plan["pretrain/theirs"]["folder"]) / "export"
    tokenizer = AutoTokenizer.from_pretrained(adopted)
    assert tokenizer.convert_ids_to_tokens(tokenizer("1")["input_ids"]) == [start, "1"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == (pads_with, END)
    weights = {name: digest for name, digest in manifest_of(base).items() if name.endswith(("safetensors", "index.json"))}
    assert weights.items() <= manifest_of(adopted).items()
    for after in ("pretrain", "rl"):
        record = lab.home.find_stage(f"evaluate/theirs-s0-{after}").record()
        expected = smoke.folder(f"evaluate@{after}").record()
        assert record is not None
        assert expected is not None
        if after == "pretrain":
            for name in ("greedy/1", "greedy_length/1"):
                assert record["metrics"][name] == expected["metrics"][name]


@pytest.mark.parametrize(
    ("config", "mask"),
    [
        (GPT2Config(vocab_size=32, n_positions=64, n_embd=32, n_layer=2, n_head=1), "h.{}.attn.bias"),
        (
            GPTNeoXConfig(
                vocab_size=32,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=1,
                intermediate_size=64,
                max_position_embeddings=64,
            ),
            "gpt_neox.layers.{}.attention.bias",
        ),
    ],
    ids=["gpt2", "pythia"],
)
def test_old_layouts_hold_masks_and_may_lack_the_prefix_of_names(config: PreTrainedConfig, mask: str, tmp_path: Path) -> None:
    """As GPT-2 and Pythia are stored on the hub."""
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    END_ONLY.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    plain = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(plain | {mask.format(layer): torch.ones(1, 1, 64, 64) for layer in (0, 1)}, file, metadata={"format": "pt"})
    verify_export(tmp_path)
    save_file({name: tensor for name, tensor in plain.items() if not name.endswith("0.attn.c_attn.weight")}, file, {"format": "pt"})
    if isinstance(config, GPT2Config):
        with pytest.raises(PriorlabError, match=r"do not match its config\.json in transformer\.h\.0\.attn\.c_attn\.weight"):
            verify_export(tmp_path)


def test_a_base_named_on_the_hub_comes_from_its_cache(
    smoke: FinishedSweep, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    cache = tmp_path / "hf" / "hub" / "models--someone--small-base"
    shutil.copytree(smoke.folder("pretrain").export, cache / "snapshots" / ("ab" * 20))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("ab" * 20)
    lab.borrow(smoke.lab, smoke.node("corpus"))
    done = lab.call("adopt", "someone/small-base", "--as", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "adopted as pretrain/ce-s0-" in done.stdout
    absent = lab.call("adopt", "someone/else", "--as", "smoke")
    assert absent.returncode == 2
    assert "there is no folder someone/else, and the hub gives no model 'someone/else'" in " ".join(absent.stderr.split())
    assert "Traceback" not in absent.stderr
