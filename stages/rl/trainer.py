"""GRPO as the paper runs it: on-policy, no KL term, clip-higher; TRL's trainer with our engine, checks and reports."""

from __future__ import annotations

from typing import Any

from accelerate.utils import set_seed
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from pipeline.config import Launch
from pipeline.errors import PriorlabError
from stages.checkpoint import MarkComplete
from stages.contract import Stage
from stages.rl.rollout import rollouts_by

_MISMATCH = "sampling/sampling_logp_difference/max"


class RLTrainer(GRPOTrainer):
    """GRPOTrainer that samples with `RolloutEngine`, stops on a rollout/trainer mismatch, and logs to the stage."""

    def __init__(self, *, stage: Stage, engine_arguments: dict[str, Any], max_mismatch: float, launch: Launch, **trainer: Any) -> None:
        with rollouts_by(engine_arguments):
            super().__init__(**trainer)
        # The engine's start has reseeded the global generators with the process index, which would make all seeds equal.
        set_seed(self.args.seed, device_specific=True)
        self.stage = stage
        self.max_mismatch = max_mismatch
        self.remove_callback(PrinterCallback)
        self.add_callback(MarkComplete(launch))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        mismatch = self._metrics["train"][_MISMATCH][-1]
        if not mismatch <= self.max_mismatch:
            raise PriorlabError(
                f"rollout engine and trainer disagree at step {self.state.global_step}: a sampled token's log-prob differs by "
                f"{mismatch:.2g}, allowed is rl.max_logprob_mismatch = {self.max_mismatch:.2g}. In bfloat16 differences of "
                "0.1 are normal (raise the bound); in float32 the engine samples from other weights than are trained"
            )
        return batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        averages = {name: sum(values) / len(values) for name, values in self._metrics["train"].items() if values}
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        step = self.state.global_step
        # At ZeRO stage 0 DeepSpeed clips without telling the norm.
        row = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs} | averages
        self.stage.log(step, **row)
        self.stage.progress(
            step, self.state.max_steps, "steps",
            reward=row["reward"], entropy=row["entropy"], length=row["completions/mean_length"],
        )  # fmt: skip

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No README beside each step checkpoint: the stage's spec and record describe the model."""
