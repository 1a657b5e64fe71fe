"""Checkpoints between stages: a model and its tokenizer as a Hugging Face folder, written whole and checked before it is handed on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Trainer
from transformers.core_model_loading import revert_weight_conversion

from pipeline.errors import PriorlabError


def save_export(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Model and tokenizer as a HF folder, whatever the ZeRO stage. Every rank must call it; one writes."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.args.should_save:
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # DeepSpeed's copy unties it; the embedding is the one that counts
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def verify_export(folder: Path) -> None:
    """Raises `PriorlabError` unless config, weights and tokenizer belong together: names, shapes, tied weights, vocabulary."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # under ZeRO-3 from_config would partition, which all ranks must do together
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    written = revert_weight_conversion(model, model.state_dict())  # as files have it: experts one by one
    expected = {name: list(tensor.shape) for name, tensor in written.items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise PriorlabError(f"export {folder} does not match its config in {', '.join(wrong[:5])}")
    vocabulary = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if vocabulary > config.vocab_size:
        raise PriorlabError(f"export {folder}: the tokenizer has {vocabulary} tokens, the model {config.vocab_size}")
