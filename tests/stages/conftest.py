"""Shared by several tests of stages: RL stages on the small sweep's pre-trained model, and a small mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.experiment.graph import StageNode
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import Home
from tests.conftest import FinishedSweep, Lab, finish, smoke_graph, start

DYNAMIC = ("rl.sampling_budget=4", "rl.updates_per_rollout=4", "rl.steps=8", "rl.launch.save_steps=4", "rl.launch.micro_batch=4")
MOE_RECIPE = (
    "axes.prior=[tail]", "model={use: nano_moe, layers: 2, width: 64, ffn_width: null, heads: 2}",
    "corpus={documents: 500, heldout_documents: 50}",
    "pretrain={steps: 240, launch: {save_steps: 120, log_steps: 120}, optimizer: {warmup_steps: 20, decay_steps: 40}}",
    "rl.steps=2", "rl.preflight_problems=8",
)  # fmt: skip


def rl_stage(lab: Lab, smoke: FinishedSweep, *overrides: str, seed: int = 0) -> StageNode:
    """The stage, ready to start: its parents and its spec are in the lab. `seed` is RL's alone."""
    (plan,) = smoke_graph("axes.prior=[ce]", *overrides).cells
    node = plan.chain["rl"]
    node = StageNode(node.slug, node.config.model_copy(update={"seed": seed}), node.parents, node.labels, node.tracking)
    lab.borrow(smoke.lab, smoke.node("corpus"), smoke.node("pretrain"))
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    return node


@pytest.fixture(scope="session")
def dynamic(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, StageNode, list[dict[str, float]]]:
    """A finished stage of two generations with dynamic sampling, each used for four updates."""
    lab = Lab(Home(tmp_path_factory.mktemp("dynamic")))
    node = rl_stage(lab, smoke, *DYNAMIC)
    return lab, node, finish(lab, node, start(lab, node))


@dataclass(frozen=True)
class Trained:
    lab: Lab
    nodes: dict[str, StageNode]

    @property
    def export(self) -> Path:
        return self.lab.folder(self.nodes["pretrain"]).export


def ready(lab: Lab, node: StageNode, *finished: tuple[Lab, StageNode]) -> StageNode:
    """The stage with its spec in the lab, beside copies of its parents."""
    for other, parent in finished:
        lab.borrow(other, parent)
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    return node


def _run(lab: Lab, node: StageNode) -> None:
    ready(lab, node)
    process = start(lab, node)
    assert process.wait(timeout=500) == 0, (lab.folder(node).path / "out.log").read_text()


@pytest.fixture(scope="session")
def moe_corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, StageNode]:
    lab, node = Lab(Home(tmp_path_factory.mktemp("moe"))), smoke_graph(*MOE_RECIPE).cells[0].chain["corpus"]
    _run(lab, node)
    return lab, node


@pytest.fixture(scope="session")
def moe(moe_corpus: tuple[Lab, StageNode]) -> Trained:
    """Corpus and pre-training, in one process without ZeRO."""
    lab, _ = moe_corpus
    nodes = smoke_graph(*MOE_RECIPE).cells[0].chain
    _run(lab, nodes["pretrain"])
    return Trained(lab, nodes)
