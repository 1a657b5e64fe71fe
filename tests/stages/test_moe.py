"""A small mixture of experts through the stages: balanced, the same run however it is spread, exported to vLLM, and trained by RL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.graph import StageNode
from pipeline.store import Home, write_json_atomically
from stages.corpus.pack import Blocks
from tests.conftest import Lab, finish, rows, smoke_graph, start

RECIPE = (
    "axes.prior=[tail]", "model={use: nano_moe, layers: 2, width: 64, ffn_width: null, heads: 2}",
    "corpus={documents: 500, heldout_documents: 50}",
    "pretrain={steps: 240, launch: {save_steps: 120, log_steps: 120}, optimizer: {warmup_steps: 20, decay_steps: 40}}",
    "rl.steps=2", "rl.preflight_problems=8",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    lab: Lab
    nodes: dict[str, StageNode]

    @property
    def export(self) -> Path:
        return self.lab.folder(self.nodes["pretrain"]).export


def ready(lab: Lab, node: StageNode, *finished: tuple[Lab, StageNode]) -> StageNode:
    """The stage with its spec in the lab, beside copies of what it stands on."""
    for other, parent in finished:
        lab.borrow(other, parent)
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    return node


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Corpus and pre-training, by one process without ZeRO."""
    lab = Lab(Home(tmp_path_factory.mktemp("moe")))
    nodes = smoke_graph(*RECIPE).cells[0].chain
    for kind in ("corpus", "pretrain"):
        ready(lab, nodes[kind])
        process = start(lab, nodes[kind])
        assert process.wait(timeout=200) == 0, (lab.folder(nodes[kind]).path / "out.log").read_text()
    return Trained(lab, nodes)


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

    engine = engines.build_engine(moe.export, dtype="float32", seed=0, max_tokens=64 + 1, kv_cache_gib=1, gpu_memory_share=0.5)
    ids = Blocks(moe.lab.folder(moe.nodes["corpus"]).export / "heldout").rows([0, 1, 2])
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    results = engine.generate([TokensPrompt(prompt_token_ids=row.tolist()) for row in ids], sampling, use_tqdm=False)
    model = AutoModelForCausalLM.from_pretrained(moe.export, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    for row, result, log_probs in zip(ids, results, expected, strict=True):
        found = [entry[int(token)].logprob for token, entry in zip(row[1:], result.prompt_logprobs[1:], strict=True)]
        torch.testing.assert_close(torch.tensor(found), log_probs, rtol=0, atol=1e-4)


def test_rl_trains_a_mixture_and_its_engine_keeps_up(moe: Trained, lab: Lab) -> None:
    node = ready(lab, moe.nodes["rl"], *((moe.lab, moe.nodes[kind]) for kind in ("corpus", "pretrain")))
    found = [row for row in finish(lab, node, start(lab, node)) if "loss" in row]
    assert [row["step"] for row in found] == [1, 2]
    for row in found:  # in the second step with weights that the first has changed
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
    before, after = weights(moe.export), weights(lab.folder(node).export)
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.mlp.experts.0.up_proj.weight"], after["model.layers.0.mlp.experts.0.up_proj.weight"])
    for name, value in before.items():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(value, after[name])  # RL balances nothing
