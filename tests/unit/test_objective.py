"""The shaped objective against cross-entropy, its closed-form gradient, and a sampled policy gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.objective.reference import distribution_statistics, objective_loss
from stages.objective.shaped import MIN_COMPLEMENT, Form, Shaped, head_mask

CE = Shaped()
PRIORS = [
    Shaped(beta=-0.25),
    Shaped(beta=0.5),
    Shaped(beta=-0.25, form="power"),
    Shaped(beta=0.5, form="power"),
    Shaped(lambda_tail=-0.1, k=3),
    Shaped(lambda_head=0.1, k=3),
    Shaped(beta=-0.5, lambda_head=0.2, lambda_tail=-0.3, k=2),
]
priors = st.builds(
    Shaped,
    beta=st.floats(-0.9, 2.0),
    lambda_head=st.floats(-1, 1),
    lambda_tail=st.floats(-1, 1),
    k=st.integers(1, 40),
    form=st.sampled_from(["product", "power"]),
)


def random_batch(rows: int, vocab: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    return logits.requires_grad_(), targets


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, logits)
    return grad


def closed_form_gradient(logits: Tensor, targets: Tensor, prior: Shaped) -> Tensor:
    """-pi_j (r_j - sum_a pi_a r_a), written with the paper's rewards and nothing of the implementation."""
    pi = logits.detach().softmax(-1)
    pi_x = pi.gather(-1, targets[:, None])
    factor = (1 - pi_x) ** prior.beta
    r_x = factor / pi_x if prior.form == "product" else (1 / pi_x) ** factor
    rewards = torch.zeros_like(pi)
    if prior.rank_aware:
        top = pi.topk(min(prior.k, pi.shape[-1]), -1).indices
        rewards += prior.lambda_tail
        rewards.scatter_(-1, top, prior.lambda_head)
    rewards.scatter_(-1, targets[:, None], r_x)
    baseline = (pi * rewards).sum(-1, keepdim=True)
    return -pi * (rewards - baseline)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", ["product", "power"])
def test_without_shaping_it_is_cross_entropy_in_value_and_gradient(reduction: str, form: str) -> None:
    logits, targets = random_batch(64, 23)
    targets[::5] = -100
    ours = objective_loss(logits, targets, Shaped(form=form), reduction=reduction)  # type: ignore[arg-type]
    theirs = F.cross_entropy(logits, targets, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(ours.sum(), logits), gradient(theirs.sum(), logits), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_autograd_equals_the_closed_form_gradient(prior: Shaped) -> None:
    logits, targets = random_batch(200, 17)
    ours = gradient(objective_loss(logits, targets, prior, reduction="sum"), logits)
    torch.testing.assert_close(ours, closed_form_gradient(logits, targets, prior), rtol=0, atol=1e-10)


@settings(max_examples=60)
@given(prior=priors, seed=st.integers(0, 2**16), vocab=st.integers(2, 40), scale=st.floats(0.01, 5))
def test_closed_form_holds_for_any_prior_and_vocabulary(prior: Shaped, seed: int, vocab: int, scale: float) -> None:
    logits, targets = random_batch(6, vocab, seed, scale)
    ours = gradient(objective_loss(logits, targets, prior, reduction="sum"), logits)
    expected = closed_form_gradient(logits, targets, prior)
    # Where pi_x > 1 - 1e-6 the documented bound on 1 - pi_x replaces the paper's value.
    pi_x = logits.detach().softmax(-1).gather(-1, targets[:, None])
    exact = (1 - pi_x) > 2 * MIN_COMPLEMENT
    torch.testing.assert_close(ours * exact, expected * exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prior", [PRIORS[0], PRIORS[3], PRIORS[6]], ids=repr)
def test_sampled_policy_gradient_agrees_within_its_error(prior: Shaped) -> None:
    """REINFORCE, E_a[r(a) grad log pi(a)], over 400,000 sampled actions of one context."""
    logits, targets = random_batch(1, 8, seed=3, scale=1.0)
    pi = logits.detach().softmax(-1)[0]
    draws = torch.multinomial(pi, 400_000, replacement=True, generator=torch.Generator().manual_seed(1))
    x = int(targets[0])
    factor = (1 - pi[x]) ** prior.beta
    rewards = torch.zeros(8, dtype=torch.float64)
    if prior.rank_aware:
        rewards += prior.lambda_tail
        rewards[pi.topk(prior.k).indices] = prior.lambda_head
    rewards[x] = factor / pi[x] if prior.form == "product" else (1 / pi[x]) ** factor
    scores = rewards[draws][:, None] * (F.one_hot(draws, 8).double() - pi)  # r * grad_logits log pi(a)
    estimate, error = scores.mean(0), scores.std(0) / math.sqrt(len(draws))
    ours = -gradient(objective_loss(logits, targets, prior, reduction="sum"), logits)[0]
    assert ((estimate - ours).abs() < 4.5 * error).all()


def test_weights_are_those_of_the_two_forms() -> None:
    pi = torch.tensor([0.01, 0.5, 0.9, 0.99], dtype=torch.float64)
    product = Shaped(beta=-0.25).weight(pi.log())
    power = Shaped(beta=0.5, form="power").weight(pi.log())
    torch.testing.assert_close(product, (1 - pi) ** -0.25)
    torch.testing.assert_close(power, pi ** (1 - (1 - pi) ** 0.5))


def test_precision_pays_peaked_contexts_more_and_diversity_less() -> None:
    log_pi = torch.tensor([0.5, 0.9, 0.99]).log()
    assert (Shaped(beta=-0.25).weight(log_pi).diff() > 0).all()
    assert (Shaped(beta=0.5).weight(log_pi).diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_certain_targets_stay_finite(prior: Shaped, dtype: torch.dtype) -> None:
    logits = torch.tensor([[60.0, 0, 0, 0], [0, 60.0, 0, 0], [-60.0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    loss = objective_loss(logits, torch.tensor([0, 1, 0]), prior, reduction="sum")
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, logits)).all()


def test_the_weight_of_a_certain_target_is_capped_by_the_documented_bound() -> None:
    weight = Shaped(beta=-0.25).weight(torch.tensor([0.0, -1e-9]))
    torch.testing.assert_close(weight, torch.full((2,), MIN_COMPLEMENT**-0.25))


def test_bfloat16_logits_are_raised_to_float32() -> None:
    logits, targets = random_batch(32, 50)
    half = logits.detach().bfloat16()
    ours = objective_loss(half, targets, PRIORS[6])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, objective_loss(half.float(), targets, PRIORS[6]))


@pytest.mark.parametrize("prior", [CE, *PRIORS], ids=repr)
def test_ignored_rows_add_nothing(prior: Shaped) -> None:
    logits, targets = random_batch(12, 9)
    masked = targets.clone()
    masked[4:] = -100
    ours = objective_loss(logits, masked, prior)
    torch.testing.assert_close(ours, objective_loss(logits[:4], targets[:4], prior))
    assert (gradient(ours, logits)[4:] == 0).all()


@pytest.mark.parametrize("prior", [CE, *PRIORS], ids=repr)
def test_a_batch_of_ignored_rows_is_zero_with_zero_gradient(prior: Shaped) -> None:
    logits, targets = random_batch(5, 9)
    loss = objective_loss(logits, torch.full_like(targets, -100), prior)
    assert loss.item() == 0
    assert (gradient(loss, logits) == 0).all()


def test_k_beyond_the_vocabulary_leaves_no_tail() -> None:
    logits, targets = random_batch(8, 6)
    with_tail = objective_loss(logits, targets, Shaped(lambda_tail=-5.0, k=6))
    torch.testing.assert_close(with_tail, objective_loss(logits, targets, CE))
    torch.testing.assert_close(
        objective_loss(logits, targets, Shaped(lambda_head=0.3, k=6)), objective_loss(logits, targets, Shaped(lambda_head=0.3, k=1000))
    )


def test_the_target_counts_neither_in_the_head_nor_in_the_tail() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    pi = logits.softmax(-1)[0]
    for target, head, tail in [(0, pi[1], pi[2] + pi[3]), (3, pi[0] + pi[1], pi[2])]:
        found = distribution_statistics(logits, torch.tensor([target]), k=2)
        torch.testing.assert_close(found["head_mass"][0], head.float())
        torch.testing.assert_close(found["tail_mass"][0], tail.float())


def test_ties_at_the_edge_all_belong_to_the_head() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert head_mask(logits, 2).tolist() == [[True, True, True, True, False]]


def test_statistics_are_entropy_and_cross_entropy() -> None:
    logits, targets = random_batch(20, 11)
    found = distribution_statistics(logits, targets, k=3)
    torch.testing.assert_close(found["entropy"], torch.distributions.Categorical(logits=logits.float()).entropy())
    torch.testing.assert_close(found["cross_entropy"], F.cross_entropy(logits.float(), targets, reduction="none"))


def test_an_unknown_reduction_is_refused() -> None:
    logits, targets = random_batch(2, 3)
    with pytest.raises(ValueError, match="expected 'mean', 'sum' or 'none'"):
        objective_loss(logits, targets, CE, reduction="average")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "beta", "expected"),
    [("product", 0.0, 0.611), ("product", -0.25, 0.556), ("product", 0.5, 0.655), ("power", -0.25, 0.609), ("power", 0.5, 0.604)],
)
def test_training_one_context_ends_at_the_stationary_entropy(form: Form, beta: float, expected: float) -> None:
    """A context whose next token is drawn (.7, .3): where gradient descent on the objective settles."""
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    prior = Shaped(beta=beta, form=form)
    for _ in range(400):
        losses = objective_loss(logits.expand(2, 2), torch.tensor([0, 1]), prior, reduction="none")
        loss = 0.7 * losses[0] + 0.3 * losses[1]
        logits = (logits - 0.5 * gradient(loss, logits)).detach().requires_grad_()
    entropy = torch.distributions.Categorical(logits=logits.detach()).entropy().item()
    assert entropy == pytest.approx(expected, abs=6e-4)


def test_product_is_focal_loss_with_its_factor_held_constant() -> None:
    """docs/objective.md names both weights at beta = .5 and pi = .5."""
    log_prob = torch.tensor(0.5, dtype=torch.float64).log().requires_grad_()
    factor = (1 - log_prob.exp()) ** 0.5
    (focal,) = torch.autograd.grad(-factor * log_prob, log_prob, retain_graph=True)
    (held,) = torch.autograd.grad(-factor.detach() * log_prob, log_prob)
    assert (round(-focal.item(), 2), round(-held.item(), 2)) == (0.95, 0.71)
    assert Shaped(beta=0.5).weight(log_prob.detach()).item() == pytest.approx(-held.item())
