"""GRPO as the paper runs it: no KL term, clip-higher, dynamic sampling; TRL's trainer with our engine, checks and reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments
from trl import GRPOTrainer

from pipeline.config.training import RLConfig
from pipeline.errors import PriorlabError
from pipeline.store.files import write_json_atomically
from stages.checkpoint import save_export
from stages.contract import Stage
from stages.rl.dynamic_sampling import Draw, Group, Row, draw_groups
from stages.rl.exploration import Context, Tokens, build_exploration
from stages.rl.preflight import preflight
from stages.rl.rollout import rollouts_by
from stages.rl.validation import Response, best_step, forget_others, keep
from stages.tasks import Problem
from stages.training.step_checkpoints import StepCheckpoints

PREFLIGHT_FILE = "preflight.json"
_MISMATCH = "sampling/sampling_logp_difference/max"


Validate = Callable[[Callable[[list[Problem]], list[Response]], slice, Callable[[list[Any]], list[Any]]], dict[str, float]]
"""`validation.validate` with its problems, settings and verifier given."""


class RLTrainer(GRPOTrainer):
    """GRPOTrainer that samples with `RolloutEngine`, stops on a rollout/trainer mismatch, validates, and logs to the stage.

    TRL 1.16 has no hook for dynamic sampling: groups are drawn before its `_generate_and_score_completions`, which then finds them
    where it would generate and score (`_drawn`).
    """

    def __init__(
        self,
        *,
        stage: Stage,
        base: Path,
        engine_arguments: dict[str, Any],
        settings: RLConfig,
        validate: Validate | None,
        **trainer: Any,
    ) -> None:
        with rollouts_by(engine_arguments):
            super().__init__(**trainer)
        self.settings = settings
        self.validate = validate
        self.validations: list[dict[str, float]] = []
        """Rows of metrics.jsonl, one per measured step; a resumed stage fills in those of its past."""
        self._drawn: Draw | None = None
        context = Context(base, settings.samples_per_prompt, self.args.seed, lambda name, x: self._log_metric(f"exploration/{name}", x))
        self.exploration = build_exploration(settings.exploration, context)
        self._bonuses: list[torch.Tensor] | None = None
        self._log_probs: torch.Tensor | None = None
        self.rollouts_generated = self.rollouts_used = 0
        self._averages: dict[str, float] = {}
        # The engine's start has reseeded the global generators with the process index, which would make all seeds equal.
        set_seed(self.args.seed, device_specific=True)
        self.stage = stage
        self.remove_callback(PrinterCallback)
        self.add_callback(StepCheckpoints(stage, settings.launch, every=settings.updates_per_rollout))
        if validate is not None:
            self.add_callback(_Validation(self))

    def continue_from(self, rows: list[dict[str, float]]) -> None:
        """Take over the counts and validations of `rows`, which the steps before this process have logged."""
        if rows:
            self.rollouts_generated, self.rollouts_used = (int(rows[-1][name]) for name in ("rollouts_generated", "rollouts_used"))
        self.validations = [row for row in rows if "loss" not in row]
        if self.validate is not None and self.stage.rank == 0:
            forget_others(self.stage.folder.checkpoints, best_step(rows, self._best_k))

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        if self.use_vllm:
            self.vllm_generation.max_completion_length = self._response_tokens
        else:
            self.generation_config.max_new_tokens = self._response_tokens
        if self.state.global_step == 0:
            self._preflight()
            self.evaluate()
        problems = set(gather_object([row["problem"] for row in inputs]))
        draw = draw_groups(
            inputs,
            self._sample,
            lambda round_, groups: self._more_rows(round_, groups, problems),
            rounds=self.settings.sampling_rounds,
            largest_of_ranks=lambda number: max(gather_object([number])),
        )
        self._drawn = draw
        self._bonuses = self.exploration.bonus(draw.groups, self.state.global_step)
        try:
            batch = super()._generate_and_score_completions([row for group in draw.groups for row in group.rows])
        finally:
            self._drawn = None
        batch |= self._for_exploration(draw)
        self._count(draw)
        if self.use_vllm:
            self._check_mismatch(self._metrics["train"][_MISMATCH][-1])
        return batch

    @property
    def _response_tokens(self) -> int:
        return self.settings.response_tokens_at(self.state.global_step)

    def _check_mismatch(self, mismatch: float) -> None:
        allowed = self.settings.max_logprob_mismatch
        if not mismatch <= allowed:
            raise PriorlabError(
                f"rollout engine and trainer disagree at step {self.state.global_step}: a sampled token's log-prob differs by "
                f"{mismatch:.2g}, allowed is rl.max_logprob_mismatch = {allowed:.2g}. In bfloat16 differences of "
                "0.1 are normal (raise the bound); in float32 the engine samples from other weights than are trained"
            )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the policy as it is on the validation problems, log it, and keep its weights if they are the best so far.

        Trainer calls it where `_Validation` asks for it. Its random draws leave those of training as they were.
        """
        step = self.state.global_step
        if self.validate is None or any(row["step"] == step for row in self.validations):
            return {}
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.SeedSequence([self.args.seed, step, rank]).generate_state(1)[0]))
            measured = self.validate(self._respond, slice(rank, None, ranks), gather_object)
        counts = {"rollouts_generated": self.rollouts_generated, "rollouts_used": self.rollouts_used}
        self.validations.append({"step": step, **measured})
        self.stage.log(step, **measured, **counts)
        if best_step(self.validations, self._best_k) == step:
            self.stage.guard.check()
            keep(
                self.stage.folder.checkpoints,
                step,
                lambda folder: save_export(self, self.processing_class, folder),
                main=self.stage.rank == 0,
            )
        return measured

    @property
    def _best_k(self) -> int:
        assert self.settings.validation is not None
        return self.settings.validation.best_k

    def _respond(self, problems: list[Problem]) -> list[Response]:
        ids, images, fields = self._tokenize_prompts([problem.prompt for problem in problems])
        responses, _ = self._generate_single_turn(ids, images, fields, 1)
        texts = self.processing_class.batch_decode(responses, skip_special_tokens=True)
        return [Response(text, len(ids), ids[-1] in self.eos_token_ids) for text, ids in zip(texts, responses, strict=True)]

    def _preflight(self) -> None:
        """Sample some problems from the base policy; stop if there is nothing to learn from."""
        problems = min(self.settings.preflight_problems, len(self.train_dataset))
        rows = self._more_rows(0, math.ceil(problems / self.accelerator.num_processes), set())
        metrics, tokens_seen = self._metrics["train"], self.state.num_input_tokens_seen
        self._metrics["train"] = defaultdict(list)
        found = preflight(self._sample(rows), self.eos_token_ids, self._sum_over_ranks)
        self._metrics["train"], self.state.num_input_tokens_seen = metrics, tokens_seen
        self._pending_metrics.clear()  # what the reward function reported of these problems
        if self.stage.rank == 0:
            write_json_atomically(self.stage.folder.path / PREFLIGHT_FILE, asdict(found))
        if found.mixed == 0:
            raise PriorlabError(found.advice(self.num_generations))

    def _sum_over_ranks(self, numbers: list[float]) -> list[float]:
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, reduction="sum").tolist()

    def _sample(self, rows: list[Row]) -> list[Group]:
        """Generate and score; rows of one problem follow one another, `num_generations` at a time."""
        prompts = [row["prompt"] for row in rows]
        prompt_ids, completion_ids, _, completions, log_probs, *_ = super()._generate(prompts)
        log_probs = [None] * len(rows) if log_probs is None else log_probs
        everyone = super()._calculate_rewards(rows, prompts, completions, completion_ids)
        first = self.accelerator.process_index * len(rows)
        rewards = everyone[first : first + len(rows)]
        parts = [slice(start, start + self.num_generations) for start in range(0, len(rows), self.num_generations)]
        return [
            Group(rows[part], prompt_ids[part], completion_ids[part], completions[part], log_probs[part], rewards[part])
            for part in parts
        ]

    def _more_rows(self, round_: int, groups: int, tried: set[int]) -> list[Row]:
        """Rows of problems that this step has not tried; the same order on every rank, of which each takes its own part."""
        order = np.random.default_rng([self.args.seed, self.state.global_step, round_]).permutation(len(self.train_dataset))
        fresh = [int(problem) for problem in order if problem not in tried] or [int(problem) for problem in order]
        everyone = groups * self.accelerator.num_processes
        chosen = [fresh[i % len(fresh)] for i in range(everyone)]
        tried.update(chosen)
        first = self.accelerator.process_index * groups
        return [self.train_dataset[problem] for problem in chosen[first : first + groups] for _ in range(self.num_generations)]

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if self._drawn is None:
            return super()._generate(prompts)
        draw, groups = self._drawn, self._drawn.groups
        counted = [
            [int(number < len(draw.kept) or draw.fillers_count)] * len(ids)
            for number, g in enumerate(groups)
            for ids in g.completion_ids
        ]
        parts = [
            [item for group in groups for item in getattr(group, name)]
            for name in ("prompt_ids", "completion_ids", "completions", "log_probs")
        ]
        log_probs = parts[3] if self.use_vllm else None
        return parts[0], parts[1], counted, parts[2], log_probs, {}, None, []

    def _calculate_rewards(self, inputs: list[Row], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]) -> Any:
        if self._drawn is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards = torch.cat([group.rewards for group in self._drawn.groups])
        if self._bonuses is not None:
            rewards = rewards + torch.cat(self._bonuses).to(rewards).unsqueeze(1)
        return self.accelerator.gather(rewards)

    def _for_exploration(self, draw: Draw) -> dict[str, torch.Tensor]:
        """Which responses are right, and for each one's loss the factor that makes a mean over the counted ones of one over all."""
        counted = len(draw.groups if draw.fillers_count else draw.kept)
        all_, counted_ = self._sum_over_ranks([len(draw.groups), counted])
        correct = torch.cat([group.correct for group in draw.groups]).to(self.accelerator.device)
        return {"correct": correct, "response_weight": torch.full(correct.shape, all_ / counted_, device=correct.device)}

    def _get_per_token_logps_and_entropies(self, *positional: Any, **named: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*positional, **named)
        if torch.is_grad_enabled():  # those that the loss is made of
            self._log_probs = found[0]
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """GRPO's loss, and what exploration adds to it; TRL leaves dividing by the number of accumulated passes to us."""
        loss = super()._compute_loss(model, inputs)
        log_probs, self._log_probs = self._log_probs, None
        if log_probs is None:
            return loss
        counted = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).to(log_probs.dtype)
        old = inputs.get("old_per_token_logps")  # not there where the policy that sampled is the one that is trained
        tokens = Tokens(log_probs, log_probs.detach() if old is None else old, counted, inputs["correct"])
        terms = self.exploration.loss(tokens)
        if terms is None:
            return loss
        term = (terms * inputs["response_weight"] * counted.any(dim=1)).mean()
        self._metrics["train"]["exploration/loss"].append(self.accelerator.gather(term.detach()).mean().item())
        return loss + term / self.current_gradient_accumulation_steps

    def _count(self, draw: Draw) -> None:
        """Log what was generated beside what is learned from: priors are compared at equal rollouts as well as at equal steps."""
        first = draw.first_round
        counts = [len(draw.kept), draw.generated, len(first), sum(g.mixed for g in first), sum(g.rewards.sum().item() for g in first)]
        kept, generated, sampled, mixed, reward = self._sum_over_ranks(counts)
        self.rollouts_generated += int(generated) * self.num_generations
        self.rollouts_used += int(kept) * self.num_generations
        metrics = self._metrics["train"]
        metrics["reward_raw"].append(reward / (sampled * self.num_generations))
        metrics["frac_groups_mixed"].append(mixed / sampled)
        metrics["sampling_rounds"].append(draw.rounds)
        metrics["max_response_tokens"].append(self._response_tokens)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # An update on rollouts that an earlier one has seen already keeps what is known of them.
        # NaN is TRL's "no token counted", as in a micro-batch of fillers.
        numbers = {name: [value for value in values if value == value] for name, values in self._metrics["train"].items()}
        self._averages |= {name: sum(values) / len(values) for name, values in numbers.items() if values}
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        step = self.state.global_step
        # At ZeRO stage 0 DeepSpeed clips without telling the norm.
        row = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs} | self._averages
        row |= {"rollouts_generated": self.rollouts_generated, "rollouts_used": self.rollouts_used}
        self.stage.log(step, **row)
        self.stage.progress(
            step, self.state.max_steps, "steps",
            reward=row["reward"], entropy=row["entropy"], length=row["completions/mean_length"],
        )  # fmt: skip

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No README beside each step checkpoint: the stage's spec and record describe the model."""


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
            forget_others(Path(args.output_dir), best_step(self.trainer.validations, self.trainer._best_k))
