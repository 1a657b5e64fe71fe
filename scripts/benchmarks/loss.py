"""Time and memory of the shaped loss against cross-entropy, forward and backward through the output layer, in one run.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/benchmarks/loss.py --vocab 32000 151936 --dtype float32 bfloat16 --json loss.json
    OMP_NUM_THREADS=1 .venv/bin/python scripts/benchmarks/loss.py --vocab 256 2048 --head-k 20 --width 128 --repeats 50

Times are medians of interleaved repetitions in one process; on a CPU, of processor time, so that a busy machine hardly matters. Extra
memory is how far one step raises the peak above its inputs, after a small step has loaded what the variant loads; on a CPU every
variant is measured in its own process. "Fused cross-entropy" is the fused code with all shaping off, "statistics" adds what the
pre-training stage logs. The floor is three matrix products at the rate that a large square one reaches in the same dtype. A library
that is not installed, or does not support this device, is left out and named.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import re
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

from stages.objective.coverage import Coverage
from stages.objective.deformed import Deformed
from stages.objective.entropy import Entropy
from stages.objective.focal import Focal
from stages.objective.fused import fused_linear_loss, fused_loss_and_statistics
from stages.objective.gem import Gem
from stages.objective.reference import objective_loss
from stages.objective.shaped import Shaped
from stages.objective.smoothing import Smoothing

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

ON_GPU = torch.cuda.is_available()
PLAIN, FUSED = "plain cross-entropy", "fused cross-entropy"
BETA_ONLY = Shaped(beta=-0.25)


def variants(head_k: int) -> dict[str, Loss]:
    """Name -> loss(hidden, weight, targets), for what this machine can run."""
    rank_aware = Shaped(lambda_tail=-0.1, k=head_k)
    found: dict[str, Loss] = {
        PLAIN: lambda h, w, t: F.cross_entropy(h @ w.T, t),
        "plain cross-entropy, float32 logits": lambda h, w, t: F.cross_entropy((h @ w.T).float(), t),
        "torch's linear_cross_entropy, chunked": lambda h, w, t: F.linear_cross_entropy(
            h, w, t, options=torch.nn.LinearCrossEntropyOptions()
        ),
        "plain shaped, rank-aware": lambda h, w, t: objective_loss(h @ w.T, t, rank_aware),
        FUSED: lambda h, w, t: fused_linear_loss(h, w, t, Shaped()),
        "fused shaped, beta only": lambda h, w, t: fused_linear_loss(h, w, t, BETA_ONLY),
        "fused shaped, rank-aware": lambda h, w, t: fused_linear_loss(h, w, t, rank_aware),
        "fused shaped, rank-aware, statistics": lambda h, w, t: _with_statistics(h, w, t, rank_aware, head_k),
        "fused cross-entropy, statistics": lambda h, w, t: _with_statistics(h, w, t, Shaped(), head_k),
    }
    family = {
        "focal": Focal(),
        "deformed": Deformed(),
        "GEM": Gem(),
        "entropy": Entropy(),
        "entropy, gated": Entropy(gate=0.9),
        "smoothing": Smoothing(),
        "cross-entropy, z-loss": Shaped(z_loss=1e-4),
    }
    found |= {f"fused {name}": functools.partial(fused_linear_loss, objective=objective) for name, objective in family.items()}
    found["fused coverage, responses of 127"] = lambda h, w, t: fused_linear_loss(h, w, _in_responses(t, 127), Coverage())
    try:
        from cut_cross_entropy import linear_cross_entropy

        implementation = "cce" if ON_GPU else "torch_compile"
        found[f"cut-cross-entropy ({implementation})"] = lambda h, w, t: linear_cross_entropy(h, w, t, impl=implementation)
    except ImportError as error:
        print(f"left out: cut-cross-entropy ({error})", file=sys.stderr)
    if not ON_GPU:
        print("left out: Liger, our Triton passes (no GPU)", file=sys.stderr)
        return found
    from stages.objective.row_step_triton import PASSES

    found["fused shaped, rank-aware, Triton"] = lambda h, w, t: fused_loss_and_statistics(
        h, w, t, rank_aware, head_k=0, divisor=len(t), passes=PASSES
    )[0]
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["Liger fused cross-entropy"] = lambda h, w, t: liger(w, h, t)
    except ImportError as error:
        print(f"left out: Liger ({error})", file=sys.stderr)
    return found


def _in_responses(targets: Tensor, size: int) -> Tensor:
    """Targets of which each `size` are followed by one that does not count."""
    return targets.masked_fill(torch.arange(len(targets), device=targets.device) % (size + 1) == size, -100)


def _with_statistics(hidden: Tensor, weight: Tensor, targets: Tensor, prior: Shaped, head_k: int) -> Tensor:
    return fused_loss_and_statistics(hidden, weight, targets, prior, head_k=head_k, divisor=len(targets))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--head-k", type=int, default=100, help="size of the head, of priors and of statistics")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--only", default="", help="regular expression: these variants, and the two cross-entropies they are compared with"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    losses = variants(arguments.head_k)
    if arguments.memory_of:
        print(_extra_memory(losses[arguments.memory_of], *_inputs(arguments, arguments.vocab[0], arguments.dtype[0])))
        return
    losses = {name: loss for name, loss in losses.items() if name in (PLAIN, FUSED) or re.search(arguments.only, name)}
    device = torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} thread(s)"
    sizes = {"tokens": arguments.tokens, "width": arguments.width, "head_k": arguments.head_k}
    settings = {"device": device, "torch": torch.__version__} | sizes
    rows = []
    for vocab in arguments.vocab:
        for dtype in arguments.dtype:
            measured = _measure(losses, arguments, vocab, dtype)
            rows += measured
            _print_table(f"{arguments.tokens} tokens, width {arguments.width}, vocabulary {vocab}, {dtype}, {device}", measured)
            floor = 6 * arguments.tokens * arguments.width * vocab / _matmul_rate(dtype)
            rows.append({"vocab": vocab, "dtype": dtype, "variant": "floor: three matrix products", "seconds": floor})
            print(f"{'floor: three matrix products':38}{floor:9.4f}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _matmul_rate(dtype: str) -> float:
    """Operations per second of a square product in this dtype, large enough to fill the device."""
    size = 8192 if ON_GPU else 1024
    left, right = torch.randn(2, size, size, device="cuda" if ON_GPU else "cpu", dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(10):
        _synchronise()
        started = _now()
        left @ right
        _synchronise()
        best = min(best, _now() - started)
    return 2 * size**3 / best


def _measure(losses: dict[str, Loss], arguments: argparse.Namespace, vocab: int, dtype: str) -> list[dict[str, str | float]]:
    seconds = _times(losses, arguments.repeats, *_inputs(arguments, vocab, dtype))
    if ON_GPU:  # torch counts what is allocated there; starting a process for each takes minutes
        memory = {name: _extra_memory(loss, *_inputs(arguments, vocab, dtype)) for name, loss in losses.items()}
    else:
        memory = {name: _extra_memory_in_own_process(name, arguments, vocab, dtype) for name in losses}
    return [
        {
            "vocab": vocab,
            "dtype": dtype,
            "variant": name,
            "seconds": seconds[name],
            "to_fused": seconds[name] / seconds[FUSED],
            "to_plain": seconds[name] / seconds[PLAIN],
            "extra_mib": memory[name],
            "memory_to_plain": memory[name] / memory[PLAIN],
        }
        for name in losses
    ]


def _print_table(title: str, rows: list[dict[str, str | float]]) -> None:
    print(f"\n{title}\n{'':38}{'seconds':>9}{'x fused CE':>12}{'x plain CE':>12}{'extra MiB':>11}{'x plain CE':>12}")
    for row in rows:
        print(
            f"{row['variant']:38}{row['seconds']:9.4f}{row['to_fused']:12.2f}{row['to_plain']:12.2f}"
            f"{row['extra_mib']:11.0f}{row['memory_to_plain']:12.2f}",
            flush=True,
        )


def _inputs(arguments: argparse.Namespace, vocab: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and weight that give logits of standard deviation 2, as a trained model's are."""
    device, generator = "cuda" if ON_GPU else "cpu", torch.Generator().manual_seed(0)
    hidden = torch.randn(arguments.tokens, arguments.width, generator=generator)
    weight = torch.randn(vocab, arguments.width, generator=generator) * 2 / arguments.width**0.5
    targets = torch.randint(0, vocab, (arguments.tokens,), generator=generator)
    parameters = [tensor.to(device, getattr(torch, dtype)).requires_grad_() for tensor in (hidden, weight)]
    return parameters[0], parameters[1], targets.to(device)


def _step(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    loss(hidden, weight, targets).backward()
    hidden.grad = weight.grad = None


def _times(losses: dict[str, Loss], repeats: int, *inputs: Tensor) -> dict[str, float]:
    """Median seconds of forward + backward per variant, one repetition of each in turn.

    The order changes each time: what runs after a variant that fills the cache is slower, by up to a tenth.
    """
    taken: dict[str, list[float]] = {name: [] for name in losses}
    shuffle = random.Random(0).shuffle
    for repeat in range(repeats + 1):  # the first compiles and warms up
        shuffle(turns := list(losses.items()))
        for name, loss in turns:
            _synchronise()
            started = _now()
            _step(loss, *inputs)
            _synchronise()
            if repeat:
                taken[name].append(_now() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def _now() -> float:
    return time.perf_counter() if ON_GPU else time.process_time()


def _synchronise() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _extra_memory(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """MiB by which one step raises peak memory above what was held before."""
    small = (hidden[:64, :16].detach().requires_grad_(), weight[:8192, :16].detach().requires_grad_(), targets[:64] % 8192)
    _step(loss, *small)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        _step(loss, hidden, weight, targets)
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    # Not getrusage: its peak survives fork and exec, and would be the parent's.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_peak()
    _step(loss, hidden, weight, targets)
    return _resident_peak() - before


def _resident_peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("/proc/self/status has no VmHWM; memory on CPU is measured on Linux only")
    return int(found[1]) / 1024


def _extra_memory_in_own_process(name: str, arguments: argparse.Namespace, vocab: int, dtype: str) -> float:
    options = ["--vocab", str(vocab), "--dtype", dtype, "--tokens", str(arguments.tokens), "--width", str(arguments.width)]
    options += ["--head-k", str(arguments.head_k)]
    command = [sys.executable, __file__, *options, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"measuring the memory of {name} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
