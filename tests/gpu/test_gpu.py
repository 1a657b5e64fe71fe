"""What only a GPU can show: `scripts/on-gpu` runs these; elsewhere each is skipped by name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.objective import row_step_triton
from stages.objective.entropy import Entropy
from stages.objective.fused import fused_loss_and_statistics
from stages.objective.protocol import Objective
from stages.objective.reference import objective_loss
from stages.objective.row_step import EAGER, passes_for
from stages.objective.shaped import Shaped
from tests.conftest import FinishedSweep

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("objective", [Shaped(), Shaped(beta=-0.25, lambda_tail=-0.1, k=20), Entropy(gate=0.5)])
@pytest.mark.parametrize("passes", ["eager", "compiled", "triton"])
def test_the_fused_loss_equals_float64(passes: str, objective: Objective, dtype: torch.dtype, off: float) -> None:
    """Value and gradients, relative to their size, over several chunks."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5000, 64, generator=generator), torch.randn(3000, 64, generator=generator) / 4
    hidden, weight = (one.to("cuda", dtype).requires_grad_() for one in (hidden, weight))
    targets = torch.randint(0, 3000, (5000,), generator=generator).cuda()
    chosen = {"eager": EAGER, "compiled": passes_for(3000), "triton": row_step_triton.PASSES}[passes]
    loss, _ = fused_loss_and_statistics(hidden, weight, targets, objective, head_k=5, divisor=5000, chunk_tokens=2000, passes=chosen)
    exact = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    expected = objective_loss(exact[0] @ exact[1].T, targets, objective)
    found = torch.autograd.grad(loss, (hidden, weight))
    for ours, theirs in zip((loss, *found), (expected, *torch.autograd.grad(expected, exact)), strict=True):
        assert (ours.double() - theirs).norm() <= off * theirs.norm()


def test_the_engine_s_log_probs_in_float32_are_those_of_transformers(smoke: FinishedSweep) -> None:
    """vLLM's attention would multiply in TF32 unless told otherwise; then they differ by .001 and more."""
    from stages import engine as engines

    engines.prepare(threads=1)
    from vllm import SamplingParams, TokensPrompt

    export = smoke.folder("pretrain").export
    engine = engines.build_engine(export, dtype="float32", seed=0, max_tokens=65, kv_cache_gib=1, gpu_memory_share=0.3)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).cuda().eval()
    ids = torch.randint(0, model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    results = engine.generate([TokensPrompt(prompt_token_ids=row.tolist()) for row in ids], sampling, use_tqdm=False)
    with torch.inference_mode():
        log_probs = model(input_ids=ids.cuda()).logits.log_softmax(-1).cpu()[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    for row, result, expected in zip(ids, results, log_probs, strict=True):
        found = [entry[int(token)].logprob for token, entry in zip(row[1:], result.prompt_logprobs[1:], strict=True)]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-4)
