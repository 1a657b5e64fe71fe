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

from pipeline.config.evaluation import Verification
from pipeline.config.tasks import CountdownTask
from pipeline.errors import PriorlabError
from stages.evaluate.metrics import pass_at_k
from stages.tasks import Document, Problem, Split, Verdict, build_task
from stages.tasks.protocol import split_of
from stages.tasks.verifier import Verifier
from tests.conftest import FinishedSweep

PROBLEM = Problem("2,3,4=14", "4,2,3=14:", {"numbers": [4, 2, 3], "target": 14})


@pytest.mark.parametrize("role", ["evaluate@pretrain", "evaluate@rl"])
def test_metrics_follow_from_the_kept_samples(smoke: FinishedSweep, role: str) -> None:
    folder = smoke.folder(role)
    samples = pq.read_table(folder.export / "samples.parquet").to_pandas()
    details = json.loads((folder.export / "problems.json").read_text())
    greedy = samples[samples["greedy"]]
    assert list(greedy["problem_id"]) == details["problems"]
    assert greedy["sample"].isna().all()
    drawn = samples[~samples["greedy"]]
    correct = drawn.groupby("problem_id", sort=False)["correct"].sum()
    assert list(correct.index) == details["problems"]
    assert set(drawn.groupby("problem_id").size()) == {8}
    for k, values in details["metrics"]["pass@k"].items():
        np.testing.assert_allclose(values, pass_at_k(correct.to_numpy(), 8, int(k)))
    record = folder.record()
    assert record is not None
    assert record["metrics"]["pass@k/1"] == pytest.approx(drawn["correct"].mean())
    assert record["metrics"]["greedy/1"] == pytest.approx(greedy["correct"].mean())
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
    """A task whose verifier hangs, bloats, exits or raises, as the response says."""

    alphabet = ""

    def verify(self, problem: Problem, response: str) -> Verdict:
        if response == "hang":
            time.sleep(3600)
        if response == "allocate":
            bytearray(4 << 30)  # never touched, so it succeeds without a limit
        if response == "swell":
            hoard: list[bytes] = []
            while len(hoard) < 4096:
                hoard.append(b"x" * (1 << 20))
        if response == "exit":
            os._exit(3)
        if response == "raise":
            raise RuntimeError("broken verifier")
        return Verdict(correct=response != "wrong", answer=response)

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        raise NotImplementedError

    def rewordings(self, problem: Problem) -> list[Problem]:
        raise NotImplementedError

    def documents(self, split: Split, count: int, seed: int) -> Iterator[Document]:
        raise NotImplementedError


def test_a_hanging_bloating_crashing_or_raising_verifier_costs_one_response_each(caplog: pytest.LogCaptureFixture) -> None:
    with Verifier(Trap, Verification(verify_workers=2, verify_seconds=8, verify_memory_mib=256)) as verifier:
        responses = ["right", "hang", "wrong", "exit", "raise", "allocate", "swell", "right"]
        verdicts = verifier.verify((PROBLEM, response) for response in responses)
        again = verifier.verify([(PROBLEM, "right")])
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, False, False, False, True]
    assert (verifier.counts.timeouts, verifier.counts.errors) == (1, 4)
    assert again[0].correct  # the pool goes on
    assert "response 'hang': more than verify_seconds = 8" in caplog.text
    assert "response 'raise': RuntimeError: broken verifier" in caplog.text
    assert caplog.text.count("MemoryError") == 2


def test_failures_past_the_share_stop_the_run_and_name_the_last() -> None:
    with Verifier(Trap, Verification(verify_workers=2, max_verify_failures=0.05)) as verifier:
        verifier.verify((PROBLEM, response) for response in ["raise"] * 10)  # few responses: no share to speak of yet
        with pytest.raises(PriorlabError, match=r"failed on 10 and timed out on 0 of 10 responses.*response 'raise': RuntimeError"):
            verifier.finish()
        with pytest.raises(PriorlabError, match=r"max_verify_failures = 0\.05 allows.*[Rr]aise verify_seconds"):
            verifier.verify((PROBLEM, response) for response in ["raise"] * 64)
        assert verifier.counts.failures < 200


def test_failures_below_the_share_are_counted_and_tolerated() -> None:
    with Verifier(Trap, Verification(max_verify_failures=0.05)) as verifier:
        verifier.verify((PROBLEM, response) for response in ["right"] * 63 + ["raise"])
        counts = verifier.finish()
    assert (counts.verified, counts.timeouts, counts.errors) == (64, 0, 1)


def broken() -> Trap:
    raise RuntimeError("no such data")


def test_a_task_that_cannot_be_built_in_a_worker_stops_the_run_with_the_reason() -> None:
    with Verifier(broken, Verification()) as verifier:
        verifier.verify([(PROBLEM, "right")])
        with pytest.raises(PriorlabError, match="RuntimeError: no such data"):
            verifier.finish()


def test_many_responses_keep_their_order() -> None:
    with Verifier(partial(build_task, CountdownTask()), Verification(verify_workers=2, verify_seconds=30)) as verifier:
        responses = ["2+3*4" if i % 3 == 0 else "2+3+4" for i in range(500)]
        verdicts = verifier.verify((PROBLEM, response) for response in responses)
    assert [verdict.correct for verdict in verdicts] == [i % 3 == 0 for i in range(500)]
    assert verifier.counts.verified == 500
