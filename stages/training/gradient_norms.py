"""The norm of each optimizer step's gradient, and how often clipping acts; the same at every ZeRO stage."""

from __future__ import annotations

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from stages.training.deepspeed_internals import keep_norm_of_stage_0


class GradientNorms(TrainerCallback):
    """Add it to the trainer given, and put what `take` returns into each logged row."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._norms: list[float] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        keep_norm_of_stage_0(self.trainer.model_wrapped)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._norms.append(float(self.trainer.model_wrapped.get_global_grad_norm()))

    def take(self) -> dict[str, float]:
        """Over the steps since the last call: the largest norm before clipping, and the share of steps that were clipped."""
        norms, self._norms = self._norms, []
        clip = self.trainer.args.max_grad_norm
        return {"grad_norm_max": max(norms), "clipped_steps": sum(norm > clip for norm in norms) / len(norms)}
