"""Ways to explore: their numbers by hand, and the protocol that the trainer knows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.config.exploration import (
    DistinctExploration,
    DiversityExploration,
    Exploration,
    NoExploration,
    RepresentationExploration,
)
from pipeline.experiment.config_files import available
from stages.novelty import frozen_model, leverages, response_features, sparse_projection
from stages.rl.dynamic_sampling import Group
from stages.rl.exploration import Context, Tokens, build_exploration

SAMPLES = 6


def group(rewards: list[float], responses: list[list[int]]) -> Group:
    count = len(rewards)
    return Group([{}] * count, [[0, 1, 2]] * count, responses, [""] * count, [[]] * count, torch.tensor(rewards).unsqueeze(1))


def context(base: Path = Path(), log: Callable[[str, float], None] = lambda name, value: None) -> Context:
    return Context(base, SAMPLES, seed=3, log=log)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=12, head_dim=32, tie_word_embeddings=True, **sizes)).save_pretrained(folder)
    return folder


def test_every_kind_has_a_config_a_module_and_a_yaml_file(base: Path) -> None:
    configs = get_args(get_args(Exploration)[0])
    assert sorted(config.model_fields["kind"].default for config in configs) == available("exploration")
    for config in configs:
        build_exploration(config(), context(base))


def test_none_adds_nothing() -> None:
    none = build_exploration(NoExploration(), context())
    tokens = Tokens(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([True, False]))
    assert none.bonus([group([1, 0], [[1], [2]])], 0) is None
    assert none.loss(tokens) is None


def diversity_of(log_probs: torch.Tensor, config: DiversityExploration, old: torch.Tensor | None = None) -> torch.Tensor:
    """Two responses of three and two tokens, of which the first is correct."""
    counted = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    tokens = Tokens(log_probs, log_probs.detach() if old is None else old, counted, torch.tensor([True, False]))
    terms = build_exploration(config, context()).loss(tokens)
    assert terms is not None
    return terms


def test_diversity_is_the_mean_surprise_of_correct_responses_with_the_gradient_of_entropy() -> None:
    """By hand, on the rollouts' own policy: the loss is lambda (1/T) sum log p, its gradient in log p lambda (1/T) (log p + 1)."""
    log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, 0.0]], requires_grad=True)
    terms = diversity_of(log_probs, DiversityExploration(lambda_diversity=0.3))
    torch.testing.assert_close(terms, torch.tensor([0.3 * -3.5 / 3, 0.0]))
    terms.sum().backward()
    expected = torch.tensor([[0.3 / 3 * (1 - 1.0), 0.3 / 3 * (1 - 2.0), 0.3 / 3 * (1 - 0.5)], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(log_probs.grad, expected)


def test_diversity_weighs_tokens_by_how_much_likelier_they_have_become() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, 0.0]])
    old = log_probs - torch.log(torch.tensor(2.0))
    torch.testing.assert_close(diversity_of(log_probs, DiversityExploration(), old), torch.tensor([0.01 * 2 * -3.5 / 3, 0.0]))


def test_diversity_may_look_at_all_responses_and_never_at_padding() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, -9.0]])
    terms = diversity_of(log_probs, DiversityExploration(lambda_diversity=1, responses="all"))
    torch.testing.assert_close(terms, torch.tensor([-3.5 / 3, -4.0 / 2]))


def test_descending_on_diversity_raises_the_entropy_of_a_policy() -> None:
    """Over all two-token responses, weighted as they are sampled: the term's gradient is that of the entropy, minus its sign."""
    logits = torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
    log_p = torch.log_softmax(logits, dim=0)
    tokens = Tokens(log_p[:, None], log_p.detach()[:, None], torch.ones(3, 1), torch.ones(3, dtype=torch.bool))
    terms = build_exploration(DiversityExploration(lambda_diversity=1), context()).loss(tokens)
    assert terms is not None
    (found,) = torch.autograd.grad((log_p.detach().exp() * terms).sum(), logits, retain_graph=True)
    (entropy,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(), logits)
    torch.testing.assert_close(found, -entropy)


def test_features_are_the_mean_hidden_state_of_the_response_however_it_is_batched(base: Path) -> None:
    model = frozen_model(base)
    prompts, responses = [[0, 1, 2], [0, 3]], [[4, 5, 6], [7, 8, 9, 10, 11, 4]]
    together = response_features(model, prompts, responses)
    for prompt, response, found in zip(prompts, responses, together, strict=True):
        hidden = model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) :].double().mean(dim=0)
        torch.testing.assert_close(found, hidden, rtol=1e-5, atol=1e-6)


RESPONSES = [[4, 5], [4, 5], [6, 7, 8], [9], [10, 11], [4, 4, 4]]


def test_the_bonus_is_the_leverage_under_a_projection_of_the_steps_own(base: Path) -> None:
    logged: dict[str, float] = {}
    config = RepresentationExploration(beta=0.5, ridge=0.1)
    exploration = build_exploration(config, context(base, logged.__setitem__))
    groups = [group([0, 1, 0, 0, 0, 1], RESPONSES), group([0] * 6, RESPONSES)]
    for step in (0, 7):
        features = response_features(frozen_model(base), groups[0].prompt_ids, RESPONSES)
        expected = 0.5 * leverages(features @ sparse_projection(32, 3, [3, step]), 0.1)  # half of six samples
        found = exploration.bonus(groups, step)
        assert found is not None
        torch.testing.assert_close(found[0], expected)
        assert found[1].tolist() == [0] * 6  # nothing is right there
        assert logged == pytest.approx(
            {"bonus_mean": float(expected.mean()), "bonus_std": float(expected.std()), "groups_with_bonus": 0.5}
        )


def test_a_bonus_that_is_a_constant_is_warned_of_once(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    responses = [[4], [5, 6], [7, 8, 9], [10, 4, 6, 8], [11, 9], [6, 6, 5]]
    groups = [group([0, 1, 0, 0, 0, 1], responses)]
    with caplog.at_level(logging.WARNING):
        build_exploration(RepresentationExploration(ridge=0.01), context(base)).bonus(groups, 0)
        assert not caplog.records
        exploration = build_exploration(RepresentationExploration(ridge=1e-9, projection=64), context(base))
        exploration.bonus(groups, 0)
        exploration.bonus(groups, 1)
    (record,) = caplog.records
    assert "the exploration bonus is a constant" in record.message
    assert "rl.exploration.projection (64 dimensions, 6 responses a group)" in record.message


def test_distinct_pays_correct_responses_by_how_few_repeat_them() -> None:
    groups = [group([1, 1, 0, 1, 0, 0], [[4, 5], [4, 5], [4, 5], [9], [10], [9, 9]])]
    found = build_exploration(DistinctExploration(beta=0.2), context()).bonus(groups, 0)
    assert found is not None
    torch.testing.assert_close(found[0], torch.tensor([0.1, 0.1, 0.1, 0.2, 0.0, 0.0]))
