"""A checkpoint's model, ready to continue with longer blocks and a new RoPE base."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import PriorlabError
from stages.checkpoint import last_norm
from stages.corpus.tokenizer import PAD


def continued_model(
    checkpoint: Path, tokenizer: PreTrainedTokenizerBase, *, rope_base: float | None, positions: int, temperature: float
) -> PreTrainedModel:
    """The weights in float32, in a model with at least `positions` positions; its config, and so its export, has both changes.

    `temperature` is what the checkpoint's logits were divided by at its export: training goes on without.

    RoPE has no weights: rotations are computed from the config when the model is built, so it is changed first.

    Raises:
        PriorlabError: the text was not tokenized with the checkpoint's tokenizer, or its positions are weights and cannot be changed.
    """
    theirs, ours = (one.get_vocab().items() for one in (AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False), tokenizer))
    if any(token != PAD for token, _ in theirs ^ ours):  # which an adopted model may have no row for
        raise PriorlabError(f"the mid-training corpus does not use the tokenizer of {checkpoint}; build it with that one")
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    changed = rope_base is not None or positions > config.max_position_embeddings
    if changed and getattr(config, "rope_parameters", None) is None:
        raise PriorlabError(
            f"{checkpoint} learned its {config.max_position_embeddings} positions, so it takes no longer blocks and has no RoPE base; "
            "lower the corpus's block_size and leave midtrain.rope_base out"
        )
    if rope_base is not None:
        config.rope_parameters = config.rope_parameters | {"rope_theta": rope_base}
    config.max_position_embeddings = max(config.max_position_embeddings, positions)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    if temperature != 1:
        model.get_parameter(last_norm(model)).data *= temperature
    return model
