"""A checkpoint's model, ready to go on with longer blocks and another RoPE base."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import PriorlabError


def continued_model(
    checkpoint: Path, tokenizer: PreTrainedTokenizerBase, *, rope_base: float | None, positions: int
) -> PreTrainedModel:
    """The weights in float32, in a model with room for `positions` tokens at least; its config, and so its export, has both changes.

    RoPE has no weights: rotations are computed from the config when the model is built, so that is changed before.

    Raises:
        PriorlabError: the text was cut by another tokenizer than the checkpoint's.
    """
    if AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False).get_vocab() != tokenizer.get_vocab():
        raise PriorlabError(f"the mid-training corpus was cut by another tokenizer than {checkpoint} has; build it from the same one")
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if rope_base is not None:
        config.rope_parameters = config.rope_parameters | {"rope_theta": rope_base}
    config.max_position_embeddings = max(config.max_position_embeddings, positions)
    return AutoModelForCausalLM.from_pretrained(
        checkpoint, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
