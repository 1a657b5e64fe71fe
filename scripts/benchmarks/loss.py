"""Time and memory of the shaped loss beside cross-entropy, forward and backward through the output layer, in one run.

    .venv/bin/python scripts/benchmarks/loss.py --vocab 32000 --dtype float32 --json loss.json

Times are medians of interleaved repetitions in one process; extra memory is the growth of the peak in a process of its own per variant.
Ratios are to "fused cross-entropy": the same fused code with all shaping off.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.config import Prior
from stages.pretrain.fused import fused_linear_shaped_loss
from stages.pretrain.objective import shaped_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

BETA_ONLY = Prior(beta=-0.25)
RANK_AWARE = Prior(lambda_tail=-0.1, k=100)
BASELINE = "fused cross-entropy"
VARIANTS: dict[str, Loss] = {
    "plain cross-entropy": lambda h, w, t: F.cross_entropy((h @ w.T).float(), t),
    "plain shaped, rank-aware": lambda h, w, t: shaped_loss(h @ w.T, t, RANK_AWARE),
    BASELINE: lambda h, w, t: fused_linear_shaped_loss(h, w, t, Prior()),
    "fused shaped, beta only": lambda h, w, t: fused_linear_shaped_loss(h, w, t, BETA_ONLY),
    "fused shaped, rank-aware": lambda h, w, t: fused_linear_shaped_loss(h, w, t, RANK_AWARE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--memory-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(_extra_memory(VARIANTS[arguments.memory_of], arguments))
        return
    seconds = _times(arguments)
    rows = [
        {
            "variant": name,
            "seconds": seconds[name],
            "time_ratio": seconds[name] / seconds[BASELINE],
            "extra_mib": _extra_memory_in_own_process(name),
        }
        for name in VARIANTS
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{arguments.tokens} tokens, width {arguments.width}, vocabulary {arguments.vocab}, {arguments.dtype}, {device}")
    print(f"{'variant':28}{'seconds':>10}{'ratio':>8}{'extra MiB':>12}")
    for row in rows:
        print(f"{row['variant']:28}{row['seconds']:10.4f}{row['time_ratio']:8.2f}{row['extra_mib']:12.0f}")
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("tokens", "width", "vocab", "dtype", "repeats")}
        arguments.json.write_text(json.dumps({"device": device, **settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, arguments.dtype)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(arguments.tokens, arguments.width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(arguments.vocab, arguments.width, generator=generator) * 0.05).to(device, dtype).requires_grad_()
    return hidden, weight, torch.randint(0, arguments.vocab, (arguments.tokens,), generator=generator).to(device)


def _step(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    loss(hidden, weight, targets).backward()
    hidden.grad = weight.grad = None


def _times(arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of forward + backward per variant; one repetition of every variant before the next of any."""
    inputs = _inputs(arguments)
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for repeat in range(arguments.repeats + 2):  # the first two compile and warm up
        for name, loss in VARIANTS.items():
            _synchronise()
            started = time.perf_counter()
            _step(loss, *inputs)
            _synchronise()
            if repeat >= 2:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _extra_memory(loss: Loss, arguments: argparse.Namespace) -> float:
    """MiB by which one step raises the peak over what inputs and a small step (compilers, libraries) had taken."""
    hidden, weight, targets = _inputs(arguments)
    few = min(64, arguments.tokens)
    _step(loss, hidden[:few].detach().requires_grad_(), weight[:, :].detach().requires_grad_(), targets[:few])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _step(loss, hidden, weight, targets)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _step(loss, hidden, weight, targets)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _extra_memory_in_own_process(name: str) -> float:
    done = subprocess.run([sys.executable, *sys.argv, "--memory-of", name], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
