"""Checkpoints passed between stages: model and tokenizer as a Hugging Face folder, written whole and checked before use."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.core_model_loading import revert_weight_conversion

from pipeline.errors import DivergedError, PriorlabError

_HEAD = "lm_head.weight"
_COMPUTED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Ends of names of rotary tables and causal masks."""
_SCALED_BY_LAST_NORM = ("qwen3", "glm4_moe")


def save_export(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, temperature: float = 1.0) -> None:
    """Save model and tokenizer as a HF folder, at any ZeRO stage. Every rank must call it; one writes.

    What is saved has its logits divided by `temperature`; the model that is trained stays as it is.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.args.should_save:
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if model.config.tie_word_embeddings:
        state.pop(_HEAD, None)  # DeepSpeed's copy unties it; the embedding is the one that counts
    if temperature != 1:
        state[last_norm(model)] = state[last_norm(model)] / temperature
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def export_finished(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, folder: Path, temperature: float = 1.0) -> None:
    """Export from the last step's checkpoint, with logits over `temperature`: a run killed between it and its record has nothing left
    to train.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", use_safetensors=True, trust_remote_code=False)
    if temperature != 1:
        model.get_parameter(last_norm(model)).data /= temperature
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def last_norm(model: PreTrainedModel) -> str:
    """The name of the weight that scales all logits, whether or not the output layer is tied: that of the RMS norm before it.

    Raises `PriorlabError` for a kind of model where it is not known to.
    """
    if model.config.model_type not in _SCALED_BY_LAST_NORM:
        raise PriorlabError(
            f"the prior's temperature is known to work for models of type {' and '.join(_SCALED_BY_LAST_NORM)}; this one is "
            f"{model.config.model_type!r}: leave the temperature out, or sample at it with evaluate.temperatures and rl.temperature"
        )
    return f"{model.base_model_prefix}.norm.weight"


def verify_export(folder: Path) -> None:
    """Checks that config, weights and tokenizer match: names, shapes, tied weights, vocabulary.

    Raises:
        DivergedError: a weight is NaN or infinite.
        PriorlabError: anything else that loading would refuse, or read in two ways.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # under ZeRO-3 from_config would partition the model, which takes every rank
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    written = revert_weight_conversion(model, model.state_dict())  # the files' layout: experts one by one
    expected = {name: list(tensor.shape) for name, tensor in written.items()}
    if config.tie_word_embeddings:
        expected.pop(_HEAD, None)
    found = _shapes(folder, expected.keys(), model.base_model_prefix)
    if config.tie_word_embeddings and _HEAD in found:  # as many tied checkpoints store it
        _check_tied(folder, next(name for name, one in model.named_parameters() if one is model.get_input_embeddings().weight))
        del found[_HEAD]
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise PriorlabError(f"the weights of {folder} do not match its config.json in {', '.join(wrong[:5])}")
    broken = next((name for name, tensor in _tensors(folder) if not tensor.isfinite().all()), None)
    if broken is not None:
        raise DivergedError(
            f"{broken} of {folder} has values that are not finite (NaN or infinite): training has diverged. Take an earlier "
            "checkpoint; or lower the learning rate, or inspect the data"
        )
    vocabulary = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if vocabulary > config.vocab_size:
        raise PriorlabError(f"{folder}: the tokenizer has {vocabulary} tokens, the model {config.vocab_size}")


def _shapes(folder: Path, expected: Collection[str], prefix: str) -> dict[str, list[int]]:
    """Of each tensor that loading reads, under the name it is expected by: old checkpoints leave out the `prefix` of all but the head,
    and also store what loading computes.
    """
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                read_as = f"{prefix}.{name}" if f"{prefix}.{name}" in expected else name
                if read_as in found:
                    raise PriorlabError(
                        f"{folder} has {name} in two .safetensors files, and libraries differ in which they load; keep one"
                    )
                if read_as in expected or not name.endswith(_COMPUTED):
                    found[read_as] = list(tensors.get_slice(name).get_shape())
    return found


def _tensors(folder: Path, *names: str) -> Iterator[tuple[str, torch.Tensor]]:
    """One at a time: all of them, or those named."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            yield from ((name, tensors.get_tensor(name)) for name in tensors.keys() if not names or name in names)  # noqa: SIM118


def _check_tied(folder: Path, embedding: str) -> None:
    """Loaders use one or the other, so the two must be equal."""
    stored = dict(_tensors(folder, _HEAD, embedding))
    if embedding in stored and not torch.equal(stored[_HEAD], stored[embedding]):
        raise PriorlabError(
            f"{folder} ties its output layer to its embedding (tie_word_embeddings in config.json), but its {_HEAD} differs from "
            f"{embedding}; remove that tensor, or set tie_word_embeddings to false, whichever the model was trained with"
        )
