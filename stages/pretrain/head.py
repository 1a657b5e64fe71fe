"""`ShapedHead`: an output layer that, given labels, returns the loss instead of logits.

The loss sits inside the head so that logits never leave it, and so that DeepSpeed, checkpointing and weight tying see an ordinary
linear layer. `attach` puts one on any causal language model of transformers.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from pipeline.config import Prior
from stages.pretrain.objective import distribution_statistics, shaped_loss

STATISTICS = ("cross_entropy", "entropy", "head_mass", "tail_mass")


class ShapedHead(nn.Linear):
    """A bias-free output layer with the shaped objective.

    In training it also sums `STATISTICS` over the tokens it saw, until `take_statistics` reads them.
    """

    def __init__(self, width: int, vocab: int, prior: Prior, head_k: int, ignore_index: int = -100) -> None:
        super().__init__(width, vocab, bias=False)
        self.prior = prior
        self.head_k = head_k
        self.ignore_index = ignore_index
        self._sums: Tensor | None = None

    def forward(self, hidden: Float[Tensor, "batch time width"], labels: Int[Tensor, "batch time"] | None = None) -> Tensor:
        """Logits without labels; with labels (already shifted to the next token) the summed loss in nats."""
        logits = super().forward(hidden)
        if labels is None:
            return logits
        if self.training:
            self._observe(logits, labels)
        return shaped_loss(logits, labels, self.prior, ignore_index=self.ignore_index, reduction="sum")

    def _observe(self, logits: Tensor, labels: Tensor) -> None:
        counted = labels != self.ignore_index
        statistics = distribution_statistics(logits[counted], labels[counted], self.head_k)
        sums = torch.stack([counted.sum().float(), *(statistics[name].sum() for name in STATISTICS)])
        self._sums = sums if self._sums is None else self._sums + sums

    def take_statistics(self) -> Float[Tensor, " statistics"] | None:
        """Token count followed by the sums of `STATISTICS` since the last call; None if no token was seen."""
        sums, self._sums = self._sums, None
        return sums


def attach(model: PreTrainedModel, prior: Prior, head_k: int) -> ShapedHead:
    """Replace the model's output layer; its forward then computes the shaped loss from `labels`.

    The weight stays the same parameter (tied or not), and the model saves under its own class name.
    """
    old = model.get_output_embeddings()
    head = ShapedHead(old.in_features, old.out_features, prior, head_k)
    head.weight = old.weight
    model.set_output_embeddings(head)
    model.forward = types.MethodType(_forward, model)
    return head


def _forward(
    self: PreTrainedModel,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    num_items_in_batch: Tensor | int | None = None,
    **inputs: Any,
) -> CausalLMOutputWithPast:
    """Loss per counted token; `num_items_in_batch` (tokens of the whole step) keeps uneven accumulation exact."""
    hidden = self.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
    head = self.get_output_embeddings()
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=head.ignore_index)
    total = head(hidden, shifted)
    count = (shifted != head.ignore_index).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutputWithPast(loss=total / count)
