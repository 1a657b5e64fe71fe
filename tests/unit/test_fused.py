"""The fused loss equals the reference in value, gradients and statistics, whatever the shapes, and never holds all logits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from stages.objective.coverage import Coverage
from stages.objective.entropy import Entropy
from stages.objective.fused import fused_linear_loss, fused_loss_and_statistics
from stages.objective.gem import Gem
from stages.objective.protocol import Objective, response_numbers
from stages.objective.reference import distribution_statistics, objective_loss
from stages.objective.row_step import EAGER, STATISTICS, passes_for
from stages.objective.shaped import Shaped
from stages.objective.smoothing import Smoothing
from tests.unit.test_objective import CE, PRIORS, priors
from tests.unit.test_objectives import FAMILY, NEUTRAL, objectives

ROOT = Path(__file__).parents[2]
ALL: list[Objective] = [CE, *PRIORS, *FAMILY, *NEUTRAL[1:]]


def batch(
    tokens: int, vocab: int, width: int, *, seed: int = 0, masked: float = 0.25, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64) * 1.5 / width**0.5
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < masked] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, prior: Objective) -> tuple[Tensor, ...]:
    loss = objective_loss(hidden @ weight.T, targets, prior)
    return loss, *torch.autograd.grad(loss, (hidden, weight))


def ours(hidden: Tensor, weight: Tensor, targets: Tensor, prior: Objective, chunk: int | None = None) -> tuple[Tensor, ...]:
    loss = fused_linear_loss(hidden, weight, targets, prior, chunk_tokens=chunk)
    return loss, *torch.autograd.grad(loss, (hidden, weight))


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


@settings(max_examples=80)
@given(
    prior=st.one_of(st.sampled_from(ALL), priors, objectives),
    tokens=st.integers(1, 40),
    vocab=st.integers(2, 60),
    width=st.integers(1, 12),
    chunk=st.one_of(st.none(), st.integers(1, 50)),
    masked=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_it_equals_the_reference_for_any_shape_prior_mask_and_chunk(
    prior: Objective, tokens: int, vocab: int, width: int, chunk: int | None, masked: float, seed: int
) -> None:
    exact = batch(tokens, vocab, width, seed=seed, masked=masked, dtype=torch.float64)
    for found, expected in zip(ours(*exact, prior, chunk), reference(*exact, prior), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("prior", ALL, ids=repr)
def test_float32_agrees_to_a_hundred_thousandth(prior: Objective) -> None:
    single = batch(64, 500, 32)
    exact = reference(*batch(64, 500, 32, dtype=torch.float64), prior)
    for found, expected in zip(ours(*single, prior, chunk=10), exact, strict=True):
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("prior", ALL, ids=repr)
def test_bfloat16_is_no_worse_than_the_plain_loss_in_bfloat16(prior: Objective) -> None:
    """With several chunks on CPU, products are rounded each before their float32 sum is rounded again: sqrt(2) at most."""
    half = batch(256, 300, 64, dtype=torch.bfloat16)
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in half[:2])
    exact = reference(hidden, weight, half[2], prior)
    plain, found, chunked = reference(*half, prior), ours(*half, prior), ours(*half, prior, chunk=100)
    for name, theirs, our, split, expected in zip(("loss", "hidden", "weight"), plain, found, chunked, exact, strict=True):
        assert relative_error(our, expected) <= 1.02 * relative_error(theirs, expected) + 1e-6, name
        assert relative_error(split, expected) <= 1.42 * relative_error(theirs, expected) + 1e-6, name


@pytest.mark.parametrize("prior", [CE, PRIORS[0], PRIORS[4], *FAMILY], ids=repr)
@pytest.mark.parametrize("head_k", [3, 7])
def test_statistics_are_those_of_the_reference(prior: Objective, head_k: int) -> None:
    hidden, weight, targets = batch(50, 40, 8)
    _, sums = fused_loss_and_statistics(hidden, weight, targets, prior, head_k=head_k, chunk_tokens=9)
    counted = targets != -100
    expected = distribution_statistics((hidden @ weight.T)[counted], targets[counted], head_k)
    pull = getattr(prior, "weight", lambda log_target: torch.full_like(log_target, 1 - getattr(prior, "epsilon", 0.0)))
    log_target = -expected["cross_entropy"]
    if prior.wants_responses:
        numbers = response_numbers(counted)[counted]
        log_target = torch.stack([log_target[numbers == number].sum() for number in numbers])
    expected["weight"] = pull(log_target)
    assert sums[0] == counted.sum()
    for name, value in zip(STATISTICS, sums[1:], strict=True):
        torch.testing.assert_close(value, expected[name].sum(), rtol=1e-4, atol=1e-5, msg=name)


def test_the_gradient_scales_with_what_comes_from_above() -> None:
    hidden, weight, targets = batch(20, 30, 8)
    once = torch.autograd.grad(fused_linear_loss(hidden, weight, targets, PRIORS[0]), (hidden, weight))
    thrice = torch.autograd.grad(3 * fused_linear_loss(hidden, weight, targets, PRIORS[0]), (hidden, weight))
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(three, 3 * one)


def test_only_the_gradients_that_are_wanted_are_computed() -> None:
    hidden, weight, targets = batch(20, 30, 8)
    loss = fused_linear_loss(hidden, weight.detach(), targets, PRIORS[6])
    expected = reference(hidden, weight, targets, PRIORS[6])
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], expected[1])
    with torch.no_grad():
        torch.testing.assert_close(fused_linear_loss(hidden, weight, targets, PRIORS[6]), expected[0])


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


def test_logits_are_never_whole_in_memory() -> None:
    tokens, vocab, width = 512, 1000, 4
    hidden, weight, targets = batch(tokens, vocab, width)
    with LargestTensor() as fused_largest:
        fused_linear_loss(hidden, weight, targets, PRIORS[6], chunk_tokens=16).backward()
    with LargestTensor() as plain_largest:
        objective_loss(hidden @ weight.T, targets, PRIORS[6]).backward()
    assert fused_largest.elements == 16 * vocab
    assert plain_largest.elements == tokens * vocab


def test_chunks_of_whole_responses_hold_no_more_rows_than_asked_for_unless_one_is_longer() -> None:
    hidden, weight, targets = batch(100, 1000, 4, masked=0)
    targets[9::10] = -100
    for chunk, rows in ((16, 9), (18, 18), (5, 9)):
        with LargestTensor() as largest:
            fused_linear_loss(hidden, weight, targets, Coverage(), chunk_tokens=chunk).backward()
        assert largest.elements == rows * 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "prior", [PRIORS[0], Shaped(beta=-0.25, lambda_tail=-0.1, k=20), Gem(z_loss=1e-3), Entropy(gate=0.6), Smoothing()], ids=repr
)
def test_compiled_passes_equal_the_eager_ones(prior: Objective, dtype: torch.dtype) -> None:
    vocab = 2048
    assert passes_for(vocab) is not EAGER
    assert passes_for(vocab - 1) is EAGER
    results = []
    for passes in (passes_for(vocab), EAGER):
        inputs = batch(24, vocab, 8, dtype=dtype)
        loss, sums = fused_loss_and_statistics(*inputs, prior, head_k=20, chunk_tokens=9, passes=passes)
        results.append((loss, sums, *torch.autograd.grad(loss, inputs[:2])))
    for compiled, eager in zip(*results, strict=True):
        assert relative_error(compiled, eager.double()) < (1e-5 if dtype == torch.float32 else 1e-3)


def test_without_a_compiler_the_passes_run_eagerly_and_say_so() -> None:
    script = """
import torch, warnings
from stages.objective.shaped import Shaped
from stages.objective.fused import fused_linear_loss
from stages.objective.reference import objective_loss
hidden, weight = torch.randn(4, 8), torch.randn(8192, 8)
targets = torch.arange(4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loss = fused_linear_loss(hidden, weight, targets, Shaped(beta=0.5))
torch.testing.assert_close(loss, objective_loss(hidden @ weight.T, targets, Shaped(beta=0.5)))
assert sum("the fused loss runs uncompiled" in str(warning.message) for warning in caught) == 1, caught
"""
    missing = {"CXX": "/nowhere/no-compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | missing, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_activation_checkpointing_around_the_loss_changes_nothing() -> None:
    hidden, weight, targets = batch(20, 30, 8)
    loss = checkpoint(fused_linear_loss, hidden, weight, targets, PRIORS[6], use_reentrant=False)
    for found, expected in zip(torch.autograd.grad(loss, (hidden, weight)), ours(hidden, weight, targets, PRIORS[6])[1:], strict=True):
        torch.testing.assert_close(found, expected)


def test_autocast_is_followed_and_gradients_come_back_in_the_parameters_dtype() -> None:
    hidden, weight, targets = batch(64, 50, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(hidden, weight, targets, PRIORS[0])
    low_hidden, low_weight = (tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight))
    for our, expected in zip(found, ours(low_hidden, low_weight, targets, PRIORS[0]), strict=True):
        assert our.dtype == torch.float32
        torch.testing.assert_close(our, expected.float())


def test_a_second_backward_is_refused_instead_of_wrong() -> None:
    hidden, weight, targets = batch(20, 30, 8)
    loss = fused_linear_loss(hidden, weight, targets, CE)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"reduction": "none"}, "expected 'mean' or 'sum'"),
        ({"targets": torch.zeros(3, dtype=torch.long)}, r"got \(5, 2\), \(4, 2\) and \(3,\)"),
        ({"hidden": torch.zeros(5, 2).bfloat16()}, "hidden is torch.bfloat16 and weight torch.float32"),
        ({"hidden": torch.zeros(5, 2).half(), "weight": torch.zeros(4, 2).half()}, "float16 would lose gradients"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {
        "hidden": torch.zeros(5, 2),
        "weight": torch.zeros(4, 2),
        "targets": torch.zeros(5, dtype=torch.long),
        "objective": CE,
    }
    with pytest.raises(ValueError, match=message):
        fused_linear_loss(**(call | arguments))
