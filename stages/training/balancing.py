"""Balancing experts without an auxiliary loss: a bias per expert, nudged against its load after each step.

The bias is added to a router's scores when experts are chosen, but does not weight their outputs: the only gradient is the
objective's (Wang et al., "Auxiliary-Loss-Free Load Balancing", arXiv 2408.15664, algorithm 1):

    bias_e <- bias_e + rate * sign(mean load - load_e),    load_e = tokens of the whole step that chose expert e

over all processes and accumulated micro-batches. The bias is a buffer of the model, so exports have it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

_BIAS = "e_score_correction_bias"
_BIAS_FILE = "router_bias.safetensors"


def routers_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The router of each layer with experts, by the name of its bias."""
    names = [name for name, _ in model.named_buffers() if name.endswith(f".{_BIAS}")]
    return {name: model.get_submodule(name.removesuffix(f".{_BIAS}")) for name in names}


class ExpertBalance(TrainerCallback):
    """Counts each expert's tokens, and moves the biases by `rate` after each optimizer step.

    Step checkpoints hold the biases in a separate file, which fits any ZeRO stage and number of processes. Add this callback before
    the one that marks checkpoints as complete.
    """

    def __init__(self, model: PreTrainedModel, rate: float, resume_from: Path | None) -> None:
        self.routers = routers_of(model)
        self.rate = rate
        self._saved = {} if resume_from is None else load_file(resume_from / _BIAS_FILE)
        experts = next(iter(self.biases().values())).numel()
        self._load = torch.zeros(len(self.routers), experts, dtype=torch.int64)
        self._violations = torch.zeros(2, dtype=torch.float64)  # summed over steps, as `take_statistics` names them
        self._steps = 0
        for layer, router in enumerate(self.routers.values()):
            router.register_forward_hook(partial(self._count, layer))

    def biases(self) -> dict[str, Tensor]:
        """In float32, as DeepSpeed leaves buffers that transformers says need it. Looked up each time: a move replaces the tensors."""
        return {name: router.get_buffer(_BIAS) for name, router in self.routers.items()}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        for name, saved in self._saved.items():
            setattr(self.routers[name], _BIAS, saved.to(self.biases()[name].device))

    def _count(
        self, layer: int, router: nn.Module, _: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Int[Tensor, "tokens active"]]
    ) -> None:
        """A router's output ends with its choice. What activation checkpointing recomputes counts twice, which changes no ratio."""
        if router.training:
            chosen = output[-1].flatten()
            if self._load.device != chosen.device:
                self._load, self._violations = self._load.to(chosen.device), self._violations.to(chosen.device)
            self._load[layer].index_add_(0, chosen, torch.ones_like(chosen))

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if args.world_size > 1:
            torch.distributed.all_reduce(self._load)
        load = self._load.double()
        mean = load.mean(dim=1, keepdim=True)
        for bias, error in zip(self.biases().values(), mean - load, strict=True):
            bias += self.rate * error.sign().to(bias.dtype)
        self._violations += torch.stack([(load.amax(dim=1) / mean.squeeze(1) - 1).mean(), (load == 0).double().mean()])
        self._steps += 1
        self._load.zero_()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.is_world_process_zero:
            save_file(self.biases(), Path(args.output_dir) / f"checkpoint-{state.global_step}" / _BIAS_FILE)

    def take_statistics(self) -> dict[str, float]:
        """Means over layers and over the steps since the last call.

        `expert_violation`: by what share of the mean load the busiest expert exceeds it; `experts_idle`: share of experts that no
        token chose.
        """
        violation, idle = (self._violations / self._steps).tolist()
        self._violations.zero_()
        self._steps = 0
        return {"expert_violation": violation, "experts_idle": idle}
