"""Tokens per second of the real pre-training stage against a minimal PyTorch loop, on the same model, data, dtype and threads.

    .venv/bin/python scripts/benchmarks/pretrain.py --processes 1 2 --json pretrain.json
    .venv/bin/python scripts/benchmarks/pretrain.py --set model.layers=6 model.width=256 model.ffn_width=768

The stage is what a sweep runs: HF Trainer, DeepSpeed, the loss in the head, statistics, metrics file, W&B offline run, step
checkpoints. The loop is hand-written: forward, cross-entropy of the logits, backward, clip, fused AdamW, and
DistributedDataParallel over several processes; in bfloat16 AdamW keeps float32 copies of the weights, as DeepSpeed does. On a GPU it
also runs under `torch.compile`. They take turns, each run in its own process; a run's rate is the median over the intervals between
log lines, without the first. The table has medians over the turns; ratios are taken within a turn, with their range. On a CPU it also
has processor time for each token, which a busy machine hardly changes. FLOPs are those of `priorlab plan --costs`, without activation
checkpointing; the peak is that of a large matmul in the run's dtype.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.config.stages import PretrainStage
from pipeline.costs.stages import costs_of
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import StageNode, build_graph
from pipeline.run.scheduler import run
from pipeline.store.folders import Home
from scripts.benchmarks.stages import Silent

STAGE, LOOP, LOOP_OUR_LOSS, LOOP_COMPILED = "stage", "loop", "loop with the fused loss", "loop, compiled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe, as on the command line")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        _loop(**json.loads(arguments.loop.read_text(encoding="utf-8")))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    results = [_measure(arguments, processes) for processes in arguments.processes]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _measure(arguments: argparse.Namespace, processes: int) -> dict[str, Any]:
    """Run stage and loops in turns; print and return their medians."""
    log_steps = max(1, arguments.steps // 10)
    (cell,) = load_recipe(arguments.recipe, [*arguments.set, f"pretrain.launch.zero_stage={arguments.zero_stage}"]).cells()
    micro_batch = cell.recipe.pretrain.launch.micro_batch // processes  # the same global batch, split
    launch = [f"processes={processes}", f"zero_stage={arguments.zero_stage}", f"micro_batch={micro_batch}"]
    launch += [f"log_steps={log_steps}", f"save_steps={5 * log_steps}"]
    schedule = [f"pretrain.steps={arguments.steps}", "pretrain.optimizer.warmup_steps=0", "pretrain.optimizer.decay_steps=0"]
    overrides = [*arguments.set, *schedule, *(f"pretrain.launch.{setting}" for setting in launch)]
    import torch

    loops = [LOOP, LOOP_OUR_LOSS, LOOP_COMPILED] if torch.cuda.is_available() else [LOOP, LOOP_OUR_LOSS]
    rates: dict[str, list[float]] = {name: [] for name in (STAGE, *loops)}
    seconds: dict[str, list[float]] = {name: [] for name in (STAGE, *loops)}
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(arguments.repeats):
            home = Home(Path(scratch) / str(repeat))
            graph = build_graph(load_recipe(arguments.recipe, overrides).cells())
            corpus, pretrain = (next(node for node in graph.stages.values() if node.kind == kind) for kind in ("corpus", "pretrain"))
            _say(f"turn {repeat + 1} of {arguments.repeats}: corpus")
            run(graph, home, sweep="benchmark", jobs=1, view=Silent(), only=[corpus.fingerprint])
            _say(STAGE)
            before = _children_seconds()
            run(graph, home, sweep="benchmark", jobs=1, view=Silent(), only=[corpus.fingerprint, pretrain.fingerprint])
            seconds[STAGE].append(_children_seconds() - before)
            rows = [json.loads(line) for line in pretrain.folder(home).metrics.read_text(encoding="utf-8").splitlines()][1:]
            rates[STAGE].append(statistics.median(row["tokens_per_s"] for row in rows))
            waits += [row["data_wait_share"] for row in rows]
            for name in loops:
                _say(name)
                before = _children_seconds()
                loop = _run_loop(pretrain, corpus.folder(home).export, Path(scratch), name)
                seconds[name].append(_children_seconds() - before)
                rates[name].append(statistics.median(loop))
        config = pretrain.config
        assert isinstance(config, PretrainStage)
        record = corpus.folder(home).record()
        assert record is not None
        flops = _flops_per_token(config, record["metrics"]["vocabulary"], pretrain.block_size)
        peak = _peak_flops(config.pretrain.launch.threads, config.pretrain.dtype)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    wait = statistics.median(waits)
    threads = config.pretrain.launch.threads
    tokens = arguments.steps * config.pretrain.global_batch * pretrain.block_size
    print(f"\n{config.model.name} model, {processes} process(es) of {threads} thread(s), {config.pretrain.dtype}")
    print(f"{'':26}{'tokens/s':>10}{'stage is':>10}{'in turns':>14}{'utilisation':>13}{'CPU us/token':>14}")
    for name, rate in medians.items():
        ratios = [stage / other for stage, other in zip(rates[STAGE], rates[name], strict=True)]
        spread = "" if name == STAGE else f"{min(ratios):.2f} to {max(ratios):.2f}"
        used, cpu = rate * flops / (processes * peak), statistics.median(seconds[name]) / tokens * 1e6
        print(f"{name:26}{rate:10,.0f}{statistics.median(ratios):9.2f}x{spread:>14}{used:13.0%}{cpu:14.1f}")
    print(f"the stage waits for data {wait:.2%} of the time; matmul peak {peak / 1e9:.0f} GFLOP/s per process", flush=True)
    return {
        "processes": processes, "overrides": overrides, "tokens_per_s": rates, "data_wait_share": wait,
        "flops_per_token": flops, "peak_flops_per_process": peak, "cpu_seconds": seconds, "tokens": tokens,
    }  # fmt: skip


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _children_seconds() -> float:
    """Processor time of all processes that were started and have ended, start-up included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run_loop(pretrain: StageNode, corpus: Path, scratch: Path, name: str) -> list[float]:
    settings = {"config": pretrain.config.model_dump(), "corpus": str(corpus), "our_loss": name == LOOP_OUR_LOSS}
    settings["compiled"] = name == LOOP_COMPILED
    file = scratch / "loop.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    assert isinstance(pretrain.config, PretrainStage)
    processes = pretrain.config.pretrain.launch.processes
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run([sys.executable, *launcher, __file__, "--loop", str(file)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the loop failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _loop(config: dict[str, Any], corpus: str, our_loss: bool, compiled: bool) -> None:
    """The hand-written loop; prints its rate per interval, without the first."""
    import torch
    import torch.nn.functional as F
    from torch import distributed
    from transformers import AutoTokenizer

    from stages.corpus.pack import Blocks
    from stages.next_token.train import OrderedBlocks
    from stages.objective.family import objective_of
    from stages.objective.head import attach
    from stages.pretrain.model import build_model

    stage = PretrainStage.model_validate(config)
    settings, launch = stage.pretrain, stage.pretrain.launch
    torch.set_num_threads(launch.threads)
    rank, processes = int(os.environ.get("RANK", "0")), launch.processes
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    blocks = Blocks(Path(corpus) / "train")
    data = OrderedBlocks(blocks, settings.steps * settings.global_batch, stage.seed)
    model = build_model(stage.model, AutoTokenizer.from_pretrained(Path(corpus) / "tokenizer"), stage.seed)
    model.to(device, getattr(torch, settings.dtype)).train()
    if our_loss:
        attach(model, objective_of(stage.prior), settings.head_k)
    if compiled:
        model.compile()
    if processes > 1:
        distributed.init_process_group()
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if processes > 1 else model
    adamw = settings.optimizer
    weights = list(model.parameters())
    masters = weights if settings.dtype == "float32" else [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=adamw.learning_rate, betas=(adamw.beta1, adamw.beta2), fused=True)
    accumulation = settings.global_batch // (processes * launch.micro_batch)
    rates, started = [], time.perf_counter()
    for step in range(1, settings.steps + 1):
        for part in range(accumulation):
            first = (step - 1) * settings.global_batch + (part * processes + rank) * launch.micro_batch
            ids = data.__getitems__(list(range(first, first + launch.micro_batch))).to(device)
            if our_loss:
                loss = wrapped(input_ids=ids, labels=ids).loss
            else:
                logits = wrapped(input_ids=ids, use_cache=False).logits
                loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
            (loss / accumulation).backward()
        if masters is not weights:
            for master, weight in zip(masters, weights, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, adamw.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if masters is not weights:
            torch._foreach_copy_([weight.detach() for weight in weights], masters)
        if step % launch.log_steps == 0:
            loss.item()
            now = time.perf_counter()
            rates.append(launch.log_steps * settings.global_batch * blocks.block_size / (now - started))
            started = now
    if rank == 0:
        print(json.dumps(rates[1:]))


def _flops_per_token(config: PretrainStage, vocabulary: int, block_size: int) -> float:
    """As `priorlab plan --costs` counts them. Recomputed activations are not progress, so they do not count."""
    planned = costs_of(config.launched(gradient_checkpointing=False), config.model, vocabulary, 0, block_size)
    return planned.training_flops / planned.tokens


def _peak_flops(threads: int, dtype: str) -> float:
    """The fastest of several square matmuls that fill the device, on one process's number of threads."""
    import torch

    torch.set_num_threads(threads)
    device, size, best = ("cuda", 8192, 0.0) if torch.cuda.is_available() else ("cpu", 1024, 0.0)
    left, right = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
    for _ in range(20):
        started = time.perf_counter()
        (left @ right)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
