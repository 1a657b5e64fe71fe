"""RL stages on top of the small sweep's pre-trained model."""

from __future__ import annotations

import pytest

from pipeline.graph import StageNode
from pipeline.store import Home, write_json_atomically
from tests.conftest import FinishedSweep, Lab, finish, smoke_graph, start

DYNAMIC = ("rl.sampling_rounds=3", "rl.updates_per_rollout=4", "rl.steps=8", "rl.launch.save_steps=4", "rl.launch.micro_batch=4")


def rl_stage(lab: Lab, smoke: FinishedSweep, *overrides: str, seed: int = 0) -> StageNode:
    """The stage, ready to start: its parents and its spec are in the lab. `seed` is of RL alone."""
    (plan,) = smoke_graph("axes.prior=[ce]", *overrides).cells
    node = plan.chain["rl"]
    node = StageNode("rl", node.slug, node.config.model_copy(update={"seed": seed}), node.parents, node.labels, node.tracking)
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
