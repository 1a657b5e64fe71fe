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
from stages.objective.entropy import Entropy
from stages.objective.gem import Gem
from stages.objective.shaped import Shaped
from stages.objective.smoothing import Smoothing
from stages.objective import row_step
from stages.objective import row_step_triton
from stages.objective.fused import fused_loss_and_statistics

generator = torch.Generator().manual_seed(0)
row_step_triton._BLOCK = 64
for vocab, dtype, everything in itertools.product((1, 63, 64, 200), (torch.float32, torch.bfloat16), (True, False)):
    logits = (torch.randn(5, vocab, generator=generator) * 4).to(dtype)
    threshold = row_step.kth_largest(logits, 7) if everything else None
    sharpness = torch.full((5, 1), 1.4) if everything else None
    expected, found = (passes.row_sums(logits, threshold, sharpness, everything) for passes in (row_step, row_step_triton))
    for name in expected._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5, msg=f"{name}, {vocab}, {dtype}")
    numbers = torch.randn(len(row_step.Gradient._fields), 5, 1, generator=generator).unbind()
    gradient = row_step.Gradient(expected.top + expected.total.log(), *numbers[1:])
    if not everything:
        gradient = row_step.Gradient(*gradient[:3], None, None, None, None, None)
    theirs, ours = logits.clone(), logits.clone()
    row_step.write_gradient_(theirs, threshold, gradient)
    row_step_triton.write_gradient_(ours, threshold, gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)

hidden, weight = torch.randn(20, 8, generator=generator).requires_grad_(), torch.randn(150, 8, generator=generator).requires_grad_()
targets = torch.randint(0, 150, (20,), generator=generator)
for objective in (Shaped(beta=-0.25, lambda_head=0.1, lambda_tail=-0.2, k=5), Gem(), Entropy(gate=0.5), Smoothing()):
    results = []
    for passes in (row_step.EAGER, row_step_triton.PASSES):
        loss, statistics = fused_loss_and_statistics(hidden, weight, targets, objective, head_k=9, chunk_tokens=6, passes=passes)
        results.append((loss, statistics, *torch.autograd.grad(loss, (hidden, weight))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
"""


def test_the_kernels_equal_the_eager_passes_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


_COMPILE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stages.objective import row_step_triton

for target, kernel, logits in itertools.product((80, 90, 100), ("_row_sums_kernel", "_write_gradient_kernel"), ("*fp32", "*bf16")):
    function = getattr(row_step_triton, kernel)
    for present in (True, False):
        constants = {name: present for name in function.arg_names if name.startswith("has_")} | {"block": row_step_triton._BLOCK}
        types = {"logits": logits, "vocab": "i32", "stride": "i32"}
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in function.arg_names}
        built = triton.compile(ASTSource(function, signature, constants), target=GPUTarget("cuda", target, 32))
        assert f".target sm_{target}" in built.asm["ptx"]
        assert built.asm["cubin"]
"""


def test_the_kernels_compile_for_three_generations_of_gpus_without_one() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _COMPILE], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
