"""A prior's temperature: what is exported has the trained logits over it, for every kind of model, and training never sees it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from pipeline.config.model import ModelConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import StageNode
from pipeline.store.folders import Home
from stages.checkpoint import export_finished, last_norm
from stages.corpus.pack import Blocks
from stages.midtrain.model import continued_model
from stages.pretrain.model import transformers_config
from tests.conftest import FinishedSweep, Lab, finish, kill_once_saved, rows, smoke_graph, start
from tests.stages.conftest import Trained, ready

COOLED = "axes.prior=[{use: ce, temperature: 0.5}]"
"""Halving is exact in floating point, so what follows can be compared bit for bit."""
SIZES = {"layers": 2, "width": 64, "heads": 2, "kv_heads": 1, "head_dim": 32, "max_positions": 64}
MODELS = {
    "dense, tied": ModelConfig(**SIZES, ffn_width=96),
    "dense, untied": ModelConfig(**SIZES, ffn_width=96, tied_embeddings=False),
    "experts": ModelConfig(
        **SIZES, ffn_width=None, tied_embeddings=False, architecture="glm4_moe",
        moe={"experts": 4, "active_experts": 2, "expert_width": 32},
    ),
}  # fmt: skip


def logits(export: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def cooled(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, StageNode]:
    """The small sweep's pre-training under cross-entropy at temperature 0.5, killed at step 150 and resumed."""
    lab = Lab(Home(tmp_path_factory.mktemp("cooled")))
    node = ready(lab, smoke_graph(COOLED).cells[0].chain["pretrain"], (smoke.lab, smoke.node("corpus")))
    kill_once_saved(lab, node, step=150)
    finish(lab, node, start(lab, node))
    return lab, node


def test_training_is_that_of_the_prior_without_and_only_the_last_norm_of_the_export_differs(
    cooled: tuple[Lab, StageNode], smoke: FinishedSweep
) -> None:
    lab, node = cooled
    timed = {"tokens_per_s", "data_wait_share"}
    for row, other in zip(rows(lab, node), rows(smoke.lab, smoke.node("pretrain")), strict=True):
        assert {name: row[name] for name in row.keys() - timed} == {name: other[name] for name in other.keys() - timed}
    ours, plain = (load_file(one / "model.safetensors") for one in (lab.folder(node).export, smoke.folder("pretrain").export))
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(ours[name], value * 2 if name == "model.norm.weight" else value), name


def test_its_logits_are_the_trained_ones_over_the_temperature(cooled: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    lab, node = cooled
    ids = Blocks(smoke.folder("corpus").export / "heldout").rows([0, 1])
    assert torch.equal(logits(lab.folder(node).export, ids), logits(smoke.folder("pretrain").export, ids) / 0.5)


def test_sampling_it_at_1_is_sampling_the_plain_model_at_its_temperature(cooled: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    lab, _ = cooled
    cold = smoke_graph(COOLED).cells[0].evaluations["pretrain"]
    ready(lab, cold)
    plain = smoke_graph("axes.prior=[ce]", "evaluate.temperature=0.5").cells[0].evaluations["pretrain"]
    lab.borrow(smoke.lab, smoke.node("pretrain"))
    ready(lab, plain)
    tables = []
    for evaluation in (cold, plain):
        assert start(lab, evaluation).wait(timeout=300) == 0, (lab.folder(evaluation).path / "out.log").read_text()
        tables.append(pq.read_table(lab.folder(evaluation).export / "samples.parquet"))
    greedy = pq.read_table(smoke.folder("evaluate@pretrain").export / "samples.parquet", filters=[("greedy", "=", True)])
    assert tables[0].filter(tables[0]["greedy"])["text"].to_pylist() == greedy["text"].to_pylist()
    for column in ("problem_id", "sample", "text", "correct", "log_prob"):
        assert tables[0][column].to_pylist() == tables[1][column].to_pylist(), column


@pytest.mark.parametrize("name", MODELS)
def test_a_run_killed_after_its_last_step_exports_the_same(name: str, smoke: FinishedSweep, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smoke.folder("pretrain").export)
    model = AutoModelForCausalLM.from_config(transformers_config(MODELS[name], len(tokenizer)))
    with torch.no_grad():
        model.get_parameter("model.norm.weight").uniform_(0.5, 2)
    model.save_pretrained(tmp_path / "step")
    export_finished(tmp_path / "step", tokenizer, tmp_path / "export", 0.7)
    ids = torch.arange(12)[None] % len(tokenizer)
    expected = logits(tmp_path / "step", ids) / 0.7
    torch.testing.assert_close(logits(tmp_path / "export", ids), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(tmp_path / "export", ids).argmax(-1), expected.argmax(-1))


def test_midtraining_goes_on_from_the_weights_as_they_were_trained(cooled: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    lab, node = cooled
    export = lab.folder(node).export
    model = continued_model(export, AutoTokenizer.from_pretrained(export), rope_base=None, positions=64, temperature=0.5)
    for name, value in load_file(smoke.folder("pretrain").export / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value), name


def test_vllm_divides_the_logits_of_a_mixture_too(moe: Trained, tmp_path: Path) -> None:
    from stages import engine as engines

    engines.prepare(threads=1)
    from vllm import SamplingParams, TokensPrompt

    export_finished(moe.export, AutoTokenizer.from_pretrained(moe.export), tmp_path / "cold", 0.7)
    engine = engines.build_engine(tmp_path / "cold", dtype="float32", seed=0, max_tokens=65, kv_cache_gib=1, gpu_memory_share=0.5)
    ids = Blocks(moe.lab.folder(moe.nodes["corpus"]).export / "heldout").rows([0, 1])
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    results = engine.generate([TokensPrompt(prompt_token_ids=row.tolist()) for row in ids], sampling, use_tqdm=False)
    expected = (logits(moe.export, ids) / 0.7).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    for row, result, log_probs in zip(ids, results, expected, strict=True):
        found = [entry[int(token)].logprob for token, entry in zip(row[1:], result.prompt_logprobs[1:], strict=True)]
        torch.testing.assert_close(torch.tensor(found), log_probs, rtol=0, atol=1e-4)


def test_a_model_that_may_scale_its_logits_elsewhere_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(PriorlabError, match="models of type qwen3 and glm4_moe; this one is 'gpt2': leave the temperature out, or"):
        last_norm(model)
