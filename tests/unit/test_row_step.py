"""The exact k-th largest of a row, whatever the shape; it decides which tokens belong to the head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pretrain.row_step import kth_largest


@settings(max_examples=100, deadline=None)
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
