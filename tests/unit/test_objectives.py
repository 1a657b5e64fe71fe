"""Each objective of the family: cross-entropy at its neutral knob, its gradient against a formula and finite differences, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.objective.coverage import Coverage
from stages.objective.deformed import Deformed
from stages.objective.entropy import Entropy
from stages.objective.focal import Focal
from stages.objective.gem import Gem
from stages.objective.protocol import Objective, response_numbers
from stages.objective.reference import objective_loss
from stages.objective.shaped import Shaped
from stages.objective.smoothing import Smoothing
from tests.unit.test_objective import gradient, random_batch

FAMILY: list[Objective] = [
    Focal(gamma=2.0),
    Focal(gamma=0.5),
    Deformed(alpha=0.5),
    Deformed(alpha=1.0),
    Gem(tau=0.7),
    Gem(tau=1.5),
    Entropy(alpha=0.1),
    Entropy(alpha=-0.2),
    Entropy(alpha=0.5, gate=0.6),
    Smoothing(epsilon=0.1),
    Coverage(attempts=16),
    Coverage(attempts=1000, z_loss=1e-2),
    Gem(tau=0.7, z_loss=1e-2),
    Shaped(beta=-0.25, lambda_head=0.1, lambda_tail=-0.1, k=3, z_loss=1e-2),
]
NEUTRAL: list[Objective] = [
    Shaped(),
    Focal(gamma=0),
    Deformed(alpha=0),
    Gem(tau=1),
    Entropy(alpha=0),
    Smoothing(epsilon=0),
    Coverage(attempts=1),
]
_Z_LOSSES = st.sampled_from([0.0, 1e-3])
objectives = st.one_of(
    st.builds(Focal, gamma=st.floats(0, 5), z_loss=_Z_LOSSES),
    st.builds(Deformed, alpha=st.floats(0, 3), z_loss=_Z_LOSSES),
    st.builds(Gem, tau=st.floats(0.2, 3), z_loss=_Z_LOSSES),
    st.builds(Entropy, alpha=st.floats(-0.9, 2), gate=st.sampled_from([0.3, 0.7, 1.0]), z_loss=_Z_LOSSES),
    st.builds(Smoothing, epsilon=st.floats(0, 1), z_loss=_Z_LOSSES),
    st.builds(Coverage, attempts=st.floats(1, 1e4), z_loss=_Z_LOSSES),
)


def formula(objective: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient as the papers have it, by kind, with nothing of the implementation."""
    z = logits.detach()
    pi, one_hot = z.softmax(-1), F.one_hot(targets, z.shape[-1]).double()
    p, v = pi.gather(-1, targets[:, None]), z.shape[-1]
    if objective.kind == "gem":
        found = (z / objective.tau).softmax(-1) - one_hot
    elif objective.kind == "smoothing":
        found = pi - (1 - objective.epsilon) * one_hot - objective.epsilon / v
    elif objective.kind == "entropy":
        entropy = -(pi * pi.log()).sum(-1, keepdim=True)
        counts = pi.topk(min(2, v)).values.sum(-1, keepdim=True) <= objective.gate if objective.gate < 1 else True
        found = pi - one_hot + objective.alpha * pi * (pi.log() + entropy) * counts
    else:
        if objective.kind == "focal":
            g = objective.gamma
            weight = (1 - p) ** g - g * p * (1 - p) ** (g - 1) * p.log()
        elif objective.kind == "coverage":
            n, whole = objective.attempts, p.prod()  # all targets count, so they are one response
            weight = n * whole * (1 - whole) ** (n - 1) / -torch.expm1(n * torch.log1p(-whole))
        else:
            weight = p**objective.alpha
        found = weight * (pi - one_hot)
    return found + objective.z_loss * 2 * z.logsumexp(-1, keepdim=True) * pi


@settings(max_examples=100)
@given(objective=objectives, seed=st.integers(0, 2**16), vocab=st.integers(2, 40), scale=st.floats(0.01, 4))
def test_the_gradient_is_the_papers(objective: Objective, seed: int, vocab: int, scale: float) -> None:
    logits, targets = random_batch(6, vocab, seed, scale)
    ours = gradient(objective_loss(logits, targets, objective, reduction="sum"), logits)
    torch.testing.assert_close(ours, formula(objective, logits, targets), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", [one for one in FAMILY if one.kind not in ("gem", "shaped")], ids=repr)
def test_it_is_the_slope_of_the_loss(objective: Objective) -> None:
    """By finite differences. GEM and the shaped objective hold a part constant, so their loss has another slope."""
    logits, targets = random_batch(4, 7)

    def loss(at: Tensor) -> Tensor:
        return objective_loss(at, targets, objective, reduction="sum")

    assert torch.autograd.gradcheck(loss, logits, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", NEUTRAL, ids=repr)
def test_the_neutral_knob_is_cross_entropy(objective: Objective) -> None:
    logits, targets = random_batch(64, 23)
    targets[::5] = -100
    ours, theirs = objective_loss(logits, targets, objective), F.cross_entropy(logits, targets)
    if objective.kind != "gem":  # whose value has an entropy for a constant
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_smoothing_is_torchs(epsilon: float) -> None:
    logits, targets = random_batch(32, 11)
    ours, theirs = (
        objective_loss(logits, targets, Smoothing(epsilon=epsilon)),
        F.cross_entropy(logits, targets, label_smoothing=epsilon),
    )
    torch.testing.assert_close(ours, theirs)


def test_deformed_at_one_has_the_gradient_of_dynamic_fine_tuning() -> None:
    logits, targets = random_batch(32, 11)
    log_target = logits.log_softmax(-1).gather(-1, targets[:, None])
    theirs = gradient((-log_target.exp().detach() * log_target).mean(), logits)
    torch.testing.assert_close(gradient(objective_loss(logits, targets, Deformed(alpha=1)), logits), theirs)


@pytest.mark.parametrize(
    ("objective", "reward"),
    [
        (Focal(gamma=2.0), lambda p: ((1 - p) ** 2 - 2 * p * (1 - p) * p.log()) / p),
        (Deformed(alpha=0.5), lambda p: p**-0.5),
        (Deformed(alpha=1.0), lambda p: torch.ones_like(p)),  # no weight on rare tokens: the reward is 1, as in RL
    ],
    ids=["focal", "deformed", "dft"],
)
def test_a_weighted_cross_entropy_is_a_policy_gradient(objective: Objective, reward: Callable[[Tensor], Tensor]) -> None:
    """REINFORCE over 400,000 sampled actions of one context; the true token earns w / pi_x."""
    logits, targets = random_batch(1, 8, seed=3, scale=1.0)
    pi = logits.detach().softmax(-1)[0]
    draws = torch.multinomial(pi, 400_000, replacement=True, generator=torch.Generator().manual_seed(1))
    rewards = (draws == targets[0]) * reward(pi[targets[0]])
    scores = rewards[:, None] * (F.one_hot(draws, 8).double() - pi)
    estimate, error = scores.mean(0), scores.std(0) / math.sqrt(len(draws))
    ours = -gradient(objective_loss(logits, targets, objective, reduction="sum"), logits)[0]
    assert ((estimate - ours).abs() < 4.5 * error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", FAMILY, ids=repr)
def test_certain_and_impossible_targets_stay_finite(objective: Objective, dtype: torch.dtype) -> None:
    logits = torch.tensor([[60.0, 0, 0, 0], [0, 60.0, 0, 0], [-60.0, 0, 0, 0], [1.0, 1, 1, 1]], dtype=dtype, requires_grad=True)
    loss = objective_loss(logits, torch.tensor([0, 1, 0, 2]), objective, reduction="sum")
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, logits)).all()


def test_coverage_asks_for_one_hit_in_n_samples() -> None:
    """Responses of two, one and three tokens: the loss is that of sampling each, and what is likely already is not learned."""
    logits, targets = random_batch(8, 5, seed=2, scale=2.0)
    targets[[2, 4]] = -100
    log_probs = F.cross_entropy(logits, targets, reduction="none").neg()
    hit = torch.stack([log_probs[start:end].sum().exp() for start, end in ((0, 2), (3, 4), (5, 8))])
    found = objective_loss(logits, targets, Coverage(attempts=20), reduction="none")
    torch.testing.assert_close(found.sum(), -(1 - (1 - hit) ** 20).log().sum())
    torch.testing.assert_close(found[5:], found[5].expand(3))
    assert found[[2, 4]].tolist() == [0, 0]
    rare, likely = Coverage(attempts=20).weight(torch.tensor([-200.0, -0.01]))
    assert (rare, likely) == (1, pytest.approx(0, abs=1e-12))


@pytest.mark.parametrize(
    ("counted", "numbers"),
    [([0, 1, 1, 0, 1], [-1, 0, 0, -1, 1]), ([1, 0, 1, 1, 1], [0, -1, 1, 1, 1]), ([[1, 1], [1, 0]], [[0, 0], [1, -1]]), ([], [])],
    ids=str,
)
def test_responses_are_runs_of_targets_that_count(counted: list[Any], numbers: list[Any]) -> None:
    assert response_numbers(torch.tensor(counted, dtype=torch.bool)).tolist() == numbers


def test_the_gate_lets_the_bonus_through_only_where_the_model_is_undecided() -> None:
    logits = torch.tensor([[5.0, 0, 0, 0], [0.1, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 0])
    plain, gated, open_ = (
        gradient(objective_loss(logits, targets, one, reduction="sum"), logits)
        for one in (Shaped(), Entropy(alpha=0.3, gate=0.8), Entropy(alpha=0.3))
    )
    torch.testing.assert_close(gated[0], plain[0])
    torch.testing.assert_close(gated[1], open_[1])
    assert not torch.allclose(open_, gated)
