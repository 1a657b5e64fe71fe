"""The exact k-th largest of a row, whatever the shape; it decides which tokens belong to the head. Passes in blocks of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.objective.row_step import EAGER, Gradient, kth_largest, row_sums, write_gradient_


@settings(max_examples=100)
@given(
    rows=st.integers(1, 4),
    vocab=st.integers(1, 3000),
    k=st.integers(1, 120),
    distinct=st.sampled_from([1, 3, 50, 10**6]),
    seed=st.integers(0, 2**16),
)
def test_it_equals_a_full_sort_ties_included(rows: int, vocab: int, k: int, distinct: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-distinct, distinct, (rows, vocab), generator=generator).float()
    expected = logits.sort(-1, descending=True).values[:, min(k, vocab) - 1, None]
    assert torch.equal(kth_largest(logits, k), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_compares_with_its_own_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    threshold = kth_largest(logits, 10)
    assert ((logits >= threshold).sum(-1) >= 10).all()
    assert ((logits > threshold).sum(-1) < 10).all()


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("with_everything", [False, True])
def test_uncompiled_passes_take_rows_in_blocks_to_the_same_end(rows: int, with_everything: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 512, generator=generator)  # 64 rows a block
    threshold = kth_largest(logits, 7) if with_everything else None
    sharpness = torch.full((rows, 1), 1.4) if with_everything else None
    arguments = (logits, threshold, sharpness, with_everything)
    whole, blocks = row_sums(*arguments), EAGER.row_sums(*arguments)
    for of_whole, of_blocks in zip(whole, blocks, strict=True):
        torch.testing.assert_close(of_blocks, of_whole)
    numbers = [torch.randn(rows, 1, generator=generator) for _ in Gradient._fields]
    gradient = Gradient(*numbers) if with_everything else Gradient(numbers[0], numbers[1], numbers[2], None, None, None, None, None)
    expected, written = logits.clone(), logits.clone()
    write_gradient_(expected, threshold, gradient)
    EAGER.write_gradient_(written, threshold, gradient)
    torch.testing.assert_close(written, expected)
