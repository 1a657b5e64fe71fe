"""What replaces DeepSpeed's methods against what it replaces, in real training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

METHODS = ("clip_fp32_gradients", "zero_grad", "train", "buffered_allreduce_fallback")


@pytest.mark.parametrize("processes", [1, 2])
def test_training_without_zero_ends_with_the_same_bits_as_deepspeeds_own(processes: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, *launcher, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _compare_in_this_process() -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    from stages.training.process import prepare

    originals = {name: getattr(DeepSpeedEngine, name) for name in METHODS}
    prepare(threads=1)
    replaced = [name for name in METHODS if getattr(DeepSpeedEngine, name) is not originals[name]]
    assert replaced == list(METHODS if os.environ["WORLD_SIZE"] == "1" else METHODS[:-1])
    lean, calls = _train()
    assert all(calls.values()), calls  # else DeepSpeed goes another way now, and what replaces its method is dead
    for name, method in originals.items():
        setattr(DeepSpeedEngine, name, method)
    expected, _ = _train()
    for ours, theirs in zip(lean, expected, strict=True):
        assert torch.equal(ours, theirs)


def _train() -> tuple[list[torch.Tensor], dict[str, int]]:
    """Weights after some steps of two micro-batches, some clipped and some not, on other data at each rank; calls by method."""
    import deepspeed
    from deepspeed.runtime.engine import DeepSpeedEngine

    from pipeline.config.training import Launch
    from stages.training.process import deepspeed_config

    calls = dict.fromkeys(METHODS, 0)
    inner = {name: getattr(DeepSpeedEngine, name) for name in METHODS}

    def counting(name: str) -> object:
        def method(*arguments: object, **named: object) -> object:
            calls[name] += 1
            return inner[name](*arguments, **named)

        return method

    for name in METHODS:
        setattr(DeepSpeedEngine, name, counting(name))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 33), nn.LayerNorm(33), nn.Linear(33, 5, bias=False))
    micro_batch, accumulation = 4, 2
    settings = deepspeed_config(Launch(), "float32") | {
        "train_micro_batch_size_per_gpu": micro_batch, "gradient_accumulation_steps": accumulation, "gradient_clipping": 0.5,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), config=settings)
    data = torch.Generator().manual_seed(int(os.environ["RANK"]))
    for step in range(8):
        for _ in range(accumulation):
            engine.train()
            loss = engine(torch.randn(micro_batch, 7, generator=data)).square().mean() * (10 if step % 2 else 0.01)
            engine.backward(loss)
            engine.step()
        assert all(parameter.grad is None for parameter in model.parameters())
    engine.eval()
    assert not any(module.training for module in model.modules())
    engine.train()
    assert all(module.training for module in model.modules())
    for name, method in inner.items():
        setattr(DeepSpeedEngine, name, method)
    return [parameter.detach().clone() for parameter in model.parameters()], calls


if __name__ == "__main__":
    _compare_in_this_process()
