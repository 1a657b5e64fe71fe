"""Evaluation at further temperatures: the same problems, the same engine, and the protocol's own numbers as they were."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.experiment.graph import StageNode
from stages.corpus.pack import Blocks
from stages.evaluate.metrics import pass_at_k
from stages.tasks import build_task
from tests.conftest import FinishedSweep, Lab, smoke_graph, start
from tests.stages.conftest import ready

TEMPERATURES = (0.5, 2.0)


def evaluated(lab: Lab, smoke: FinishedSweep, *overrides: str) -> tuple[StageNode, Any, dict[str, Any]]:
    """The small sweep's first pre-trained model under another protocol: the stage, its samples and its problems.json."""
    node = smoke_graph("axes.prior=[ce]", *overrides).cells[0].evaluations["pretrain"]
    ready(lab, node, (smoke.lab, smoke.node("corpus")), (smoke.lab, smoke.node("pretrain")))
    assert start(lab, node).wait(timeout=300) == 0, (lab.folder(node).path / "out.log").read_text()
    export = lab.folder(node).export
    return node, pq.read_table(export / "samples.parquet").to_pandas(), json.loads((export / "problems.json").read_text())


@pytest.fixture(scope="module")
def at_temperatures(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, StageNode, Any, Any]:
    lab = Lab(type(smoke.lab.home)(tmp_path_factory.mktemp("temperatures")))
    return lab, *evaluated(lab, smoke, f"evaluate.temperatures={list(TEMPERATURES)}")


def test_further_temperatures_leave_the_protocols_own_numbers_as_they_are(
    at_temperatures: tuple[Lab, StageNode, Any, Any], smoke: FinishedSweep
) -> None:
    _, _, samples, details = at_temperatures
    plain = pq.read_table(smoke.folder("evaluate@pretrain").export / "samples.parquet").to_pandas()
    assert samples[samples["temperature"].isin((0, 1))].equals(plain)
    alone = json.loads((smoke.folder("evaluate@pretrain").export / "problems.json").read_text())
    assert "temperatures" not in alone
    assert {key: details[key] for key in alone} == alone


def test_each_temperature_has_all_metrics_of_as_many_samples(at_temperatures: tuple[Lab, StageNode, Any, Any]) -> None:
    lab, node, samples, details = at_temperatures
    found = {float(at): values for at, values in details["temperatures"].items()}
    assert list(found) == [1.0, *TEMPERATURES]
    assert found[1.0]["metrics"] == details["metrics"]
    record = lab.folder(node).record()
    assert record is not None
    for at in TEMPERATURES:
        assert found[at]["metrics"].keys() == details["metrics"].keys() - {"greedy", "greedy_length"}
        drawn = samples[samples["temperature"] == at]
        assert set(drawn.groupby("problem_id")["sample"].agg(list).map(tuple)) == {tuple(range(8))}
        correct = drawn.groupby("problem_id", sort=False)["correct"].sum()
        assert list(correct.index) == details["problems"]
        for k in (1, 2, 4, 8):
            np.testing.assert_allclose(found[at]["metrics"]["pass@k"][str(k)], pass_at_k(correct.to_numpy(), 8, k))
        assert record["metrics"][f"temperature_{at}/pass@k/1"] == pytest.approx(drawn["correct"].mean())
    # Hot samples wander: with T = 2 nearly every one of a problem's responses is a text of its own.
    texts = samples[~samples["greedy"]].groupby(["temperature", "problem_id"])["text"].nunique().groupby("temperature").mean()
    assert texts[0.5] < texts[1.0] < texts[2.0]


def test_heldout_entropy_is_that_of_the_logits_over_the_temperature(
    at_temperatures: tuple[Lab, StageNode, Any, Any], smoke: FinishedSweep
) -> None:
    _, _, _, details = at_temperatures
    model = AutoModelForCausalLM.from_pretrained(smoke.folder("pretrain").export, dtype=torch.float32).eval()
    ids = Blocks(smoke.folder("corpus").export / "heldout").rows(list(range(16)))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    for at, values in details["temperatures"].items():
        expected = torch.distributions.Categorical(logits=logits / float(at)).entropy().mean(dim=1)
        np.testing.assert_allclose(values["heldout"]["entropy"], expected, rtol=1e-4)
        assert values["heldout"].keys() == details["heldout"].keys()
    assert details["temperatures"]["1.0"]["heldout"] == details["heldout"]


def test_heldout_text_is_read_at_1_whatever_the_protocols_temperature(smoke: FinishedSweep, tmp_path: Path) -> None:
    lab = Lab(type(smoke.lab.home)(tmp_path))
    _, samples, details = evaluated(lab, smoke, "evaluate.temperature=0.7", "evaluate.temperatures=[1.0]", "evaluate.problems=2")
    plain = json.loads((smoke.folder("evaluate@pretrain").export / "problems.json").read_text())
    assert details["heldout"] == plain["heldout"] == details["temperatures"]["1.0"]["heldout"]
    assert details["temperatures"]["0.7"]["heldout"]["entropy"] != details["heldout"]["entropy"]
    assert details["temperatures"]["0.7"]["metrics"] == details["metrics"]
    drawn = samples[samples["temperature"] == 0.7].groupby("problem_id", sort=False)["correct"].mean()
    assert details["metrics"]["avg@n"]["8"] == pytest.approx(drawn.tolist())


def test_response_entropy_is_what_the_model_gives_the_sampled_texts(
    at_temperatures: tuple[Lab, StageNode, Any, Any], smoke: FinishedSweep
) -> None:
    """In nats per response, scored here by transformers with the logits over the temperature."""
    _, _, samples, details = at_temperatures
    export = smoke.folder("pretrain").export
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    task = build_task(smoke.node("evaluate@pretrain").config.task)  # type: ignore[attr-defined]
    prompts = {problem.id: problem.prompt for problem in task.problems("evaluate", 12, seed=0)}
    assert samples[samples["temperature"] == 0]["log_prob"].isna().all()

    def log_prob(row: Any) -> float:
        """NaN where the text lacks a token that was sampled: padding is not in it."""
        prompt = tokenizer(prompts[row.problem_id])["input_ids"]
        response = tokenizer(row.text, add_special_tokens=False)["input_ids"]
        response += [] if row.truncated else [tokenizer.eos_token_id]
        if len(response) < row.length:
            return math.nan
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return float((logits / row.temperature).log_softmax(-1)[range(len(response)), response].sum())

    for at, values in details["temperatures"].items():
        drawn = samples[(samples["temperature"] == float(at)) & samples["problem_id"].isin(details["problems"][:3])]
        expected, found = np.array([log_prob(row) for row in drawn.itertuples()]), drawn["log_prob"].to_numpy()
        known = ~np.isnan(expected)
        assert known.mean() > 0.8
        np.testing.assert_allclose(found[known], expected[known], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(values["metrics"]["response_entropy"]["8"][:3], -found.reshape(3, 8).mean(axis=1), rtol=1e-3)
    assert details["temperatures"]["1.0"]["metrics"]["response_entropy"] == details["metrics"]["response_entropy"]
