"""`LossHead`: an output layer that, given labels, returns the loss instead of logits.

The loss sits inside the head so that logits never leave it, and so that DeepSpeed, checkpointing and weight tying see an ordinary
linear layer. `attach` puts one on a causal language model of transformers.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn

from stages.objective.fused import fused_loss_and_statistics
from stages.objective.protocol import Objective
from stages.objective.row_step import STATISTICS

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast


class LossHead(nn.Linear):
    """A bias-free output layer with an objective.

    In training it also sums the statistics of `fused` over the tokens it saw, until `take_statistics` reads them, and these tokens'
    count and weight until `take_weight` does. Loss and gradient are divided by `mean_weight` too.
    """

    def __init__(
        self,
        width: int,
        vocab: int,
        objective: Objective,
        head_k: int,
        ignore_index: int = -100,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(width, vocab, bias=False, device=device)
        self.objective = objective
        self.head_k = head_k
        self.ignore_index = ignore_index
        self.mean_weight = 1.0
        self._sums: Tensor | None = None
        self._weight: Tensor | None = None

    def forward(
        self, hidden: Float[Tensor, "batch time width"], labels: Int[Tensor, "batch time"] | None = None, divisor: Tensor | int = 1
    ) -> Tensor:
        """Logits without labels; with labels (already shifted to the next token) the summed loss in nats over `divisor`."""
        if labels is None:
            return super().forward(hidden)
        total, sums = fused_loss_and_statistics(
            hidden.flatten(0, 1),
            self.weight,
            labels.flatten(),
            self.objective,
            head_k=self.head_k,
            divisor=divisor * self.mean_weight if self.mean_weight != 1 else divisor,
            ignore_index=self.ignore_index,
        )
        if self.training:
            self._sums = sums if self._sums is None else self._sums + sums
            weight = sums[:: len(STATISTICS)].clone()  # the count, and the last of the statistics; processes add these up in place
            self._weight = weight if self._weight is None else self._weight + weight
        return total

    def take_statistics(self) -> Float[Tensor, " statistics"] | None:
        """Token count followed by the sums of `STATISTICS` since the last call; None if no token was seen."""
        sums, self._sums = self._sums, None
        return sums

    def take_weight(self) -> Float[Tensor, " 2"]:
        """Tokens since the last call, and the sum of their weights; training must have seen one."""
        assert self._weight is not None
        weight, self._weight = self._weight, None
        return weight


def attach(model: PreTrainedModel, objective: Objective, head_k: int) -> LossHead:
    """Replace the model's output layer; its forward then computes the objective's loss from `labels`.

    The weight stays the same parameter (tied or not), and the model saves under its own class name. Raises `ValueError` if the
    model's logits are more than `hidden @ weight.T`, as with an output bias, or with logits that are scaled or capped.
    """
    old = model.get_output_embeddings()
    _check_logits(model, old)
    head = LossHead(old.in_features, old.out_features, objective, head_k, device="meta")  # its own weight is not wanted
    head.weight = old.weight
    head.train(model.training)
    model.set_output_embeddings(head)
    model.forward = types.MethodType(_forward, model)
    return head


def _check_logits(model: PreTrainedModel, output: nn.Linear) -> None:
    """Hidden states and logits of our own, in place of what decoder and output layer would compute, must pass through unchanged."""
    hidden = torch.ones(1, 1, output.in_features)
    logits = torch.linspace(-1e3, 1e3, output.out_features).expand(1, 1, -1)  # so large that capping shows
    decoded = mock.MagicMock(last_hidden_state=hidden)  # has whatever else a model's forward passes on
    decoded.__getitem__.return_value = hidden
    with (
        mock.patch.object(model.get_decoder(), "forward", return_value=decoded),
        mock.patch.object(output, "forward", return_value=logits) as layer,
    ):
        found = model(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
    if output.bias is not None or not torch.equal(layer.call_args.args[0], hidden) or not torch.equal(found, logits):
        raise ValueError(
            f"the logits of {type(model).__name__} are not its last hidden states times the output layer's weight, which is all that "
            "the loss computes; a model with an output bias, or with scaled or capped logits, cannot be trained with it"
        )


def _forward(
    self: PreTrainedModel,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    num_items_in_batch: Tensor | int | None = None,
    **inputs: Any,
) -> CausalLMOutputWithPast:
    """Loss per counted token; `num_items_in_batch` (tokens of the whole step) keeps uneven accumulation exact."""
    from transformers.modeling_outputs import CausalLMOutputWithPast  # at hand, as the model is one of transformers

    hidden = self.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
    head = self.get_output_embeddings()
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=head.ignore_index)
    count = (shifted != head.ignore_index).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutputWithPast(loss=head(hidden, shifted, divisor=count))
