"""What TRL gets back for the problems that it asks about, when dynamic sampling puts others in their place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from pipeline.config.algorithm import Advantage, GroupAdvantage, MaxRLAdvantage, RandomAdvantage
from pipeline.config.exploration import NoExploration
from pipeline.config.launch import Launch
from pipeline.config.rl import RLConfig
from pipeline.config.training import AdamWConfig
from pipeline.errors import PriorlabError
from pipeline.store.files import read_json
from stages.rl.advantage import build_advantage
from stages.rl.exploration import Context, build_exploration
from stages.rl.rollouts import Rollouts, correct
from stages.tasks import Problem

if TYPE_CHECKING:
    from stages.rl.trainer import RLTrainer

END, SAMPLES = 1, 2


class Engine:
    """Stands in for the trainer: its policy answers problem n with n and 0, and n is the right answer to the problems in `solvable`."""

    def __init__(self, solvable: set[int]) -> None:
        self.solvable = solvable
        self.state = SimpleNamespace(global_step=1)
        self.args = SimpleNamespace(seed=0)
        self.accelerator = SimpleNamespace(num_processes=1, process_index=0)
        self.processing_class = SimpleNamespace(batch_decode=lambda ids, **_: [str(i[0] - 10) for i in ids], pad_token_id=END)
        self.eos_token_ids = [END]
        self.reported: dict[str, list[float]] = {}
        self.stage: Any = None

    def limit_responses(self, tokens: int) -> None:
        assert tokens == 4

    def sample(self, prompts: list[str]) -> Any:
        numbers = [int(prompt) for prompt in prompts]
        answers = [[10 + (number if i % 2 else 0), END] for i, number in enumerate(numbers)]
        return [[100 + number] for number in numbers], answers, [[-0.5 * number, -1.0] for number in numbers]

    def reward(self, completions: list[str], problem: list[int], **_: Any) -> list[float]:
        return [float(text == str(n) and n in self.solvable) for text, n in zip(completions, problem, strict=True)]

    def report(self, name: str, value: float) -> None:
        self.reported.setdefault(name, []).append(value)

    def take_reports(self) -> dict[str, list[float]]:
        taken, self.reported = self.reported, {}
        return taken

    def evaluate(self) -> None:
        assert not self.reported  # what the preflight measured is not of the first step

    def sum_over_ranks(self, numbers: list[float]) -> list[float]:
        return numbers


def prepared(solvable: set[int], advantage: Advantage = GroupAdvantage(), **settings: Any) -> tuple[Rollouts, Engine]:  # noqa: B008
    engine = Engine(solvable)
    config = RLConfig(
        steps=4, problems=9, samples_per_prompt=SAMPLES, max_response_tokens=4,
        optimizer=AdamWConfig(learning_rate=1e-3), launch=Launch(micro_batch=1), **settings,
    )  # fmt: skip
    problems = [Problem(id=str(i), prompt=str(i), data={}) for i in range(9)]
    exploration = build_exploration(NoExploration(), Context(Path(), SAMPLES, 0, engine.report))
    return Rollouts(config, problems, engine.reward, build_advantage(advantage, seed=0), exploration), engine


def roll_out(
    solvable: set[int],
    budget: float,
    asked: list[int],
    advantage: Advantage = GroupAdvantage(),  # noqa: B008
) -> tuple[dict[str, Any], Rollouts, Engine]:
    rollouts, engine = prepared(solvable, advantage, prompts_per_step=len(asked), sampling_budget=budget)
    return rollouts([n for n in asked for _ in range(SAMPLES)], cast("RLTrainer", engine)), rollouts, engine


def test_every_field_is_of_the_problem_that_was_sampled_in_another_ones_place() -> None:
    fields, rollouts, _ = roll_out({2, 5, 6}, budget=8, asked=[1, 2, 3])
    sampled = [ids[0] - 100 for ids in fields["prompt_ids"]]
    assert sampled[:SAMPLES] == [2, 2]
    assert set(sampled) == {2, 5, 6}  # 1 and 3, which nothing solves, are replaced
    assert [ids[0] - 10 for ids in fields["completion_ids"]] == [n if i % 2 else 0 for i, n in enumerate(sampled)]
    assert [values[0] for values in fields["logprobs"]] == [-0.5 * n for n in sampled]
    assert correct(**fields, trainer_state=None) == [float(i % 2) for i in range(len(sampled))]
    assert fields["env_mask"] == [[1, 1]] * len(sampled)
    assert rollouts.used == 3 * SAMPLES < rollouts.generated


def test_tokens_of_fillers_are_masked_and_their_lengths_are_reported_all_the_same() -> None:
    fields, rollouts, engine = roll_out({2}, budget=2, asked=[1, 2, 3])
    assert fields["env_mask"] == [[1, 1]] * SAMPLES + [[0, 0]] * 2 * SAMPLES
    assert correct(**fields) == [0, 1, 0, 0, 0, 0]
    assert rollouts.draw.counted == [True, False, False]
    assert engine.reported["batch_fill"] == [pytest.approx(1 / 3)]
    assert engine.reported["completions/mean_length"] == [2, 2]  # a round each
    assert engine.reported["completions/clipped_ratio"] == [0, 0]
    assert engine.reported["reward_raw"] == [pytest.approx(1 / 6)]


def preflighted(solvable: set[int], folder: Path) -> dict[str, float] | None:
    """What the file of the preflight has, of 2 of 9 problems at once."""
    rollouts, engine = prepared(solvable, prompts_per_step=1, preflight_problems=2)
    engine.state.global_step = 0
    engine.stage = SimpleNamespace(rank=0, folder=SimpleNamespace(path=folder))
    rollouts([1] * SAMPLES, cast("RLTrainer", engine))
    return read_json(folder / "preflight.json")


def test_the_preflight_goes_on_until_a_problem_teaches(tmp_path: Path) -> None:
    every = [preflighted({number}, tmp_path) for number in range(1, 9)]
    assert all(found is not None and found["mixed"] * found["problems"] in (1, 2) for found in every)
    assert {found["problems"] for found in every if found is not None} == {2, 4, 6, 8, 10}  # the ninth comes with one seen before


def test_the_preflight_stops_where_no_problem_teaches(tmp_path: Path) -> None:
    with pytest.raises(PriorlabError, match="no learning signal: each of 10 problems"):
        preflighted(set(), tmp_path)


def test_an_engine_without_log_probs_says_so_to_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Engine.sample
    monkeypatch.setattr(Engine, "sample", lambda self, prompts: (*plain(self, prompts)[:2], [None] * len(prompts)))
    fields, rollouts, _ = roll_out({2}, budget=1, asked=[1, 2])
    assert fields["logprobs"] is None
    assert torch.equal(torch.cat([group.rewards for group in rollouts.draw.groups]), torch.tensor([0.0, 0.0, 0.0, 1.0]))


def test_advantages_are_those_of_the_groups_in_the_batch_and_none_where_trl_computes_them() -> None:
    _, rollouts, _ = roll_out({2}, budget=1, asked=[1, 2], advantage=MaxRLAdvantage())
    assert rollouts.advantages is not None
    assert rollouts.advantages.tolist() == [0, 0, -1, 1]
    _, rollouts, _ = roll_out({2}, budget=1, asked=[1, 2])
    assert rollouts.advantages is None


def test_coin_flips_are_paid_and_decide_what_is_replaced_but_verdicts_are_logged() -> None:
    advantage = RandomAdvantage(share=0.5)
    fields, rollouts, engine = roll_out(set(), budget=8, asked=[1, 2, 3], advantage=advantage)
    groups = rollouts.draw.groups
    flips = [build_advantage(advantage, seed=0).rewards(group, step=1).tolist() for group in groups]
    assert correct(**fields) == [paid for group in flips for paid in group]
    assert [sorted(group) for group in flips] == [[0, 1]] * 3
    assert not any(group.mixed for group in groups)  # nothing is right
    assert engine.reported["reward_raw"] == [0]
