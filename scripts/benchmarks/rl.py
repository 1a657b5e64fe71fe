"""Seconds per RL step, by part, of the real RL stage against plain TRL.

    .venv/bin/python scripts/benchmarks/rl.py --json rl.json
    .venv/bin/python scripts/benchmarks/rl.py --set rl.max_response_tokens=48 rl.updates_per_rollout=2

Compared: the stage with vLLM, the same with an importance correction (in float32 there is none by default), and with HF generate;
TRL's GRPOTrainer with HF generate and, on a GPU, with its own vLLM path (its weight sync does not run on CPU). All train the same
pre-trained model on the same problems with the same settings and verifier, each in its own process, in turns. Parts: `sample`,
responses; `sync`, pushing weights into the engine; `score`, verifying; `log-probs`, of the sampled tokens under the policy; `update`,
forward, backward and optimizer. `whole` is from the end of one optimizer step to the end of the next, so it includes logging, W&B and
checkpoints. Medians over all steps but the first two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.config.stages import RLStage
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import Home, StageFolder
from scripts.benchmarks.stages import planned, run_stages

STAGE, TRL_HF, TRL_VLLM = "stage", "TRL, HF generate", "TRL, its vLLM path"
VARIANTS = {
    "stage, importance correction": "rl.importance.mode=token_truncate",
    "stage, rollouts=transformers": "rl.rollouts=transformers",
}
PARTS = ("sample", "sync", "score", "log-probs", "update")
_WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe, as on the command line")
    parser.add_argument("--steps", type=int, default=10, help="RL steps of each run")
    parser.add_argument("--pretrain-steps", type=int, default=400, help="so that responses have a realistic length")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--arm", nargs=2, metavar=("NAME", "SPEC"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        _arm(arguments.arm[0], Path(arguments.arm[1]))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as scratch:
        result = _measure(arguments, Home(Path(scratch)))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _measure(arguments: argparse.Namespace, home: Home) -> dict[str, Any]:
    import torch

    arms: dict[str, list[str]] = {STAGE: [], **{name: [override] for name, override in VARIANTS.items()}, TRL_HF: []}
    if torch.cuda.is_available():
        arms[TRL_VLLM] = []
    only_once = "rl.sampling_budget=1"  # TRL does not resample
    overrides = [only_once, *arguments.set, f"rl.steps={arguments.steps}", f"pretrain.steps={arguments.pretrain_steps}"]
    run_stages(arguments.recipe, overrides, home, "corpus", "pretrain")
    times: dict[str, dict[str, list[float]]] = {arm: defaultdict(list) for arm in arms}
    for repeat in range(arguments.repeats):
        for arm, more in arms.items():
            node = planned(arguments.recipe, [*overrides, *more])["rl"]
            folder = StageFolder(home.path / f"{repeat}-{list(arms).index(arm)}")
            folder.path.mkdir()
            write_json_atomically(folder.spec, node.spec(home, "benchmark"))
            for name, values in json.loads(_own_process(arm, folder.spec)).items():
                times[arm][name] += values
    medians = {arm: {name: statistics.median(values) for name, values in found.items()} for arm, found in times.items()}
    print(
        f"\n{'seconds per step':32}" + "".join(f"{part:>11}" for part in (*PARTS, "whole")) + f"{'whole / parts':>16}{'stage is':>11}"
    )
    for arm, found in medians.items():
        parts = [found.get(part, 0.0) for part in PARTS]
        ratio, speed = found["whole"] / sum(parts), found["whole"] / medians[STAGE]["whole"]
        print(f"{arm:32}" + "".join(f"{value:11.3f}" for value in (*parts, found["whole"])) + f"{ratio:15.2f}x{speed:10.2f}x")
    return {"overrides": overrides, "seconds": medians}


def _own_process(arm: str, spec: Path) -> str:
    done = subprocess.run([sys.executable, __file__, "--arm", arm, str(spec)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{arm} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def _arm(name: str, spec: Path) -> None:
    """One run, in this process; prints the seconds of each part of each step."""
    from stages import engine
    from stages.contract import Stage
    from stages.guard import Guard
    from stages.training import process as processes

    stage = Stage(spec, Guard())
    config = stage.config_as(RLStage)
    engine.prepare(config.rl.launch.threads)
    processes.prepare(config.rl.launch.threads)
    seconds = _timed()
    if name in (STAGE, *VARIANTS):
        from stages.rl.train import train

        train(stage)
    else:
        _plain_trl(stage, config, vllm=name == TRL_VLLM)
    print(json.dumps({part: values[_WARM_UP:] for part, values in seconds.items()}), flush=True)
    os._exit(0)


def _timed() -> dict[str, list[float]]:
    """Time TRL's trainer; the lists fill while it trains, one entry per step."""
    import torch
    from transformers import Trainer
    from trl import GRPOTrainer
    from trl.generation.vllm_generation import VLLMGeneration

    from stages.rl.train import Reward
    from stages.rl.trl_internals import OpenGRPOTrainer

    seconds: dict[str, list[float]] = defaultdict(list)
    current: dict[str, float] = defaultdict(float)
    clock = {"last": time.perf_counter()}

    def count(owner: type, method: str, part: str, *minus: str, when: Callable[[], bool] = lambda: True) -> None:
        """Add the method's seconds to the part, less those counted as `minus` meanwhile."""
        original = getattr(owner, method)

        def timed(self: Any, *positional: Any, **named: Any) -> Any:
            if not when():
                return original(self, *positional, **named)
            nested, started = sum(current[name] for name in minus), time.perf_counter()
            try:
                return original(self, *positional, **named)
            finally:
                inside = sum(current[name] for name in minus) - nested
                current[part] += time.perf_counter() - started - inside

        setattr(owner, method, timed)

    def end_of_step(self: Any, *positional: Any, **named: Any) -> None:
        original_end(self, *positional, **named)
        now = time.perf_counter()
        for part in PARTS:
            seconds[part].append(current[part])
        seconds["whole"].append(now - clock["last"])
        current.clear()
        clock["last"] = now

    count(VLLMGeneration, "sync_weights", "sync")
    count(OpenGRPOTrainer, "_push_weights", "sync")  # stands in for it on CPU
    count(GRPOTrainer, "_generate_single_turn", "sample", "sync")
    count(Reward, "__call__", "score")
    # Without gradients: log-probs of the sampled tokens; with gradients: part of the update.
    count(GRPOTrainer, "_get_per_token_logps_and_entropies", "log-probs", when=lambda: not torch.is_grad_enabled())
    count(Trainer, "training_step", "update", "sample", "sync", "score", "log-probs")
    original_end = Trainer._maybe_log_save_evaluate
    Trainer._maybe_log_save_evaluate = end_of_step
    return seconds


def _plain_trl(stage: Any, config: RLStage, *, vllm: bool) -> None:
    """TRL as its documentation starts it: no DeepSpeed, no stage around it; the same arguments, problems and verifier."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from stages.rl.arguments import grpo_arguments
    from stages.rl.problems import training_and_validation
    from stages.rl.train import Reward
    from stages.tasks import build_task
    from stages.tasks.verifier import Verifier

    base = stage.parent("checkpoint")
    problems, _ = training_and_validation(build_task(config.task), config.rl, config.seed)
    arguments = GRPOConfig(**(grpo_arguments(stage, config) | {"use_vllm": vllm, "deepspeed": None}))
    with Verifier(partial(build_task, config.task), config.rl) as verifier:
        GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            args=arguments,
            processing_class=AutoTokenizer.from_pretrained(base),
            reward_funcs=Reward(problems, verifier),
            train_dataset=datasets.Dataset.from_list([{"prompt": p.prompt, "problem": i} for i, p in enumerate(problems)]),
        ).train()


if __name__ == "__main__":
    main()
