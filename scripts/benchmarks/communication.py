"""Bytes that two processes of pre-training really exchange per step, beside those that `plan --costs` predicts.

    .venv/bin/python scripts/benchmarks/communication.py --json communication.json

Each row is the real stage, run twice with different numbers of steps: the difference leaves out what happens at the start and at the end.
DeepSpeed's own communication logger counts the messages of each collective; a message of n bytes counts as what it makes one process
send (`pipeline.config.communication`). The gathers of metrics that transformers makes are not DeepSpeed's, and a few bytes.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import build_graph
from pipeline.store.files import read_json, write_json_atomically
from pipeline.store.folders import Home
from scripts.benchmarks.stages import run_stages

FEW, MANY = 2, 6


def counted(launch: list[str], steps: int, home: Home, recipe: list[str]) -> dict[str, dict[str, int]]:
    """By collective, number and total size of the messages of a run, as DeepSpeed logs them on the first process."""
    schedule = [f"pretrain.steps={steps}", "pretrain.optimizer.warmup_steps=0", "pretrain.optimizer.decay_steps=0"]
    (cell,) = build_graph(load_recipe("smoke", [*recipe, *launch, *schedule]).cells()).cells
    node = cell.chain["pretrain"]
    folder = node.folder(home)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder.spec, node.spec(home, "communication"))
    found = folder.path / "communication.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, "--worker", str(found)]
    done = subprocess.run(
        [*command, "--spec", str(folder.spec)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        sys.exit(f"the stage failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    totals = read_json(found) or {}
    shutil.rmtree(folder.path)
    return totals


def worker(file: Path, spec: Path) -> None:
    """One process of the stage, with DeepSpeed's logger on."""
    import deepspeed.comm

    from stages.contract import main as stage_main
    from stages.pretrain.__main__ import run

    deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False)

    def write() -> None:
        logged = deepspeed.comm.comm.comms_logger.get_raw_data()
        totals = {
            name: {"messages": sum(one[0] for one in sizes.values()), "bytes": sum(size * one[0] for size, one in sizes.items())}
            for name, sizes in logged.items()
        }
        if os.environ["RANK"] == "0":
            write_json_atomically(file, totals)

    atexit.register(write)

    def work(stage):
        result = run(stage)
        write()
        return result

    sys.argv = ["pretrain", "--spec", str(spec)]
    stage_main("pretrain", work)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--spec", type=Path)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.spec)
        return
    recipe = ["model.layers=4", "model.width=128", "model.ffn_width=384", "pretrain.global_batch=16", "tracking.mode=disabled"]
    with tempfile.TemporaryDirectory() as scratch:
        home = Home(Path(scratch))
        run_stages("smoke", recipe, home, "corpus")

        (cell,) = build_graph(load_recipe("smoke", recipe).cells()).cells
        n = cell.chain["pretrain"].config.model.parameters(20).total
        print("N", n)
        for zero, micro, ckpt, dtype in [
            (0, 8, "false", "float32"),
            (0, 4, "false", "float32"),
            (1, 8, "false", "float32"),
            (1, 4, "false", "float32"),
            (2, 8, "false", "float32"),
            (2, 4, "false", "float32"),
            (3, 8, "false", "float32"),
            (3, 4, "false", "float32"),
            (3, 4, "true", "float32"),
            (1, 4, "false", "bfloat16"),
            (2, 4, "false", "bfloat16"),
            (3, 4, "false", "bfloat16"),
        ]:
            launch = [
                f"pretrain.launch={{processes: 2, micro_batch: {micro}, zero_stage: {zero}, gradient_checkpointing: {ckpt}, save_steps: 100, log_steps: 100}}",
                f"pretrain.dtype={dtype}",
            ]
            few, many = (counted(launch, s, home, recipe) for s in (FEW, MANY))
            diff = {
                k: (
                    (v["messages"] - few.get(k, {}).get("messages", 0)) / (MANY - FEW),
                    (v["bytes"] - few.get(k, {}).get("bytes", 0)) / (MANY - FEW) / n,
                )
                for k, v in many.items()
            }
            print(zero, 8 // micro, ckpt, dtype, {k: v for k, v in diff.items() if v[0]}, flush=True)


if __name__ == "__main__":
    main()
