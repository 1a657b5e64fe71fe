"""Policy gradients on groups of responses: TRL's GRPO trainer with our rollouts, advantages, checks and reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from datasets.utils.py_utils import temp_seed
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from pipeline.config.algorithm import PER_RESPONSE
from pipeline.config.rl import RLConfig
from pipeline.errors import PriorlabError
from stages.checkpoint import save_export
from stages.contract import Stage
from stages.rl.advantage import build_advantage
from stages.rl.exploration import Context, Tokens, build_exploration
from stages.rl.importance import describe
from stages.rl.rollouts import Rollouts, correct
from stages.rl.trl_internals import OpenGRPOTrainer
from stages.rl.validation import Measured, Response, best_step, forget_others, keep, record_solved
from stages.tasks import Problem
from stages.training.gradient_norms import GradientNorms
from stages.training.process import whole_models
from stages.training.step_checkpoints import StepCheckpoints

_OF_THE_STEP = ("loss", "grad_norm", "grad_norm_max", "clipped_steps", "learning_rate")

Validate = Callable[[Callable[[list[Problem]], list[Response]], slice, Callable[[list[Any]], list[Any]]], Measured]
"""`validation.validate` with its problems, settings and verifier given."""


class RLTrainer(OpenGRPOTrainer):
    """GRPOTrainer on our `Rollouts`: adds exploration's loss, stops on a rollout/trainer mismatch, validates, logs to the stage."""

    def __init__(
        self,
        *,
        stage: Stage,
        base: Path,
        settings: RLConfig,
        problems: list[Problem],
        reward: Callable[..., list[float]],
        validate: Validate | None,
        **trainer: Any,
    ) -> None:
        seed = trainer["args"].seed
        context = Context(base, settings.samples_per_prompt, seed, lambda name, value: self.report(f"exploration/{name}", value))
        with whole_models(trainer["args"].hf_deepspeed_config):
            self.exploration = build_exploration(settings.exploration, context)
        self.rollouts = Rollouts(settings, problems, reward, build_advantage(settings.advantage, seed), self.exploration)
        super().__init__(
            rollout_func=self.rollouts,
            reward_funcs=correct,
            train_dataset=datasets.Dataset.from_dict({"prompt": list(range(len(problems)))}),
            **trainer,
        )
        self.stage = stage
        self.settings = settings
        self.validate = validate
        self.base = base
        self._base_model: torch.nn.Module | None = None
        self.validations: list[dict[str, float]] = []
        """Rows of metrics.jsonl, one per measured step; a resumed stage fills in those of its past."""
        self._reports: dict[str, list[float]] = defaultdict(list)
        self._averages: dict[str, float] = {}
        self._compared: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Of each pass of the step so far: log-probs of the trainer minus the engine's, and which tokens count."""
        # The engine's start has reseeded the global generators with its number, which would make all seeds equal. Processes that hold
        # an engine together each draw every token of it, and so from generators that are alike, now and after each resume.
        set_seed(engine_seed(seed, self.engine_number))
        self.remove_callback(PrinterCallback)
        self.gradient_norms = GradientNorms(self)
        self.add_callback(self.gradient_norms)
        self.add_callback(StepCheckpoints(stage, settings.launch, every=settings.updates_per_rollout))
        if validate is not None:
            self.add_callback(_Validation(self))

    def continue_from(self, rows: list[dict[str, float]]) -> None:
        """Take over the counts and validations of `rows`, which the steps before this process have logged."""
        if rows:
            self.rollouts.generated, self.rollouts.used = (int(rows[-1][name]) for name in ("rollouts_generated", "rollouts_used"))
        self.validations = [row for row in rows if "loss" not in row]
        if self.validate is not None and self.stage.rank == 0:
            forget_others(self.stage.folder.checkpoints, rows, self.best_k)

    @property
    def engine_number(self) -> int:
        """Of the engine that this process samples with, or is a part of."""
        return int(self.accelerator.process_index) // self.settings.processes_per_engine

    def complete(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Check a batch of rollouts. Adds our advantages, which responses are correct, and the weight that turns a mean over all
        responses into one over those that count.

        Raises `PriorlabError` if the engine's log-probs are not the trainer's.
        """
        if "sampling_per_token_logps" in batch and "old_per_token_logps" in batch:
            self._compare(batch["old_per_token_logps"] - batch["sampling_per_token_logps"], _counted(batch).bool())
        draw = self.rollouts.draw
        responses, counted = self.sum_over_ranks([len(draw.groups), sum(draw.counted)])
        is_correct = torch.cat([group.correct for group in draw.groups]).to(self.accelerator.device)
        weight = torch.full(is_correct.shape, responses / counted, device=is_correct.device)
        added = {"correct": is_correct, "response_weight": weight}
        if self.rollouts.advantages is not None:
            added["advantages"] = self.rollouts.advantages.to(batch["advantages"])
        return batch | added

    def _compare(self, log_ratios: torch.Tensor, counted: torch.Tensor) -> None:
        """Report how far the engine is from the trainer, whose log-probs minus the engine's are given (responses x tokens).

        Raises `PriorlabError` if that is further than rounding explains.
        """
        log_ratios = log_ratios.nan_to_num()  # vLLM has no log-prob for some token
        difference = log_ratios.abs() * counted
        largest = max(gather_object([difference.max().item()]))
        total, tokens = self.sum_over_ranks([difference.sum().item(), int(counted.sum())])
        self._check_mismatch(total / max(1, tokens), largest)
        found = describe(
            log_ratios, counted, self.settings.correction, self.settings.importance.cap,
            sum_over_ranks=self.sum_over_ranks, gather=gather_object,
        )  # fmt: skip
        for name, value in found.items():
            self.report(f"importance/{name}", value)
        if self.settings.correction == "none":  # else TRL does
            self.report("sampling/sampling_logp_difference/mean", total / max(1, tokens))
            self.report("sampling/sampling_logp_difference/max", largest)

    def _check_mismatch(self, mean: float, largest: float) -> None:
        allowed = self.settings.allowed_mismatch(on_gpu=self.accelerator.device.type == "cuda")
        times = self.settings.largest_mismatch
        if not (mean <= allowed and largest <= times * allowed):
            raise PriorlabError(
                f"rollout engine and trainer disagree at step {self.state.global_step}: the log-probs of sampled tokens differ by "
                f"{mean:.2g} on average and {largest:.2g} at most; allowed are rl.max_logprob_mismatch = {allowed:.2g} and "
                f"{times:g} times that. In float32 on a CPU, the engine does not have the weights being trained. "
                "On a GPU or in bfloat16, check sampling/sampling_logp_difference/mean at earlier steps: if it was near the bound "
                "all along, raise the bound; if it has jumped, the engine has wrong weights"
            )

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *positional: Any, **named: Any) -> torch.Tensor:
        """TRL's loss, and what exploration adds to it; TRL leaves dividing by the number of accumulated passes to us."""
        loss = super().compute_loss(model, inputs, *positional, **named)
        if self.settings.loss in PER_RESPONSE:
            loss = loss * inputs["response_weight"].mean()
        counted = _counted(inputs)
        log_probs = self.take_log_probs()[:, -counted.shape[1] :]
        old = inputs.get("old_per_token_logps")  # not there where the policy that sampled is the one that is trained
        if old is None and "sampling_per_token_logps" in inputs:
            self._compared.append((log_probs.detach() - inputs["sampling_per_token_logps"], counted.bool()))
            if self.accelerator.sync_gradients:  # the last pass before the update
                log_ratios, compared = (torch.cat(parts) for parts in zip(*self._compared, strict=True))
                self._compared.clear()
                self._compare(log_ratios, compared)
        tokens = Tokens(log_probs, log_probs.detach() if old is None else old, counted.to(log_probs.dtype), inputs["correct"])
        terms = self.exploration.loss(tokens)
        if terms is None:
            return loss
        term = (terms * inputs["response_weight"] * counted.any(dim=1)).mean()
        self.report("exploration/loss", term.item())
        return loss + term / self.current_gradient_accumulation_steps

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the policy as it is on the validation problems, log it, and keep its weights if they are the best so far.

        Trainer calls it where `_Validation` asks for it. Its random draws leave those of training as they were.
        """
        step = self.state.global_step
        if self.validate is None or any(row["step"] == step for row in self.validations):
            return {}
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        draw_from = int(np.random.SeedSequence([self.args.seed, step, self.engine_number]).generate_state(1)[0])
        with temp_seed(draw_from, set_pytorch=True):  # numpy's too: vLLM seeds its samples from there on GPUs
            measured = self.validate(self._respond, slice(rank, None, ranks), gather_object)
        self.validations.append({"step": step, **measured.row})
        if self.stage.rank == 0:
            record_solved(self.stage.folder.validation, step, measured.solved)  # before its row, which says that it is measured
        self.stage.log(step, **measured.row, **self._counts())
        if best_step(self.validations, self.best_k) == step:
            self.stage.guard.check()
            keep(
                self.stage.folder.checkpoints,
                step,
                lambda folder: save_export(self, self.processing_class, folder),
                main=self.stage.rank == 0,
            )
        return measured.row

    @property
    def best_k(self) -> int:
        """The k whose pass@k tells which policy is the best; there is one where there is validation."""
        assert self.settings.validation is not None
        return self.settings.validation.best_k

    def _respond(self, problems: list[Problem]) -> list[Response]:
        prompts, responses, _ = self.sample([problem.prompt for problem in problems])
        texts = self.processing_class.batch_decode(responses, skip_special_tokens=True)
        ratios = self._log_ratios(prompts, responses)
        return [
            Response(text, len(ids), ids[-1] in self.eos_token_ids, ratio)
            for text, ids, ratio in zip(texts, responses, ratios, strict=True)
        ]

    def _log_ratios(self, prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
        """log pi(response) - log pi_base(response), in nats; the base is loaded at the first call and kept."""
        if self._base_model is None:
            self._base_model = self.frozen_copy(self.base)
        # Under ZeRO-3 a forward pass gathers partitions, so every rank makes as many: those with fewer responses repeat their last.
        rows = [min(row, len(responses) - 1) for row in range(max(gather_object([len(responses)])))]
        ours, theirs = (
            self.response_log_probs(model, [prompts[row] for row in rows], [responses[row] for row in rows])
            for model in (self.model, self._base_model)
        )
        return (ours - theirs)[: len(responses)].tolist()

    def sum_over_ranks(self, numbers: list[float]) -> list[float]:
        """Each number's sum over all processes, in float64. Every rank must call it."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, reduction="sum").tolist()

    def report(self, name: str, value: float) -> None:
        """Add a value to a metric of the next row, which holds the mean over values and ranks. Every rank must report as often."""
        self._reports[name].append(value)

    def take_reports(self) -> dict[str, float]:
        """The mean of each metric over what was reported since the last call. Every rank must call it."""
        names = sorted(self._reports)
        means = [sum(self._reports[name]) / len(self._reports[name]) for name in names]
        self._reports.clear()
        ranks = self.accelerator.num_processes
        return {name: total / ranks for name, total in zip(names, self.sum_over_ranks(means), strict=True)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.gradient_norms.take()
        super().log(logs, start_time)  # which adds TRL's averages to `logs`; None where no token counted
        if "loss" not in logs:
            return
        # An update on rollouts that an earlier one has seen already keeps what is known of them.
        averages = {name: value for name, value in logs.items() if name not in (*_OF_THE_STEP, "epoch") and value is not None}
        self._averages |= averages | self.take_reports()
        step = self.state.global_step
        row = {name: logs[name] for name in _OF_THE_STEP if name in logs} | self._averages | self._counts()
        self.stage.log(step, **row)
        self.stage.progress(
            step, self.state.max_steps, "steps",
            reward=row["reward_raw"], entropy=row["entropy"], length=row["completions/mean_length"],
        )  # fmt: skip

    def _counts(self) -> dict[str, int]:
        return {"rollouts_generated": self.rollouts.generated, "rollouts_used": self.rollouts.used}

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No README beside each step checkpoint: the stage's spec and record describe the model."""


def engine_seed(seed: int, engine: int) -> int:
    """What an engine draws with: the run's seed, and for further engines numbers that no other seed's engines draw with."""
    return seed if engine == 0 else int(np.random.SeedSequence([seed, engine]).generate_state(1)[0])


def _counted(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """1 for a token that the loss counts, 0 for padding, cut-off responses that are masked, and fillers."""
    return batch["completion_mask"] * batch["tool_mask"]


class _Validation(TrainerCallback):
    """Asks Trainer to evaluate, and drops policies that are no longer the best once a step checkpoint is complete."""

    def __init__(self, trainer: RLTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        settings = self.trainer.settings.validation
        assert settings is not None
        if state.global_step % settings.every == 0 or state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.is_world_process_zero:
            forget_others(Path(args.output_dir), self.trainer.validations, self.trainer.best_k)
