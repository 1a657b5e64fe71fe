"""A small mixture of experts through the stages: balanced, the same run on any layout, exported to vLLM, and trained by RL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.config.rl import RolloutEngine
from pipeline.experiment.graph import StageNode
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import Home
from stages.corpus.pack import Blocks
from tests.conftest import Lab, finish, kill_once_saved, rows, smoke_graph, start
from tests.stages.conftest import MOE_RECIPE, Trained, ready


def weights(export: Path) -> dict[str, torch.Tensor]:
    return load_file(export / "model.safetensors")


def test_expert_load_is_logged_and_the_biases_are_exported(moe: Trained) -> None:
    found = rows(moe.lab, moe.nodes["pretrain"])
    assert all(row["expert_violation"] > 0 and 0 <= row["experts_idle"] < 1 for row in found)
    biases = [value for name, value in weights(moe.export).items() if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    for bias in biases:
        assert 0 < bias.abs().max() <= 240 * 1e-3 + 1e-6  # a step moves it by the rate
        torch.testing.assert_close(bias, (bias / 1e-3).round() * 1e-3)
    record = moe.lab.folder(moe.nodes["pretrain"]).record()
    assert record is not None
    held = sum(value.numel() for name, value in weights(moe.export).items() if not name.endswith("bias"))
    assert record["metrics"]["parameters"] == held


def test_vllm_routes_an_exported_mixture_as_transformers_does(moe: Trained) -> None:
    from stages import engine as engines

    engines.prepare(threads=1)
    from vllm import SamplingParams, TokensPrompt

    from stages.rl.arguments import for_syncs

    engine = engines.build_engine(moe.export, dtype="float32", seed=0, max_tokens=64 + 1, kv_cache_gib=1, gpu_memory_share=0.5)
    ids = Blocks(moe.lab.folder(moe.nodes["corpus"]).export / "heldout").rows([0, 1, 2])
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    results = engine.generate([TokensPrompt(prompt_token_ids=row.tolist()) for row in ids], sampling, use_tqdm=False)
    model = AutoModelForCausalLM.from_pretrained(moe.export, dtype=torch.float32)
    # What a sleeping engine must keep goes by its name there; vLLM forgets other parameters, and TRL syncs no buffers.
    (names,) = engine.collective_rpc(lambda worker: [name for name, _ in worker.get_model().named_parameters()])
    kept = for_syncs(model, RolloutEngine(sleep=True))["sleep_preserve_parameter_names"]
    assert len(kept) == 2
    assert set(kept) <= set(names)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    for row, result, log_probs in zip(ids, results, expected, strict=True):
        found = [entry[int(token)].logprob for token, entry in zip(row[1:], result.prompt_logprobs[1:], strict=True)]
        torch.testing.assert_close(torch.tensor(found), log_probs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [(), ("rl.launch={processes: 2, micro_batch: 8, zero_stage: 3}", "rl.engine={tensor_parallel: 2, sleep: true}")],
    ids=["alone", "one engine for two under zero3"],
)
def test_rl_trains_a_mixture_and_its_engine_keeps_up(overrides: tuple[str, ...], moe: Trained, lab: Lab) -> None:
    rl = smoke_graph(*MOE_RECIPE, *overrides).cells[0].chain["rl"]
    node = ready(lab, rl, *((moe.lab, moe.nodes[kind]) for kind in ("corpus", "pretrain")))
    found = [row for row in finish(lab, node, start(lab, node)) if "loss" in row]
    assert [row["step"] for row in found] == [1, 2]
    for row in found:  # the second step uses weights that the first changed
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
    before, after = weights(moe.export), weights(lab.folder(node).export)
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.mlp.experts.0.up_proj.weight"], after["model.layers.0.mlp.experts.0.up_proj.weight"])
    for name, value in before.items():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(value, after[name])  # RL balances nothing


def test_a_run_killed_on_two_processes_under_zero3_resumes_on_one(moe_corpus: tuple[Lab, StageNode], tmp_path: Path) -> None:
    """As if uninterrupted and without ZeRO: same blocks, same losses, same weights up to rounding."""
    gentle = (
        "pretrain={steps: 20, launch: {save_steps: 10, log_steps: 5}}",
        "pretrain.optimizer={learning_rate: 1e-3, warmup_steps: 5, decay_steps: 5}",
    )
    two = ("pretrain.launch={processes: 2, micro_batch: 4, zero_stage: 3, gradient_checkpointing: true}",)
    found = {}
    for name, layout in {"whole": (), "parted": two}.items():
        lab = Lab(Home(tmp_path / name))
        node = ready(lab, smoke_graph(*MOE_RECIPE, *gentle, *layout).cells[0].chain["pretrain"], moe_corpus)
        if name == "parted":
            kill_once_saved(lab, node, step=10)
            node = smoke_graph(*MOE_RECIPE, *gentle, *two, "pretrain.launch.processes=1").cells[0].chain["pretrain"]
            write_json_atomically(lab.folder(node).spec, node.spec(lab.home, "test"))
        found[name] = finish(lab, node, start(lab, node)), weights(lab.folder(node).export)
        assert ("being resharded" in (lab.folder(node).path / "out.log").read_text()) == (name == "parted")
    (expected, expected_weights), (ours, our_weights) = found["whole"], found["parted"]
    assert [row["step"] for row in ours] == [row["step"] for row in expected] == [5, 10, 15, 20]
    for row, other in zip(ours, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)  # see stages/training/resharding.py: 1e-4 without its mends
        assert row["expert_violation"] == pytest.approx(other["expert_violation"], rel=1e-3)
    for name, value in our_weights.items():
        torch.testing.assert_close(value, expected_weights[name], rtol=0, atol=1e-4, msg=name)
