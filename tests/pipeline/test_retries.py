"""What is tried again, how often, after what delay, and what is said; with real processes that fail."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.config.cluster import Retries
from pipeline.errors import DIVERGED_EXIT, MEMORY_EXIT, NO_SPACE_EXIT, REFUSED_EXIT, STOPPED_EXIT
from pipeline.run.retries import Attempts, cause_of_exit
from pipeline.run.slurm.queue import cause_of_job
from pipeline.store.lease import take
from tests.pipeline.test_endings import ONE, Run, stage_process

FAST = (*ONE, "cluster=local", "cluster.retries.first_delay_seconds=0.2")


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(behaviour: str, *overrides: str) -> Run:
        runs.append(Run(tmp_path / "home", {"corpus": behaviour}, *FAST, *overrides))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.communicate()


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("bug at first", "RuntimeError: a cosmic ray; bug: again in 0 s (retry 1 of 1)"),
        (
            "memory at first",
            "out of memory (MemoryError: ); lower launch.micro_batch, or run fewer stages at a time; out of memory: again",
        ),
        ("killed at first", "killed by SIGKILL (out of memory?); out of memory: again in 0 s (retry 1 of 1)"),
        ("preempted at first", "ended by a SIGTERM from elsewhere; preempted: again in 0 s (retry 1 of 5)"),
    ],
)
def test_what_may_pass_is_tried_again(behaviour: str, said: str, begin: Callable[..., Run]) -> None:
    run = begin(behaviour)
    states, notes = run.end()
    assert run.process.returncode == 0, notes
    assert said in notes
    assert {state for state, _ in states.values()} == {"done"}
    assert len(run.folder("corpus").attempts()) == 2
    run.nothing_is_left()


def test_a_package_that_is_missing_is_not_tried_again(begin: Callable[..., Run]) -> None:
    run = begin("lacks a package")
    states, notes = run.end()
    assert run.process.returncode == 1, notes
    assert states["corpus"][0] == "failed"
    assert "No module named 'no_such_package'; the environment does not match the lock file" in states["corpus"][1]
    assert len(run.folder("corpus").attempts()) == 1
    assert "Traceback" in (run.folder("corpus").attempts()[0] / "stdout.log").read_text()


@pytest.mark.parametrize(
    ("behaviour", "attempts", "said"), [("diverges", 1, "training has diverged"), ("stops at first", 2, "SIGTERM")]
)
def test_several_processes_are_judged_by_what_the_stage_says_not_by_torchruns_code(
    behaviour: str, attempts: int, said: str, begin: Callable[..., Run], tmp_path: Path
) -> None:
    run = Run(tmp_path / "home", {"pretrain": behaviour}, *FAST, "pretrain.launch.processes=2", "cluster.retries.bug=0")
    states, notes = run.end(timeout=300)  # torchrun imports torch
    assert said in notes + states["pretrain"][1]
    assert states["pretrain"][0] == ("failed" if attempts == 1 else "done")
    assert len(run.folder("pretrain").attempts()) == attempts


def test_retries_end(begin: Callable[..., Run]) -> None:
    run = begin("bug", "cluster.retries.bug=2")
    states, notes = run.end()
    assert states["corpus"] == ("failed", "RuntimeError: always")
    assert "retry 2 of 2" in notes
    assert len(run.folder("corpus").attempts()) == 3
    assert states["pretrain"][0] == "blocked"


def test_what_would_end_the_same_way_is_not_tried_again(begin: Callable[..., Run]) -> None:
    run = begin("diverges")
    states, _ = run.end()
    assert states["corpus"] == ("failed", "the loss is nan at step 7: training has diverged.")
    assert len(run.folder("corpus").attempts()) == 1


def test_a_retry_can_be_interrupted(begin: Callable[..., Run]) -> None:
    run = begin(
        "bug", "cluster.retries.bug=1", "cluster.retries.first_delay_seconds=1000", "cluster.retries.longest_delay_seconds=1000"
    )
    run.wait_for(lambda: bool(run.folder("corpus").attempts()))
    time.sleep(2)
    run.process.send_signal(signal.SIGINT)
    states, notes = run.end(timeout=5)
    assert "again in 1000 s" in notes
    assert states["corpus"][0] == "waiting"


def test_a_parent_that_vanished_while_its_child_waited_is_named(begin: Callable[..., Run], tmp_path: Path) -> None:
    run = Run(tmp_path / "home", {"pretrain": "takes 2"}, *FAST)
    corpus = run.folder("corpus")
    run.wait_for(lambda: run.log.exists() and "start pretrain/" in run.log.read_text())
    shutil.rmtree(corpus.path)
    states, _ = run.end()
    assert states["pretrain"][0] == "done"
    assert states["evaluate"][0] == "failed"
    assert f"parent stage {corpus.path} (corpus) has no record.json: not run, or deleted; start" in states["evaluate"][1]
    again = Run(tmp_path / "home", {}, *FAST)
    states, notes = again.end()
    assert {state for state, _ in states.values()} == {"reused", "done"}, notes


def test_delays_double_up_to_a_cap_for_each_stage_and_cause() -> None:
    attempts = Attempts(Retries(bug=4, preempted=1, first_delay_seconds=10, longest_delay_seconds=35))
    assert [attempts.next_delay("a", "bug") for _ in range(5)] == [10, 20, 35, 35, None]
    assert [attempts.next_delay("a", "preempted") for _ in range(2)] == [10, None]
    assert attempts.next_delay("b", "bug") == 10
    assert attempts.next_delay("b", "refused") is None


def test_causes_are_told_by_exit_codes_and_by_slurms_states() -> None:
    codes = {
        REFUSED_EXIT: "refused", NO_SPACE_EXIT: "no_space", MEMORY_EXIT: "out_of_memory", DIVERGED_EXIT: "diverged",
        STOPPED_EXIT: "preempted", 1: "bug", -signal.SIGSEGV: "bug", -signal.SIGKILL: "out_of_memory", 0: "bug",
    }  # fmt: skip
    assert {code: cause_of_exit(code) for code in codes} == codes
    assert cause_of_job("PREEMPTED", None) == "preempted"
    assert cause_of_job("NODE_FAIL", None) == "node_failure"
    assert cause_of_job("OUT_OF_MEMORY", "bug") == "out_of_memory"
    assert cause_of_job("FAILED", "diverged") == "diverged"
    assert cause_of_job("FAILED", None) == "bug"
    assert cause_of_job("CANCELLED", None) == "refused"  # somebody's scancel is meant


def test_a_stage_that_was_stopped_while_another_machine_took_over_commits_nothing(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin("takes 1")
    run.wait_for(lambda: run.log.exists() and "start" in run.log.read_text())
    process = stage_process(run)
    os.kill(process, signal.SIGSTOP)  # as a machine that sleeps
    monkeypatch.setattr("pipeline.store.lease.machine", lambda: "there")
    monkeypatch.setattr("pipeline.store.lease.SILENCE_SECONDS", 0.0)
    folder = run.folder("corpus")
    assert take(folder.path) is None  # the first look
    theirs = take(folder.path)
    assert theirs is not None
    os.kill(process, signal.SIGCONT)
    run.wait_for(lambda: not Path(f"/proc/{process}").exists())
    assert "another machine has taken this stage over" in (folder.attempts()[0] / "stdout.log").read_text()
    assert folder.record() is None
    assert not folder.export.exists()
    assert theirs.is_mine()
    theirs.release()  # the other machine gives up: this one's turn again
    states, notes = run.end()
    assert "taken over by process" in notes
    assert {state for state, _ in states.values()} == {"done"}
    assert len(folder.attempts()) == 2
