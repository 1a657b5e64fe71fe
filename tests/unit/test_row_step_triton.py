"""The Triton passes do the arithmetic of `row_step`; here in Triton's interpreter, since there need not be a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# In a process of its own: the interpreter is chosen when the kernels are defined, and for the whole process.
_SCRIPT = """
import itertools, torch
from pipeline.config.prior import Prior
from stages.objective import row_step
from stages.objective import row_step_triton
from stages.objective.fused import fused_loss_and_statistics

generator = torch.Generator().manual_seed(0)
row_step_triton._BLOCK = 64
for vocab, dtype, with_head in itertools.product((1, 63, 64, 200), (torch.float32, torch.bfloat16), (True, False)):
    logits = (torch.randn(5, vocab, generator=generator) * 4).to(dtype)
    threshold = row_step.kth_largest(logits, 7) if with_head else None
    expected, found = row_step.row_sums(logits, threshold), row_step_triton.row_sums(logits, threshold)
    for name in expected._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6, msg=f"{name}, {vocab}, {dtype}")
    log_total = expected.top + expected.total.log()
    in_head, outside = torch.randn(2, 5, 1, generator=generator)
    theirs, ours = logits.clone(), logits.clone()
    row_step.write_gradient_(theirs, log_total, threshold, in_head, outside)
    row_step_triton.write_gradient_(ours, log_total, threshold, in_head, outside)
    torch.testing.assert_close(ours, theirs, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)

hidden, weight = torch.randn(20, 8, generator=generator).requires_grad_(), torch.randn(150, 8, generator=generator).requires_grad_()
targets = torch.randint(0, 150, (20,), generator=generator)
results = []
for passes in (row_step.EAGER, row_step_triton.PASSES):
    prior = Prior(beta=-0.25, lambda_head=0.1, lambda_tail=-0.2, k=5)
    loss, statistics = fused_loss_and_statistics(hidden, weight, targets, prior, head_k=9, chunk_tokens=6, passes=passes)
    results.append((loss, statistics, *torch.autograd.grad(loss, (hidden, weight))))
for expected, found in zip(*results, strict=True):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
"""


def test_the_kernels_equal_the_eager_passes_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
