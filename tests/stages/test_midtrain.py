"""Mid-training on real DeepSpeed: on from the pre-trained weights, in longer blocks, under a changing prior, and exact after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from pipeline.graph import CellPlan
from pipeline.store import Home, write_json_atomically
from stages.corpus.pack import Blocks
from tests.conftest import FinishedSweep, Lab, finish, kill_once_saved, rows, smoke_graph, start

MIDTRAINED = (
    "axes.prior=[ce]", "midtrain=countdown", "midtrain.corpus.documents=2000", "midtrain.corpus.heldout_documents=50",
    "midtrain.corpus.block_size=320", "midtrain.steps=16", "midtrain.optimizer.decay_steps=16",
    "midtrain.prior={use: diversity, k: 5, interpolation: linear, schedule: [{at: 0.5, use: tail}]}",
    "midtrain.launch={micro_batch: 4, save_steps: 8, log_steps: 4}",
)  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> CellPlan:
    return smoke_graph(*MIDTRAINED).cells[0]


@pytest.fixture(scope="module")
def uninterrupted(smoke: FinishedSweep, plan: CellPlan, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Mid-training and its corpus, run on top of the shared sweep's pre-trained model."""
    lab = Lab(Home(tmp_path_factory.mktemp("midtrain")))
    lab.borrow(smoke.lab, plan.chain["corpus"], plan.chain["pretrain"])
    for role in ("midtrain-corpus", "midtrain"):
        node = plan.chain[role]
        folder = lab.folder(node)
        folder.path.mkdir(parents=True)
        write_json_atomically(folder.spec, node.spec(lab.home, "test"))
        assert start(lab, node).wait(timeout=200) == 0, (folder.path / "out.log").read_text()
    return lab


def test_its_text_is_cut_by_the_first_tokenizer_into_blocks_of_its_own(uninterrupted: Lab, plan: CellPlan) -> None:
    first, second = (uninterrupted.folder(plan.chain[role]).export for role in ("corpus", "midtrain-corpus"))
    vocabularies = [AutoTokenizer.from_pretrained(folder / "tokenizer").get_vocab() for folder in (first, second)]
    assert vocabularies[0] == vocabularies[1]
    assert (Blocks(first / "train").block_size, Blocks(second / "train").block_size) == (32, 320)


def test_it_goes_on_from_the_pretrained_weights_at_a_falling_rate(smoke: FinishedSweep, uninterrupted: Lab, plan: CellPlan) -> None:
    found = rows(uninterrupted, plan.chain["midtrain"])
    assert [(row["step"], row["tokens"]) for row in found] == [(step, step * 8 * 320) for step in (4, 8, 12, 16)]
    before = rows(smoke.lab, smoke.node("pretrain"))
    assert found[0]["cross_entropy"] < 0.5 * before[0]["cross_entropy"]  # not from scratch
    rates = [row["learning_rate"] for row in found]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 3e-4
    assert rates[-1] == pytest.approx(3e-5, rel=0.2)


def test_its_export_has_the_new_rope_base_and_room_for_its_blocks(uninterrupted: Lab, plan: CellPlan) -> None:
    configs = [
        json.loads((uninterrupted.folder(plan.chain[role]).export / "config.json").read_text()) for role in ("pretrain", "midtrain")
    ]
    assert [config["rope_parameters"]["rope_theta"] for config in configs] == [1e4, 1e6]
    assert [config["max_position_embeddings"] for config in configs] == [256, 320]
    pretrained, midtrained = (
        load_file(uninterrupted.folder(plan.chain[role]).export / "model.safetensors") for role in ("pretrain", "midtrain")
    )
    assert pretrained.keys() == midtrained.keys()
    moved = max((midtrained[name] - pretrained[name]).abs().max().item() for name in pretrained)
    assert 0 < moved < 16 * 10 * 3e-4  # AdamW's steps are of the size of the rate: not another model


def test_killed_in_the_middle_of_a_schedule_it_ends_with_the_same_weights(uninterrupted: Lab, plan: CellPlan, tmp_path: Path) -> None:
    lab, node = Lab(Home(tmp_path / "killed")), plan.chain["midtrain"]
    lab.borrow(uninterrupted, *(plan.chain[role] for role in ("corpus", "pretrain", "midtrain-corpus")))
    lab.folder(node).path.mkdir(parents=True)
    write_json_atomically(lab.folder(node).spec, node.spec(lab.home, "test"))
    kill_once_saved(lab, node, step=8)
    found, expected = finish(lab, node, start(lab, node)), rows(uninterrupted, node)
    # Step t of 16 trains with the setting at (t - 1) / 16: half the way is reached at the ninth.
    assert [row["step"] for row in found] == [4, 8, 12, 16]
    assert [row["prior/beta"] for row in found] == pytest.approx([0.3125, 0.0625, 0, 0])
    assert [row["prior/lambda_tail"] for row in found] == pytest.approx([-0.0375, -0.0875, -0.1, -0.1])
    timing = ("tokens_per_s", "data_wait_share")
    assert [{k: v for k, v in row.items() if k not in timing} for row in found] == [
        {k: v for k, v in row.items() if k not in timing} for row in expected
    ]
    theirs = load_file(uninterrupted.folder(node).export / "model.safetensors")
    for name, value in load_file(lab.folder(node).export / "model.safetensors").items():
        assert torch.equal(value, theirs[name]), name
