"""Mid-training on real DeepSpeed: from the pre-trained weights, in longer blocks, under a changing prior, and exact after a kill."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from pipeline.experiment.graph import CellPlan, StageNode
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import Home
from stages.corpus.pack import Blocks
from tests.conftest import Lab, finish, kill_once_saved, rows, smoke_graph, start

MIDTRAINED = (
    "axes.prior=[ce]", "corpus.documents=3000", "pretrain.steps=50", "pretrain.optimizer.decay_steps=10",
    "midtrain=countdown", "midtrain.corpus.documents=2000", "midtrain.corpus.heldout_documents=50",
    "midtrain.corpus.block_size=320", "midtrain.steps=16", "midtrain.optimizer.decay_steps=16",
    "midtrain.prior={use: diversity, k: 5, interpolation: linear, schedule: [{at: 0.5, use: tail}]}",
    "midtrain.launch={micro_batch: 4, save_steps: 8, log_steps: 4}",
)  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> CellPlan:
    return smoke_graph(*MIDTRAINED).cells[0]


@pytest.fixture(scope="module")
def uninterrupted(plan: CellPlan, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The chain up to mid-training."""
    lab = Lab(Home(tmp_path_factory.mktemp("midtrain")))
    for role in ("corpus", "pretrain", "midtrain-corpus", "midtrain"):
        prepare(lab, plan.chain[role])
        log = lab.folder(plan.chain[role]).path / "out.log"
        assert start(lab, plan.chain[role]).wait(timeout=200) == 0, log.read_text()
    return lab


def test_its_text_has_the_first_tokenizer_and_its_own_block_size(uninterrupted: Lab, plan: CellPlan) -> None:
    first, second = (uninterrupted.folder(plan.chain[role]).export for role in ("corpus", "midtrain-corpus"))
    vocabularies = [AutoTokenizer.from_pretrained(folder / "tokenizer").get_vocab() for folder in (first, second)]
    assert vocabularies[0] == vocabularies[1]
    assert (Blocks(first / "train").block_size, Blocks(second / "train").block_size) == (32, 320)


def test_it_continues_from_the_pretrained_weights_at_a_falling_rate(uninterrupted: Lab, plan: CellPlan) -> None:
    found = rows(uninterrupted, plan.chain["midtrain"])
    assert [(row["step"], row["tokens"]) for row in found] == [(step, step * 8 * 320) for step in (4, 8, 12, 16)]
    before = rows(uninterrupted, plan.chain["pretrain"])
    assert found[0]["cross_entropy"] < 0.9 * before[0]["cross_entropy"]  # not from scratch
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
    assert 0 < moved < 16 * 10 * 3e-4  # AdamW's steps are about the rate: not a new model


@pytest.fixture(scope="module")
def killed(uninterrupted: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, CellPlan]:
    """The same, killed halfway and resumed, with intermediate checkpoints from before and after the kill."""
    lab = Lab(Home(tmp_path_factory.mktemp("killed")))
    (plan,) = smoke_graph(*MIDTRAINED, "midtrain.evaluate_at=[0.25, 0.75]", "evaluate={problems: 2, samples: 2}").cells
    lab.borrow(uninterrupted, *(plan.chain[role] for role in ("corpus", "pretrain", "midtrain-corpus")))
    node = plan.chain["midtrain"]
    prepare(lab, node)
    kill_once_saved(lab, node, step=8)
    finish(lab, node, start(lab, node))
    return lab, plan


def test_killed_in_the_middle_of_a_schedule_it_ends_with_the_same_weights(
    uninterrupted: Lab, plan: CellPlan, killed: tuple[Lab, CellPlan]
) -> None:
    lab, interrupted = killed
    found, expected = rows(lab, interrupted.chain["midtrain"]), rows(uninterrupted, plan.chain["midtrain"])
    # Step t of 16 trains with the setting at (t - 1) / 16: the ninth is halfway.
    assert [row["step"] for row in found] == [4, 8, 12, 16]
    assert [row["prior/beta"] for row in found] == pytest.approx([0.3125, 0.0625, 0, 0])
    assert [row["prior/lambda_tail"] for row in found] == pytest.approx([-0.0375, -0.0875, -0.1, -0.1])
    timing = ("tokens_per_s", "data_wait_share")
    assert [{k: v for k, v in row.items() if k not in timing} for row in found] == [
        {k: v for k, v in row.items() if k not in timing} for row in expected
    ]
    theirs = load_file(uninterrupted.folder(plan.chain["midtrain"]).export / "model.safetensors")
    for name, value in load_file(lab.folder(interrupted.chain["midtrain"]).export / "model.safetensors").items():
        assert torch.equal(value, theirs[name]), name


def test_checkpoints_along_the_way_are_exported_in_order_and_evaluated_like_any(killed: tuple[Lab, CellPlan]) -> None:
    lab, plan = killed
    folder = lab.folder(plan.chain["midtrain"])
    record = folder.record()
    assert record is not None
    files = [folder.export / "milestones" / step / "model.safetensors" for step in ("4", "12")] + [folder.export / "model.safetensors"]
    assert {f"milestones/{step}/{name}" for step in (4, 12) for name in ("model.safetensors", "config.json", "tokenizer.json")} <= (
        record["manifest"].keys()
    )
    early, late, last = (load_file(file) for file in files)
    moved = [sum((one[name] - last[name]).abs().sum() for name in last) for one in (early, late)]
    assert moved[0] > moved[1] > 0

    node = plan.milestones["midtrain", 4]
    prepare(lab, node)
    (folder.export / "milestones" / "12" / "model.safetensors").write_bytes(b"damaged")  # a different checkpoint does not matter
    assert start(lab, node).wait(timeout=200) == 0, (lab.folder(node).path / "out.log").read_text()
    found = lab.folder(node).record()
    assert found is not None
    # Early in mid-training under a flattening prior, the earlier text is still known.
    assert 1 < found["metrics"]["perplexity"] < 10


def prepare(lab: Lab, node: StageNode) -> None:
    """Its folder and spec, ready to start."""
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
