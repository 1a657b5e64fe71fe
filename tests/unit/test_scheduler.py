"""The scheduler on a third backend, which is one module: states, parents, retries and the end of a command are not the backend's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.cluster import ClusterConfig, Retries
from pipeline.run import backends
from pipeline.run.backend import Seen
from pipeline.run.scheduler import run
from pipeline.run.state import Outcome, StageState
from pipeline.store.folders import status_of
from pipeline.store.progress import seconds_so_far
from stages.contract import Stage
from stages.guard import Guard
from tests.unit.stores import Shelf, shelf_at
from tests.unit.toy_backend import ToyBackend

ONE = ("axes.prior=[ce]",)


class Notes:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.took: list[tuple[str, str, float | None]] = []

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        self.events.append((stage.node.kind, stage.state))
        self.took.append((stage.node.kind, stage.state, stage.seconds))

    def note(self, text: str) -> None: ...

    def tick(self, states: list[StageState]) -> None: ...


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setitem(backends.BACKENDS, "toy", ToyBackend)
    for name, empty in (("fates", {}), ("taken", []), ("withdrawn", []), ("closed", [])):
        monkeypatch.setattr(ToyBackend, name, empty)
    return shelf_at(tmp_path)


def play(shelf: Shelf, notes: Notes, **fates: list[Seen]) -> Outcome:
    ToyBackend.fates = fates
    retries = Retries(first_delay_seconds=0.01)
    cluster = ClusterConfig(kind="local", retries=retries).model_copy(update={"kind": "toy"})
    return run(shelf.sweep(*ONE), shelf.home, sweep="smoke", jobs=1, view=notes, cluster=cluster)


def states(outcome: Outcome) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for state in outcome.states:
        found.setdefault(state.node.kind, set()).add(state.state)
    return found


def test_a_stage_that_another_sweep_begins_meanwhile_under_another_name_is_not_begun_twice(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = shelf.sweep(*ONE)
    pretrain = graph.cells[0].chain["pretrain"]
    theirs = pretrain.folder(shelf.home).path.with_name(f"theirs-{pretrain.fingerprint[:12]}")
    seen = []

    class OneByOne(ToyBackend):
        chains = False

        def start(self, state: StageState) -> Seen:
            if state.node.kind == "corpus":
                theirs.mkdir(parents=True)
            seen.append(state.folder.path)
            return super().start(state)

    monkeypatch.setitem(backends.BACKENDS, "toy", OneByOne)
    cluster = ClusterConfig(kind="local").model_copy(update={"kind": "toy"})
    run(
        graph,
        shelf.home,
        sweep="smoke",
        jobs=1,
        view=Notes(),
        cluster=cluster,
        only={stage.fingerprint for stage in (pretrain, *pretrain.parents.values())},
    )
    assert seen == [pretrain.parents["corpus"].folder(shelf.home).path, theirs]


def test_a_backend_that_chains_gets_all_at_once_parents_first(shelf: Shelf) -> None:
    outcome = play(shelf, Notes())
    assert states(outcome) == {kind: {"done"} for kind in ("corpus", "pretrain", "rl", "evaluate")}
    assert ToyBackend.taken == ["corpus", "pretrain", "evaluate", "rl", "evaluate"]
    assert ToyBackend.closed == [True]


def test_one_that_waits_for_something_else_holds_back_no_other(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, asked = ToyBackend.start, []

    def start(self: ToyBackend, state: StageState) -> Seen:
        if state.node.kind == "evaluate" and "rl" not in self.taken:
            asked.append(state)
            assert len(asked) < 100, "rl, which is behind it, was not started"
            return Seen("later")
        return begun(self, state)

    monkeypatch.setattr(ToyBackend, "chains", False)
    monkeypatch.setattr(ToyBackend, "start", start)
    assert play(shelf, Notes()).complete
    assert asked
    assert ToyBackend.taken == ["corpus", "pretrain", "rl", "evaluate", "evaluate"]


def test_what_has_a_record_is_reused(shelf: Shelf) -> None:
    play(shelf, Notes())
    ToyBackend.taken.clear()
    outcome = play(shelf, Notes())
    assert states(outcome) == {kind: {"reused"} for kind in ("corpus", "pretrain", "rl", "evaluate")}
    assert ToyBackend.taken == []


def test_a_failure_for_good_blocks_what_depends_on_it_and_takes_it_back(shelf: Shelf) -> None:
    outcome = play(shelf, Notes(), rl=[Seen("ended", "the loss is no number", "diverged")])
    assert states(outcome) == {"corpus": {"done"}, "pretrain": {"done"}, "rl": {"failed"}, "evaluate": {"done", "blocked"}}
    assert [(failed.node.kind, failed.reason) for failed in outcome.failed] == [("rl", "the loss is no number")]
    assert ToyBackend.withdrawn == ["evaluate"]


def test_a_retry_takes_back_what_waits_behind_it_and_submits_both_again(shelf: Shelf) -> None:
    notes = Notes()
    outcome = play(shelf, notes, rl=[Seen("ended", "a cosmic ray", "bug")])
    assert outcome.complete
    assert ToyBackend.withdrawn == ["evaluate"]
    assert ToyBackend.taken == ["corpus", "pretrain", "evaluate", "rl", "evaluate", "rl", "evaluate"]
    assert [state for kind, state in notes.events if kind == "rl"] == ["queued", "running", "waiting", "queued", "running", "done"]
    assert all(seconds is None for *_, seconds in notes.took)  # a job's stage knows what it took, and these say nothing


def test_a_job_took_what_its_stage_says_and_else_nothing_is_said(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try of RL runs for 90 s by its own clock, before this command looks; the second runs between two looks."""
    runs, tries = ToyBackend.poll, []

    def poll(self: ToyBackend, active: list[StageState]) -> Iterator[tuple[StageState, Seen]]:
        for state, seen in runs(self, active):
            if state.node.kind == "rl" and seen.state == "running":
                tries.append(state)
                if len(tries) == 1:
                    shelf.begun(state.node, state="failed", started=1000.0, time=1090.0)
                else:
                    state.folder.status.unlink()
                    shelf.done(state.node)
                    yield state, Seen("ended")
                    continue
            yield state, seen

    monkeypatch.setattr(ToyBackend, "poll", poll)
    notes = Notes()
    assert play(shelf, notes, rl=[Seen("ended", "a cosmic ray", "bug")]).complete
    assert [(state, seconds) for kind, state, seconds in notes.took if kind == "rl" and state in ("waiting", "queued", "done")] == [
        ("queued", None), ("waiting", 90.0), ("queued", None), ("done", None)
    ]  # fmt: skip


def test_a_clock_that_is_set_back_makes_no_duration_negative(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: ToyBackend, state: StageState) -> Seen:
        return Seen("running")

    monkeypatch.setattr(ToyBackend, "chains", False)
    monkeypatch.setattr(ToyBackend, "start", start)
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    notes = Notes()
    assert play(shelf, notes).complete
    took = [seconds for _, state, seconds in notes.took if state == "done"]
    assert len(took) == 5
    assert all(seconds is not None and seconds >= 0 for seconds in took)


def test_a_stages_own_times_follow_no_clock_that_is_set_back(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    node = shelf.sweep(*ONE).cells[0].chain["corpus"]
    folder = shelf.begun(node)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    stage = Stage(folder.spec, Guard())
    monkeypatch.setattr(time, "time", lambda: stage.started - 3600)
    folder.export.mkdir()
    stage.progress(1, 1, "documents")
    assert seconds_so_far(status_of(folder)) is not None
    stage.finish({})
    record = folder.record()
    assert record is not None
    assert record["provenance"]["seconds"] >= 0


def test_one_that_somebody_cancelled_is_not_tried_again(shelf: Shelf) -> None:
    graph = shelf.sweep(*ONE)
    shelf.begun(graph.cells[0].chain["pretrain"]).cancelled.write_text("{}")
    outcome = play(shelf, Notes(), pretrain=[Seen("ended", "killed by SIGTERM", "preempted")])
    assert states(outcome)["pretrain"] == {"cancelled"}
    assert states(outcome)["evaluate"] == states(outcome)["rl"] == {"blocked"}


def test_a_stage_whose_parent_failed_while_it_ran_is_blocked_and_not_tried_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a record comes late: the parent counts as failed, and what it had let start ends without it."""

    def poll(self: ToyBackend, active: list[StageState]) -> Iterator[tuple[StageState, Seen]]:
        for state in active:
            if state.state == "queued":
                yield state, Seen("running")
            elif state.state == "running" and state.node.kind == "corpus":
                yield state, Seen("ended", "Slurm has forgotten how", "refused")
            elif state.state == "running":
                yield state, Seen("ended", "parent stage has no record.json", "bug")

    monkeypatch.setattr(ToyBackend, "poll", poll)
    outcome = play(shelf, Notes())
    assert states(outcome) == {"corpus": {"failed"}} | {kind: {"blocked"} for kind in ("pretrain", "rl", "evaluate")}
    assert ToyBackend.taken == ["corpus", "pretrain", "evaluate", "rl", "evaluate"]


def test_a_second_stop_kills_even_if_both_come_at_once(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def interrupt(self: ToyBackend, active: list[StageState], *, kill: bool) -> list[StageState]:
        asked.append(kill)
        return [] if kill else list(active)

    def poll(self: ToyBackend, active: list[StageState]) -> Iterator[tuple[StageState, Seen]]:
        if not asked:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return iter(())

    monkeypatch.setattr(ToyBackend, "interrupt", interrupt)
    monkeypatch.setattr(ToyBackend, "poll", poll)
    outcome = play(shelf, Notes())
    assert asked == [False, True]
    assert outcome.interrupted
    assert outcome.left == 0
