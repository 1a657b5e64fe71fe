"""Evaluation with real vLLM samples, and a verifier pool that nothing can hang."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import CountdownTask
from stages.evaluate.metrics import pass_at_k
from stages.evaluate.verify import Verifier
from stages.tasks import Problem, Split, Verdict, build_task
from stages.tasks.protocol import split_of
from tests.conftest import FinishedSweep

PROBLEM = Problem("2,3,4=14", "4,2,3=14:", {"numbers": [4, 2, 3], "target": 14})


@pytest.mark.parametrize("role", ["evaluate@pretrain", "evaluate@rl"])
def test_metrics_follow_from_the_kept_samples(smoke: FinishedSweep, role: str) -> None:
    folder = smoke.folder(role)
    samples = pq.read_table(folder.export / "samples.parquet").to_pandas()
    details = json.loads((folder.export / "problems.json").read_text())
    drawn = samples[samples["sample"] >= 0]
    correct = drawn.groupby("problem_id", sort=False)["correct"].sum()
    assert list(correct.index) == details["problems"]
    assert set(drawn.groupby("problem_id").size()) == {8}
    for k, values in details["metrics"]["pass@k"].items():
        np.testing.assert_allclose(values, pass_at_k(correct.to_numpy(), 8, int(k)))
    record = folder.record()
    assert record is not None
    assert record["metrics"]["pass@k/1"] == pytest.approx(drawn["correct"].mean())
    assert record["metrics"]["greedy/1"] == pytest.approx(samples[samples["sample"] == -1]["correct"].mean())
    assert record["metrics"]["perplexity"] == pytest.approx(np.exp(np.mean(details["heldout"]["cross_entropy"])))


def test_samples_are_what_the_verifier_says(smoke: FinishedSweep) -> None:
    task = build_task(CountdownTask(numbers=(2,), largest_number=12))
    problems = {problem.id: problem for problem in task.problems("evaluate", 12, seed=0)}
    table = pq.read_table(smoke.folder("evaluate@pretrain").export / "samples.parquet").to_pylist()
    assert {row["problem_id"] for row in table} == set(problems)
    assert {split_of(row["problem_id"]) for row in table} == {"evaluate"}
    for row in table:
        verdict = task.verify(problems[row["problem_id"]], row["text"])
        assert (verdict.correct, verdict.answer) == (row["correct"], row["answer"])
        assert 1 <= row["length"] <= 16
        assert row["length"] == 16 or not row["truncated"]


def test_before_and_after_rl_are_measured_on_the_same_problems(smoke: FinishedSweep) -> None:
    before, after = (
        json.loads((smoke.folder(role).export / "problems.json").read_text()) for role in ("evaluate@pretrain", "evaluate@rl")
    )
    assert before["problems"] == after["problems"]
    assert before["heldout"].keys() == after["heldout"].keys()


class Trap:
    """A task whose verifier hangs, ends its process or raises, by what the response says."""

    alphabet = ""

    def verify(self, problem: Problem, response: str) -> Verdict:
        if response == "hang":
            time.sleep(3600)
        if response == "exit":
            os._exit(3)
        if response == "raise":
            raise RuntimeError("broken verifier")
        return Verdict(correct=response == "right", answer=response)

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        raise NotImplementedError

    def documents(self, split: Split, count: int, seed: int) -> Iterator[str]:
        raise NotImplementedError


def test_a_hanging_crashing_or_raising_verifier_costs_one_response_each() -> None:
    with Verifier(Trap, workers=2, seconds=8) as verifier:
        responses = ["right", "hang", "wrong", "exit", "raise", "right"]
        verdicts = verifier.verify((PROBLEM, response) for response in responses)
        again = verifier.verify([(PROBLEM, "right")])
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, False, True]
    assert (verifier.counts.timeouts, verifier.counts.errors) == (1, 2)
    assert again[0].correct  # the pool goes on


def test_many_responses_keep_their_order() -> None:
    with Verifier(partial(build_task, CountdownTask()), workers=2, seconds=30) as verifier:
        responses = ["2+3*4" if i % 3 == 0 else "2+3+4" for i in range(500)]
        verdicts = verifier.verify((PROBLEM, response) for response in responses)
    assert [verdict.correct for verdict in verdicts] == [i % 3 == 0 for i in range(500)]
    assert verifier.counts.verified == 500
