"""What a stage's process is given."""

import pytest

from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import build_graph
from pipeline.run.launch import environment


@pytest.mark.parametrize(("task", "offline"), [("countdown", "1"), ("arithmetic", "1"), ("gsm8k", "0"), ("math500", "0")])
def test_only_tasks_with_data_on_the_hub_may_ask_it(task: str, offline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (plan,) = build_graph(load_recipe("quickstart", [f"task={task}", "model.max_positions=2048"]).cells()).cells
    for role in ("corpus", "rl"):
        assert environment(plan.chain[role], 0, "test")["HF_HUB_OFFLINE"] == offline
    assert environment(plan.chain["pretrain"], 0, "test")["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the user's word stands
    assert environment(plan.chain["corpus"], 0, "test")["HF_HUB_OFFLINE"] == "1"


def test_the_order_of_sets_is_the_same_in_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    (plan,) = build_graph(load_recipe("quickstart").cells()).cells
    assert environment(plan.chain["corpus"], 0, "test")["PYTHONHASHSEED"] == "0"


@pytest.mark.parametrize("name", ["WANDB_SERVICE", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
def test_what_each_stage_sets_for_itself_is_not_inherited(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = build_graph(load_recipe("quickstart").cells()).cells
    monkeypatch.setenv(name, "the caller's")
    assert name not in environment(plan.chain["pretrain"], 0, "test")
