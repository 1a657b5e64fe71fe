"""Bytes that processes of pre-training really send per step, beside those that `plan --costs` predicts.

    .venv/bin/python scripts/benchmarks/communication.py --json communication.json

Each row is the real stage, run twice with different numbers of steps: the difference leaves out start and end. DeepSpeed's own logger
counts the messages of each collective. Under ZeRO-3 a small model would stay whole all the time, so here parameters may stay for two
layers, as they do in a large one. Of four processes in two "nodes" (`zero_hpz_partition_size`), gathers are shown by what a process
puts in: the logger does not tell whom it reaches. The gathers of metrics that transformers makes are not DeepSpeed's, and a few bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.config.stages import PretrainStage
from pipeline.costs.communication import Collective, transfers
from pipeline.experiment.graph import StageNode
from pipeline.store.files import read_json, write_json_atomically
from pipeline.store.folders import Home
from scripts.benchmarks.stages import planned, run_stages
from stages.contract import Stage

RECIPE = ("model.layers=4", "model.width=128", "model.ffn_width=384", "pretrain.global_batch=16", "tracking.mode=disabled")
FEW, MANY = 2, 4
_LIKE_A_LARGE_MODEL = "stage3_max_reuse_distance: 350000, stage3_prefetch_bucket_size: 0, stage3_param_persistence_threshold: 0"
_NAMES: dict[str, Collective] = {
    "all_reduce": "all-reduce", "all_gather_into_tensor": "all-gather", "reduce_scatter_tensor": "reduce-scatter",
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How the stage is launched, with a batch of 16 blocks."""

    zero_stage: int
    micro_steps: int
    dtype: str = "float32"
    checkpointing: bool = False
    node: int | None = None
    """Processes that hold a second copy of the parameters between them."""
    processes: int = 2

    def overrides(self) -> list[str]:
        hierarchical = "" if self.node is None else f", zero_hpz_partition_size: {self.node}"
        launch = (
            f"{{processes: {self.processes}, micro_batch: {16 // self.processes // self.micro_steps}, zero_stage: {self.zero_stage}, "
            f"save_steps: 100, log_steps: 100, "
            f"gradient_checkpointing: {str(self.checkpointing).lower()}, zero: {{{_LIKE_A_LARGE_MODEL}{hierarchical}}}}}"
        )
        return [*RECIPE, f"pretrain.launch={launch}", f"pretrain.dtype={self.dtype}"]


WAYS = (
    Way(0, 2), Way(1, 1), Way(1, 2), Way(2, 1), Way(2, 2), Way(3, 1), Way(3, 2), Way(3, 2, checkpointing=True),
    Way(3, 2, node=2, processes=4),
    Way(1, 2, "bfloat16"), Way(2, 2, "bfloat16"), Way(3, 2, "bfloat16"),
)  # fmt: skip


def predicted_and_counted(way: Way, home: Home) -> dict[Collective, tuple[float, float]]:
    """Bytes that a process sends per step, by collective."""
    node = planned("smoke", way.overrides())["pretrain"]
    config = cast(PretrainStage, node.config)
    corpus = run_stages("smoke", RECIPE, home, "corpus")["corpus"]
    vocabulary = len(read_json(corpus / "tokenizer" / "tokenizer.json")["model"]["vocab"])  # type: ignore[index]
    few, many = (_logged(way, steps, home) for steps in (FEW, MANY))
    found: dict[Collective, tuple[float, float]] = {}
    for name, collective in _NAMES.items():
        messages = (many.get(name, 0.0) - few.get(name, 0.0)) / (MANY - FEW)
        # The logger sizes a message as what goes in: an all-gather's own part, a reduce-scatter's whole, an all-reduce's whole.
        others = (way.processes - 1) / way.processes
        found[collective] = (0.0, messages * {"all-gather": 1, "reduce-scatter": others, "all-reduce": 2 * others}[collective])
    parameters = config.model.parameters(vocabulary).total
    launch = config.pretrain.launch
    for one in transfers(launch, parameters, config.model.layers, config.pretrain.dtype, micro_steps=way.micro_steps):
        predicted, counted = found[one.collective]
        own = one.size / (one.among or way.processes) if one.collective == "all-gather" else one.sent(way.processes)
        found[one.collective] = (predicted + own, counted)
    return {collective: sizes for collective, sizes in found.items() if sizes[0] or sizes[1] > 1000}


def _logged(way: Way, steps: int, home: Home) -> dict[str, float]:
    """Bytes by collective over a whole run, as DeepSpeed logs them on the first process."""
    schedule = [f"pretrain.steps={steps}", "pretrain.optimizer.warmup_steps=0", "pretrain.optimizer.decay_steps=0"]
    node: StageNode = planned("smoke", [*way.overrides(), *schedule])["pretrain"]
    folder = node.folder(home)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(home, "communication"))
    found = folder.path / "communication.json"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={way.processes}",
        __file__,
        "--worker",
        str(found),
    ]
    done = subprocess.run(
        [*command, "--spec", str(folder.spec)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        sys.exit(f"the stage failed:\n{done.stderr[-3000:]}")
    totals = cast(dict[str, float], read_json(found))
    shutil.rmtree(folder.path)
    return totals


def _worker(file: Path, spec: Path) -> None:
    """One process of the stage, with DeepSpeed's logger on."""
    import deepspeed.comm

    from stages.contract import main as run_stage
    from stages.pretrain.__main__ import run

    def counting(stage: Stage) -> dict[str, Any]:
        deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False)
        metrics = run(stage)
        logged = deepspeed.comm.comm.comms_logger.get_raw_data()
        if stage.rank == 0:
            write_json_atomically(file, {name: sum(size * one[0] for size, one in sizes.items()) for name, sizes in logged.items()})
        return metrics

    sys.argv = ["pretrain", "--spec", str(spec)]
    run_stage("pretrain", counting)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--spec", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        _worker(given.worker, given.spec)
        return
    rows = []
    print(
        "| ZeRO | micro-steps | dtype | checkpointing | collective | predicted KiB | counted KiB | counted / predicted |\n"
        + "|---" * 8
        + "|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for way in WAYS:
            for collective, (predicted, counted) in predicted_and_counted(way, Home(Path(scratch))).items():
                rows.append(way.__dict__ | {"collective": collective, "predicted": predicted, "counted": counted})
                print(
                    f"| {way.zero_stage} | {way.micro_steps} | {way.dtype} | {'yes' if way.checkpointing else 'no'} | {collective} "
                    f"| {predicted / 1024:,.0f} | {counted / 1024:,.0f} | {counted / predicted if predicted else float('inf'):.3f} |",
                    flush=True,
                )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
