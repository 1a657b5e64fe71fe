"""Every place where RL reaches below TRL's public surface.

Written for trl 1.16.0. `tests/unit/test_internals.py` fails when what is reached into changes.

| reached into | for | upstream |
|---|---|---|
| `GRPOTrainer._generate_and_score_completions`, extended | our advantages, tensors per response for the loss | no issue filed |
| `GRPOTrainer._get_train_sampler`, extended | a resumed run must draw the problems that it would have drawn | no issue filed |
| `GRPOTrainer._generate_single_turn`, called | samples from either engine, with the weights of the step | no issue filed |
| `GRPOTrainer._get_per_token_logps_and_entropies`, called | log-probs of validation's responses | no issue filed |
| `LLM` in `trl.generation.vllm_generation`, replaced while the engine is built | arguments of the engine | huggingface/trl#6776 |
| `vllm_generation.sync_weights`, replaced on CPU | see `stages.rl.vllm_internals` | vllm-project/vllm#48312 |
| `log_probs` in the output of the model's forward, read by a hook | exploration's loss | no issue filed |

Everything else goes through `rollout_func` and `env_mask`, which are public, though TRL calls them experimental. TRL has no dynamic
sampling of its own (huggingface/trl#3708).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import deepspeed
import torch
import trl.generation.vllm_generation as trl_vllm
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer
from trl.models import prepare_deepspeed
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import RepeatSampler, add_fused_lm_head, pad

from stages.device import has_gpu
from stages.rl.vllm_internals import reload_weights, without_shared_memory

Tokens = list[list[int]]


class OpenGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose engine takes arguments of ours, which samples when asked, and whose batches and losses can be added to."""

    def __init__(self, *, engine_arguments: dict[str, Any], **trainer: Any) -> None:
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # of rollout_func; users can do nothing about it
        if not has_gpu():
            without_shared_memory()
        # TRL fixes the rest: bf16 whatever the checkpoint, a cache sized for GPUs.
        with patch.object(trl_vllm, "LLM", functools.partial(trl_vllm.LLM, **engine_arguments)):
            super().__init__(**trainer)
        if self.use_vllm and not has_gpu():
            self.vllm_generation.sync_weights = self._push_weights
        self.model.register_forward_hook(self._keep_log_probs)

    def sample(self, prompts: list[str]) -> tuple[Tokens, Tokens, list[list[float] | None]]:
        """Token ids of the prompts and of one response to each, and the responses' log-probs (None where the engine tells none)."""
        prompt_ids = self.processing_class(text=prompts)["input_ids"]
        completion_ids, log_probs = self._generate_single_turn(prompt_ids, None, {}, self.num_generations)
        return prompt_ids, completion_ids, [None] * len(prompts) if log_probs is None else log_probs

    @torch.no_grad()
    def response_log_probs(self, model: torch.nn.Module, prompts: Tokens, responses: Tokens) -> Float[Tensor, " responses"]:
        """Of whole responses, in nats at the sampling temperature: sums over their tokens, by the code that scores rollouts.

        `model` is the one that is trained, or one from `frozen_copy`. Every rank must call it, with as many responses.
        """
        kinds = ((prompts, "left"), (responses, "right"))
        parts = [
            torch.cat([pad([torch.tensor(value(row)) for row in rows], filler, side) for rows, side in kinds], dim=1)
            for value, filler in ((list, self.processing_class.pad_token_id), (lambda row: [1] * len(row), 0))
        ]
        ids, mask = (part.to(self.accelerator.device) for part in parts)
        longest = max(map(len, responses))
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            log_probs, _, _ = self._get_per_token_logps_and_entropies(
                model, ids, mask, longest, batch_size=self.args.per_device_train_batch_size
            )
        return (log_probs.double() * mask[:, -longest:]).sum(dim=1)

    def frozen_copy(self, checkpoint: Path) -> torch.nn.Module:
        """A checkpoint's model for `response_log_probs`, in the dtype of training; in partitions under ZeRO-3, else whole per rank."""
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        add_fused_lm_head(model.requires_grad_(False), temperature=self.temperature)
        return prepare_deepspeed(model, self.accelerator)

    def limit_responses(self, tokens: int) -> None:
        """The longest response that `sample` makes from now on."""
        if self.use_vllm:
            self.vllm_generation.max_completion_length = tokens
        else:
            self.generation_config.max_new_tokens = tokens

    def complete(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Called with each batch of rollouts. Tensors added to it, a row per response, reach `compute_loss` with their responses."""
        return batch

    def take_log_probs(self) -> torch.Tensor:
        """Of the tokens of the last pass with gradient, responses x (prompt + response tokens); to be called once in `compute_loss`."""
        log_probs = self._log_probs
        del self._log_probs
        return log_probs

    def _keep_log_probs(self, _model: torch.nn.Module, _inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._log_probs: torch.Tensor = output.log_probs

    def _get_train_sampler(self, dataset: datasets.Dataset | None = None) -> Sampler[int]:
        # Each of a step's passes over micro-batches asks for all of its rollouts.
        of_a_step = self.args.generation_batch_size * self.args.gradient_accumulation_steps
        return _InAnyPass(super()._get_train_sampler(dataset), lambda: self.state.global_step * of_a_step)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.complete(super()._generate_and_score_completions(inputs))

    def _push_weights(self) -> None:
        """Load the trained weights into the engine and drop the prefix cache computed with the old ones. All ranks take part."""
        weights = []
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                weights.append((name, parameter.data))
        self.vllm_generation.llm.collective_rpc(reload_weights, args=(weights,))
        self.vllm_generation.llm.reset_prefix_cache()


class _InAnyPass(Sampler[int]):
    """TRL's sampler, also where this process makes its first pass over the problems but the run a later one.

    TRL draws an order for each pass, from a generator that starts with the process.
    """

    def __init__(self, sampler: RepeatSampler, drawn: Callable[[], int]) -> None:
        """`drawn`: how many indices the run has taken from the sampler so far."""
        self.sampler = sampler
        self.drawn = drawn

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.sampler.seed)
        for _ in range(self.drawn() // len(self)):
            torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)
