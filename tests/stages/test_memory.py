"""Planned memory against what a training process takes, beyond its libraries and before it writes a step checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.stages import PretrainStage
from pipeline.costs.stages import training_costs
from pipeline.experiment.graph import StageNode
from pipeline.store.folders import Home
from tests.conftest import Lab, finish, smoke_graph, start
from tests.stages.conftest import ready

BLOCK = 32
DENSE = "model={layers: 6, width: 512, ffn_width: 1536, heads: 8, kv_heads: 4, head_dim: 64}"
MOE = (
    "model={use: nano_moe, layers: 3, width: 512, ffn_width: null, heads: 8, kv_heads: 4, head_dim: 64, "
    "moe: {experts: 16, active_experts: 2, expert_width: 256}}"
)
STEPS = "pretrain={steps: 2, global_batch: 32, optimizer: {warmup_steps: 1, decay_steps: 1}}"


@pytest.mark.parametrize(
    ("model", "launch"),
    [
        (DENSE, "pretrain={dtype: float32, launch: {micro_batch: 32}}"),
        (MOE, "pretrain={dtype: bfloat16, launch: {micro_batch: 32, zero_stage: 2, gradient_checkpointing: true}}"),
    ],
    ids=["dense", "moe"],
)
def test_training_takes_the_planned_memory(model: str, launch: str, moe_corpus: tuple[Lab, StageNode], tmp_path: Path) -> None:
    lab = Lab(Home(tmp_path / "home"))
    node = (
        smoke_graph("axes.prior=[ce]", "corpus={documents: 500, heldout_documents: 50}", model, STEPS, launch)
        .cells[0]
        .chain["pretrain"]
    )
    ready(lab, node, moe_corpus)
    # Freed tensors go straight back to the system, and oneDNN keeps no packed copies of them, as it does on processors with native
    # bfloat16 matmuls (340 MB here).
    only_tensors = {"MALLOC_MMAP_THRESHOLD_": "65536", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    process = start(lab, node, "tests.stages.pretrain_measured", **only_tensors)
    finish(lab, node, process)
    measured = json.loads((lab.folder(node).path / "measured-0.json").read_text())["bytes"]
    assert isinstance(node.config, PretrainStage)
    corpus = lab.folder(node.parents["corpus"]).record()
    assert corpus is not None
    planned = training_costs(node.config.model, corpus["metrics"]["vocabulary"], node.config.pretrain, BLOCK)
    assert sum(planned.memory.values()) == pytest.approx(measured, rel=0.15)
