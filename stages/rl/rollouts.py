"""The rollouts that GRPO learns from: TRL's `rollout_func`, with dynamic sampling, scores and exploration's bonuses.

TRL calls it once per batch with the prompts, which here are the numbers of problems. It learns from the ids that come back, so these
may belong to other problems than it asked for. Each response comes with its score, in a field that TRL hands to its reward function,
`correct`. `env_mask` is 0 on the tokens of fillers, which keeps them out of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from pipeline.config.rl import RLConfig
from pipeline.errors import PriorlabError
from pipeline.store.files import write_json_atomically
from stages.contract import Stage
from stages.rl.advantage import Advantage
from stages.rl.dynamic_sampling import Draw, Group, draw_groups
from stages.rl.exploration import Exploration
from stages.rl.preflight import preflight
from stages.tasks import Problem

PREFLIGHT_FILE = "preflight.json"
_PREFLIGHT_ROUNDS = 10
"""A base that solves one response in a hundred may solve none of a round's, and still learn; leaving it out would flatter its prior."""


class Trainer(Protocol):
    """What rollouts ask of the trainer: TRL's attributes, and methods of `OpenGRPOTrainer` and `RLTrainer`."""

    args: Any
    state: Any
    accelerator: Any
    processing_class: Any
    eos_token_ids: Any
    stage: Stage

    def limit_responses(self, tokens: int) -> None: ...

    def sample(self, prompts: list[str]) -> tuple[list[list[int]], list[list[int]], list[list[float] | None]]: ...

    def evaluate(self) -> dict[str, float]: ...

    def sum_over_ranks(self, numbers: list[float]) -> list[float]: ...

    def report(self, name: str, value: float) -> None: ...

    def take_reports(self) -> dict[str, float]: ...


def correct(*, score: list[float], **_: Any) -> list[float]:
    """TRL's reward function, by whose name it logs rewards: the scores that came with the rollouts."""
    return score


class Rollouts:
    """Samples problems with the trainer's engine, `settings.samples_per_prompt` responses each, and counts what it took."""

    def __init__(
        self,
        settings: RLConfig,
        problems: list[Problem],
        reward: Callable[..., list[float]],
        advantage: Advantage,
        exploration: Exploration,
    ) -> None:
        self.settings = settings
        self.problems = problems
        self.reward = reward
        self.advantage = advantage
        self.exploration = exploration
        self.generated = self.used = 0
        self.draw: Draw
        """What the batch that is trained on is made of; this rank's part of it."""
        self.advantages: Float[Tensor, " responses"] | None
        """Of that part; None where TRL computes them."""

    def __call__(self, prompts: list[int], trainer: Trainer) -> dict[str, Any]:
        """This rank's part of a batch, an entry per response in each field. `prompts` has each problem `samples_per_prompt` times.

        Raises `PriorlabError` at step 0 if the base policy gives nothing to learn from.
        """
        step = trainer.state.global_step
        trainer.limit_responses(self.settings.response_tokens_at(step))
        if step == 0:
            self._preflight(trainer)
            trainer.evaluate()
        tried = set(gather_object(prompts))
        self.draw = draw_groups(
            prompts[:: self.settings.samples_per_prompt],
            lambda problems: self._sample(problems, trainer),
            lambda round_, groups: self._others(round_, groups, tried, trainer),
            has_signal=lambda group: self.advantage.has_signal(group, step),
            budget=self.settings.sampling_budget,
            sum_over_ranks=trainer.sum_over_ranks,
            largest_of_ranks=lambda number: max(gather_object([number])),
        )
        self._count(trainer)
        groups = self.draw.groups
        scores = [self.advantage.rewards(group, step) for group in groups]
        bonuses = self.exploration.bonus(groups, step)
        if bonuses is not None:
            scores = [score + bonus.to(score) for score, bonus in zip(scores, bonuses, strict=True)]
        advantages = [found for score in scores if (found := self.advantage.advantages(score)) is not None]
        self.advantages = torch.cat(advantages) if advantages else None
        log_probs = [values for group in groups for values in group.log_probs]
        return {
            "prompt_ids": [ids for group in groups for ids in group.prompt_ids],
            "completion_ids": [ids for group in groups for ids in group.completion_ids],
            "logprobs": None if None in log_probs else log_probs,
            "env_mask": [
                [int(counted)] * len(ids)
                for group, counted in zip(groups, self.draw.counted, strict=True)
                for ids in group.completion_ids
            ],
            "score": torch.cat(scores).tolist(),
        }

    def _sample(self, problems: list[int], trainer: Trainer) -> list[Group]:
        """A group of scored responses per problem."""
        size = self.settings.samples_per_prompt
        repeated = [problem for problem in problems for _ in range(size)]
        prompt_ids, completion_ids, log_probs = trainer.sample([self.problems[problem].prompt for problem in repeated])
        texts = trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        rewards = torch.tensor(self.reward(completions=texts, problem=repeated, log_metric=trainer.report))
        _report_lengths(completion_ids, trainer)
        parts = [slice(start, start + size) for start in range(0, len(repeated), size)]
        return [
            Group(problem, prompt_ids[part], completion_ids[part], log_probs[part], rewards[part])
            for problem, part in zip(problems, parts, strict=True)
        ]

    def _others(self, round_: int, groups: int, tried: set[int], trainer: Trainer) -> list[int]:
        """Problems that this step has not tried, while there are any; the same order on every rank, of which each takes its part."""
        order = np.random.default_rng([trainer.args.seed, trainer.state.global_step, round_]).permutation(len(self.problems)).tolist()
        fresh = [problem for problem in order if problem not in tried] or order
        chosen = [fresh[i % len(fresh)] for i in range(groups * trainer.accelerator.num_processes)]
        tried.update(chosen)
        first = trainer.accelerator.process_index * groups
        return chosen[first : first + groups]

    def _preflight(self, trainer: Trainer) -> None:
        """Sample problems from the base policy until one has a signal; stop if none of many has."""
        at_once = math.ceil(min(self.settings.preflight_problems, len(self.problems)) / trainer.accelerator.num_processes)
        groups: list[Group] = []
        tried: set[int] = set()
        for round_ in range(_PREFLIGHT_ROUNDS):
            groups += self._sample(self._others(round_, at_once, tried, trainer), trainer)
            found = preflight(groups, trainer.eos_token_ids, trainer.sum_over_ranks)
            if found.mixed > 0 or len(tried) == len(self.problems):
                break
        trainer.take_reports()  # these problems are not of the first step
        if trainer.stage.rank == 0:
            write_json_atomically(trainer.stage.folder.path / PREFLIGHT_FILE, asdict(found))
        if found.mixed == 0:
            raise PriorlabError(found.advice(self.settings.samples_per_prompt))

    def _count(self, trainer: Trainer) -> None:
        """Log what was generated beside what is learned from: priors are compared at equal rollouts as well as at equal steps."""
        first = self.draw.first_round
        generated, used = trainer.sum_over_ranks([self.draw.generated, len(self.draw.kept)])
        self.generated += int(generated) * self.settings.samples_per_prompt
        self.used += int(used) * self.settings.samples_per_prompt
        trainer.report("reward_raw", torch.cat([group.rewards for group in first]).double().mean().item())
        trainer.report("frac_groups_mixed", sum(group.mixed for group in first) / len(first))
        trainer.report("sampling_rounds", self.draw.rounds)
        trainer.report("batch_fill", len(self.draw.kept) / len(self.draw.groups))
        trainer.report("max_response_tokens", self.settings.response_tokens_at(trainer.state.global_step))


def _report_lengths(completion_ids: list[list[int]], trainer: Trainer) -> None:
    """TRL's metrics of length, in tokens, over all responses of a round. TRL's own are of the batch, in which fillers have length 0."""
    ended_by = {*trainer.eos_token_ids, trainer.processing_class.pad_token_id}
    lengths, ended = np.array(gather_object([(len(ids), ids[-1] in ended_by) for ids in completion_ids])).T
    trainer.report("completions/clipped_ratio", 1 - ended.mean())
    for kind, of_kind in (("", lengths), ("terminated_", lengths[ended == 1] if ended.any() else np.zeros(1))):
        for name in ("mean", "min", "max"):
            trainer.report(f"completions/{name}_{kind}length", float(getattr(of_kind, name)()))
