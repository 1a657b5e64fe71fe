"""Pre-training on real DeepSpeed: the same run on any layout or after a kill, and an export that vLLM agrees with."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import DIVERGED_EXIT
from pipeline.experiment.graph import StageNode
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import Home
from stages.corpus.pack import Blocks
from tests.conftest import FinishedSweep, Lab, finish, rows, smoke_graph, start

LOGGED = list(range(25, 301, 25))
"""Steps that the smoke recipe logs."""


def pretraining(lab: Lab, smoke: FinishedSweep, *overrides: str) -> StageNode:
    """A pre-training stage ready to run in its own home, on the corpus of the shared sweep."""
    node = smoke_graph("axes.prior=[ce]", *overrides).cells[0].chain["pretrain"]
    lab.borrow(smoke.lab, node.parents["corpus"])
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    return node


def weights(lab: Lab, node: StageNode) -> dict[str, torch.Tensor]:
    return load_file(lab.folder(node).export / "model.safetensors")


def test_losses_are_the_same_for_every_zero_stage_and_number_of_processes(smoke: FinishedSweep, tmp_path: Path) -> None:
    """Sixteen blocks a step as 1 x 8 x 2, 1 x 16, 2 x 8 and 2 x 4 x 2 (processes x micro-batch x accumulation), and other options.

    A gentle learning rate: at a high one, rounding alone makes equal runs diverge within a hundred steps.
    """
    gentle = ["pretrain.steps=75", "pretrain.optimizer.learning_rate=1e-3"]
    overlapped = "overlap_comm: true, reduce_bucket_size: 5000, allgather_bucket_size: 5000, use_multi_rank_bucket_allreduce: false"
    never_whole = (
        "overlap_comm: false, reduce_bucket_size: 5000, stage3_prefetch_bucket_size: 0, stage3_max_live_parameters: 0, "
        "stage3_max_reuse_distance: 0, stage3_param_persistence_threshold: 0, zero_hpz_partition_size: 2"
    )
    arrangements = {
        "plain": [],
        "zero2": ["pretrain.launch.zero_stage=2", "pretrain.launch.micro_batch=16", "pretrain.launch.attention=eager"],
        "zero1 x 2": [
            "pretrain.launch.zero_stage=1", "pretrain.launch.processes=2", "pretrain.launch.compile=true",
            f"pretrain.launch.zero={{{overlapped}}}",
        ],
        "zero3 x 2": [
            "pretrain.launch.zero_stage=3", "pretrain.launch.processes=2", "pretrain.launch.micro_batch=4",
            f"pretrain.launch.zero={{{never_whole}}}",
        ],
    }  # fmt: skip
    found: dict[str, tuple[list[dict[str, float]], dict[str, torch.Tensor]]] = {}
    fingerprints = set()
    for name, overrides in arrangements.items():
        lab = Lab(Home(tmp_path / name))
        node = pretraining(lab, smoke, *gentle, *overrides)
        fingerprints.add(node.fingerprint)
        found[name] = finish(lab, node, start(lab, node)), weights(lab, node)
    assert len(fingerprints) == 1  # how a stage runs is not part of its identity
    expected_rows, expected_weights = found.pop("plain")
    assert [row["step"] for row in expected_rows] == [25, 50, 75]
    for name, (ours, our_weights) in found.items():
        assert [row["step"] for row in ours] == [25, 50, 75], name
        for row, expected in zip(ours, expected_rows, strict=True):
            for metric in ("loss", "cross_entropy", "entropy", "head_mass", "tail_mass", "perplexity", "tokens", "learning_rate"):
                assert row[metric] == pytest.approx(expected[metric], rel=1e-4), (name, metric, row["step"])
        assert our_weights.keys() == expected_weights.keys()
        for parameter, value in our_weights.items():
            torch.testing.assert_close(value, expected_weights[parameter], rtol=0, atol=1e-3, msg=f"{name}: {parameter}")


def test_bfloat16_trains_to_about_the_same_loss(smoke: FinishedSweep, lab: Lab) -> None:
    node = pretraining(lab, smoke, "pretrain.dtype=bfloat16", "pretrain.launch.zero_stage=1")
    found = finish(lab, node, start(lab, node))
    reference = smoke.folder("pretrain").record()
    assert reference is not None
    assert found[-1]["loss"] == pytest.approx(reference["metrics"]["loss"], rel=0.05)
    assert {tensor.dtype for tensor in weights(lab, node).values()} == {torch.bfloat16}


def test_a_run_killed_between_and_during_checkpoints_ends_with_the_same_weights(smoke: FinishedSweep, lab: Lab) -> None:
    node = pretraining(lab, smoke)
    folder = lab.folder(node)
    process = start(lab, node)
    deadline = time.time() + 200
    while not (folder.checkpoints / "checkpoint-50" / "complete").exists():
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert folder.record() is None
    # What a kill in the middle of writing the next step checkpoint leaves behind.
    torn = folder.checkpoints / "checkpoint-100"
    if not torn.exists():
        shutil.copytree(folder.checkpoints / "checkpoint-50", torn)
    (torn / "complete").unlink(missing_ok=True)
    (torn / "model.safetensors").write_bytes(b"half")

    found = finish(lab, node, start(lab, node))
    steps = [row["step"] for row in found]
    assert steps == LOGGED  # no row twice, none missing
    expected = load_file(smoke.folder("pretrain").export / "model.safetensors")
    for name, value in weights(lab, node).items():
        assert torch.equal(value, expected[name]), name


def test_logged_values_are_consistent(smoke: FinishedSweep) -> None:
    found = rows(smoke.lab, smoke.node("pretrain"))
    assert [row["tokens"] for row in found] == [step * 16 * 32 for step in LOGGED]
    for row in found:
        assert row["perplexity"] == pytest.approx(math.exp(row["cross_entropy"]))
        assert row["loss"] == pytest.approx(row["cross_entropy"], rel=1e-4)  # this cell is cross-entropy
        assert 0 < row["head_mass"] + row["tail_mass"] < 1
        assert row["tokens_per_s"] > 0
    # Warm-up, stable, linear decay to a tenth.
    assert found[0]["learning_rate"] == pytest.approx(5e-3, rel=0.1)
    assert {row["learning_rate"] for row in found[1:10]} == {5e-3}
    assert found[-1]["learning_rate"] == pytest.approx(5e-4, rel=0.4)


def test_a_different_prior_trains_a_different_model_from_the_same_start(smoke: FinishedSweep) -> None:
    ce, tail = (rows(smoke.lab, smoke.node("pretrain", cell)) for cell in (0, 1))
    assert ce[0]["cross_entropy"] == pytest.approx(tail[0]["cross_entropy"], rel=0.05)
    # Over the whole run: in such a short one, rounding alone moves a single interval as much as the prior does.
    assert sum(row["tail_mass"] for row in ce) > sum(row["tail_mass"] for row in tail)


def test_the_export_is_a_checkpoint_that_vllm_agrees_with(smoke: FinishedSweep) -> None:
    from stages import engine as engines

    engines.prepare(threads=1)
    from vllm import SamplingParams, TokensPrompt

    export = smoke.folder("pretrain").export
    assert not list(export.glob("*.bin"))  # no pickles
    assert len(AutoTokenizer.from_pretrained(export)) == AutoModelForCausalLM.from_pretrained(export).config.vocab_size
    engine = engines.build_engine(export, dtype="float32", seed=0, max_tokens=64 + 1, kv_cache_gib=1, gpu_memory_share=0.5)
    ids = Blocks(smoke.folder("corpus").export / "heldout").rows([0, 1, 2])
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    results = engine.generate([TokensPrompt(prompt_token_ids=row.tolist()) for row in ids], sampling, use_tqdm=False)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    for row, result, log_probs in zip(ids, results, expected, strict=True):
        found = [entry[int(token)].logprob for token, entry in zip(row[1:], result.prompt_logprobs[1:], strict=True)]
        torch.testing.assert_close(torch.tensor(found), log_probs, rtol=0, atol=1e-4)


def test_a_corrupt_corpus_is_named_and_nothing_is_overwritten(smoke: FinishedSweep, lab: Lab) -> None:
    node = pretraining(lab, smoke)
    corpus = lab.folder(node.parents["corpus"])
    data = next((corpus.export / "train").glob("*.arrow"))
    data.write_bytes(data.read_bytes()[:-1] + b"\xff")
    process = start(lab, node)
    assert process.wait(timeout=120) == 2
    printed = (lab.folder(node).path / "out.log").read_text()
    assert f"train/{data.name} has sha256" in printed
    assert "Traceback" not in printed
    assert lab.folder(node).record() is None


def test_a_loss_beyond_any_perplexity_is_a_divergence(smoke: FinishedSweep, lab: Lab) -> None:
    """e to the power of it is more than a float holds: no bug to try again, and no number to record."""
    node = pretraining(lab, smoke, "model.init_std=1000")
    assert start(lab, node).wait(timeout=200) == DIVERGED_EXIT
    printed = (lab.folder(node).path / "out.log").read_text()
    assert "error: the perplexity is inf at step" in printed
    assert "Traceback" not in printed
    assert lab.folder(node).record() is None


def test_a_stage_runs_manually_from_its_spec(lab: Lab) -> None:
    node = smoke_graph("corpus.documents=50", "corpus.heldout_documents=20").cells[0].chain["corpus"]
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    done = subprocess.run(
        [sys.executable, "-m", "stages.corpus", "--spec", str(folder.spec)], env=lab.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    record = folder.record()
    assert record is not None
    assert record["fingerprint"] == node.fingerprint
    assert record["metrics"]["train_blocks"] > 0
