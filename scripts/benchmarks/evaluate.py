"""Seconds to draw many responses per problem: vLLM as the stage `evaluate` uses it, beside HF generate.

    .venv/bin/python scripts/benchmarks/evaluate.py --json evaluate.json
    .venv/bin/python scripts/benchmarks/evaluate.py --set model.layers=8 model.width=480 model.ffn_width=1280 model.heads=15

`--samples` responses to each of `--problems` problems from a model with random weights that never ends a response by itself, so that
both generate equally many tokens. vLLM gets all problems at once and computes a prompt once for all its samples; HF generate gets one
problem at a time, all its samples in one batch. They take turns; medians, the first turn left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.config.stages import EvaluateStage
from pipeline.store.folders import Home
from scripts.benchmarks.stages import planned, run_stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe, as on the command line")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--samples", type=int, default=128, help="responses per problem")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as scratch:
        result = _measure(arguments, Home(Path(scratch)))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _measure(arguments: argparse.Namespace, home: Home) -> dict[str, Any]:
    """Sample with both engines in turns, in this process."""
    from stages import engine

    config = planned(arguments.recipe, arguments.set)["evaluate"].config
    assert isinstance(config, EvaluateStage)
    task, protocol = config.task, config.evaluate
    recipe_overrides = [*arguments.set, "pretrain.steps=1", "pretrain.optimizer.warmup_steps=0", "pretrain.optimizer.decay_steps=0"]
    engine.prepare(protocol.threads)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import SamplingParams

    from stages.tasks import build_task

    checkpoint = run_stages(arguments.recipe, recipe_overrides, home, "corpus", "pretrain")["pretrain"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    problems = build_task(task).problems("evaluate", arguments.problems, protocol.seed)
    prompts = [tokenizer(problem.prompt)["input_ids"] for problem in problems]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    vllm = engine.build_engine(
        checkpoint, dtype="float32", seed=0, max_tokens=task.max_prompt_tokens + protocol.max_response_tokens,
        kv_cache_gib=protocol.kv_cache_gib, gpu_memory_share=0.4,
    )  # fmt: skip
    length = protocol.max_response_tokens
    drawn = SamplingParams(n=arguments.samples, temperature=1.0, max_tokens=length, ignore_eos=True, detokenize=False)

    def by_vllm() -> None:
        vllm.generate([{"prompt_token_ids": ids} for ids in prompts], drawn, use_tqdm=False)
        vllm.reset_prefix_cache()

    def by_transformers() -> None:
        for ids in prompts:
            with torch.inference_mode():
                model.generate(
                    torch.tensor([ids], device=device), do_sample=True, top_k=0, max_new_tokens=length, min_new_tokens=length,
                    num_return_sequences=arguments.samples, pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip

    seconds: dict[str, list[float]] = {"vLLM": [], "HF generate": []}
    for _ in range(arguments.repeats + 1):
        for name, work in (("vLLM", by_vllm), ("HF generate", by_transformers)):
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    tokens = arguments.samples * arguments.problems * length
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"\n{parameters / 1e6:.1f}M parameters, {arguments.problems} problems x {arguments.samples} samples of {length} tokens")
    for name, value in medians.items():
        print(f"{name:14}{value:9.2f} s{tokens / value:12,.0f} tokens/s{medians['HF generate'] / value:8.2f}x")
    return {
        "parameters": parameters,
        "problems": arguments.problems,
        "samples": arguments.samples,
        "tokens": length,
        "seconds": medians,
    }


if __name__ == "__main__":
    main()
