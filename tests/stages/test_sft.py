"""Supervised fine-tuning on real DeepSpeed: responses alone are learned, and a kill, a split or another source changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.stages import SFTStage
from pipeline.experiment.graph import StageNode
from pipeline.store.folders import Home
from stages.next_token.train import OrderedBlocks
from stages.objective.coverage import Coverage
from stages.objective.reference import objective_loss
from stages.sft.solutions import find_solutions, pack
from tests.conftest import FinishedSweep, Lab, finish, kill_once_saved, rows, smoke_graph, start
from tests.stages.conftest import ready

TUNED = (
    "sft=countdown", "sft.documents=300", "sft.block_size=48", "sft.steps=8", "sft.global_batch=8",
    "sft.optimizer={warmup_steps: 0, decay_steps: 0}", "sft.launch={micro_batch: 4, save_steps: 4, log_steps: 1}",
)  # fmt: skip


def sft_stage(lab: Lab, smoke: FinishedSweep, *overrides: str) -> StageNode:
    """The stage on the small sweep's pre-trained model, ready to start."""
    (plan,) = smoke_graph("axes.prior=[ce]", *TUNED, *overrides).cells
    return ready(lab, plan.chain["sft"], (smoke.lab, smoke.node("pretrain")))


def trained(lab: Lab, smoke: FinishedSweep, *overrides: str) -> tuple[StageNode, list[dict[str, float]]]:
    node = sft_stage(lab, smoke, *overrides)
    return node, finish(lab, node, start(lab, node))


@pytest.fixture(scope="module")
def tuned(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, StageNode]:
    lab = Lab(Home(tmp_path_factory.mktemp("tuned")))
    return lab, trained(lab, smoke)[0]


def weights(lab: Lab, node: StageNode) -> dict[str, torch.Tensor]:
    return load_file(lab.folder(node).export / "model.safetensors")


def test_the_loss_is_of_responses_given_their_prompts(tuned: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    """The first step's, against transformers' own on the same blocks."""
    lab, node = tuned
    config, base = node.config, smoke.folder("pretrain").export
    assert isinstance(config, SFTStage)
    solutions = pack(find_solutions(config), AutoTokenizer.from_pretrained(base), config.sft.block_size)
    batch = OrderedBlocks(solutions, 8 * 8, config.seed).__getitems__(list(range(8)))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(input_ids=batch[:, 0], labels=batch[:, 1]).loss
    first, *_, last = rows(lab, node)
    assert first["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert first["cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)
    assert last["loss"] < first["loss"]
    record = lab.folder(node).record()
    assert record is not None
    assert (record["metrics"]["solutions"], record["metrics"]["too_long"]) == (300, 0)
    learned = (batch[:, 1] >= 0).float().mean().item()
    assert record["metrics"]["learned_share"] == pytest.approx(learned, abs=0.05)


def test_killed_and_resumed_it_ends_with_the_same_weights(tuned: tuple[Lab, StageNode], smoke: FinishedSweep, lab: Lab) -> None:
    node = sft_stage(lab, smoke)
    kill_once_saved(lab, node, step=4)
    finish(lab, node, start(lab, node))
    expected = weights(*tuned)
    assert all(torch.equal(value, expected[name]) for name, value in weights(lab, node).items())


def test_two_processes_take_the_same_steps(tuned: tuple[Lab, StageNode], smoke: FinishedSweep, lab: Lab) -> None:
    """Their halves of a batch have unequally many tokens to learn."""
    _, found = trained(lab, smoke, "sft.launch={processes: 2, zero_stage: 2}")
    for name in ("loss", "entropy", "grad_norm"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in rows(*tuned)], rel=1e-4), name


def test_the_same_solutions_from_a_file_make_the_same_model(
    tuned: tuple[Lab, StageNode], smoke: FinishedSweep, lab: Lab, tmp_path: Path
) -> None:
    config = tuned[1].config
    assert isinstance(config, SFTStage)
    file = tmp_path / "mine.jsonl"
    lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in find_solutions(config)]
    file.write_text("\n".join(lines))
    node, _ = trained(lab, smoke, "sft.documents=null", f"sft.source={{file: {file}}}")
    expected = weights(*tuned)
    assert all(torch.equal(value, expected[name]) for name, value in weights(lab, node).items())


def test_coverage_is_of_whole_responses(tuned: tuple[Lab, StageNode], smoke: FinishedSweep, lab: Lab, tmp_path: Path) -> None:
    """The first step's loss, from transformers' own log-probabilities, in one process of two micro-batches and in two processes."""
    config, base = tuned[1].config, smoke.folder("pretrain").export
    assert isinstance(config, SFTStage)
    solutions = pack(find_solutions(config), AutoTokenizer.from_pretrained(base), config.sft.block_size)
    batch = OrderedBlocks(solutions, 8 * 8, config.seed).__getitems__(list(range(8)))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(input_ids=batch[:, 0]).logits
    expected = objective_loss(logits[:, :-1], batch[:, 1, 1:], Coverage(attempts=1e6))
    _, found = trained(lab, smoke, "sft.prior={use: coverage, attempts: 1.0e+6}")
    two_processes = "sft.launch={processes: 2, zero_stage: 2}"
    _, split = trained(Lab(Home(tmp_path)), smoke, "sft.prior={use: coverage, attempts: 1.0e+6}", two_processes)
    assert found[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert [row["loss"] for row in split] == pytest.approx([row["loss"] for row in found], rel=1e-4)
    assert found[0]["loss"] < found[0]["cross_entropy"]


def test_it_learns_under_any_prior(tuned: tuple[Lab, StageNode], smoke: FinishedSweep, lab: Lab) -> None:
    """An entropy bonus leaves the model less certain than cross-entropy does, from the same weights and blocks."""
    _, found = trained(lab, smoke, "sft.prior={use: entropy, alpha: 0.5}")
    assert found[0]["cross_entropy"] == pytest.approx(rows(*tuned)[0]["cross_entropy"])
    assert np.mean([row["entropy"] for row in found]) > np.mean([row["entropy"] for row in rows(*tuned)])
