"""What a user sees while stages run: on 80 columns step, rate and time left stay whole; metrics and names give way."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from pipeline.cli import terminal
from pipeline.cli.terminal import _filled
from pipeline.cli.view import LiveView, PlainView
from pipeline.run.forecast import forecast
from pipeline.run.state import StageState
from tests.unit.stores import Shelf, shelf_at


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return shelf_at(tmp_path)


def running(shelf: Shelf, *overrides: str) -> list[StageState]:
    """A sweep whose corpus took ten seconds, and whose first pre-training is at 240 of 500 steps after 60 seconds."""
    graph = shelf.sweep(*overrides)
    states = {f: StageState(node, node.folder(shelf.home)) for f, node in graph.stages.items()}
    for state in states.values():
        state.parents = [states[parent.fingerprint] for parent in state.node.parents.values()]
    corpus, pretrain = (states[graph.cells[0].chain[kind].fingerprint] for kind in ("corpus", "pretrain"))
    now = time.time()
    corpus.state, corpus.started, corpus.ended = "done", time.monotonic() - 70, time.monotonic() - 60
    pretrain.state, pretrain.started = "running", time.monotonic() - 60
    pretrain.progress = {
        "state": "running", "step": 240, "total": 500, "unit": "steps", "time": now, "since": {"step": 0, "time": now - 60},
        "shown": {"loss": 1.0234, "entropy": 0.9817, "perplexity": 2.7841, "another_metric": 12345.6},
    }  # fmt: skip
    return list(states.values())


def drawn(states: list[StageState], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(LiveView(console)._render(states))
    printed: str = console.file.getvalue()  # type: ignore[attr-defined]
    return printed.splitlines()


def test_the_clock_stays_whole_on_80_columns_and_metrics_are_cut(shelf: Shelf) -> None:
    name = "axes.prior=[{name: a-prior-with-a-name-as-long-as-anybody-would-give-it, beta: -0.1}]"
    header, _, row = drawn(running(shelf, name), 80)
    assert max(map(len, (header, row))) <= 80
    assert "1/5 stages" in header
    assert "at least" in header
    assert all(part in row for part in ("240/500 steps", "4 steps/s", "1m05s"))
    assert "loss 1.02  entropy 0.982  perplexity 2.78" in drawn(running(shelf, name), 160)[2]


def test_time_left_is_a_lower_bound_until_each_kind_has_been_timed(shelf: Shelf) -> None:
    states = running(shelf, "axes.prior=[ce]")
    found = forecast(states)
    assert found is not None
    assert found.least
    assert found.seconds == pytest.approx(65, abs=2)
    for state in states:
        if state.state == "waiting":
            state.state, state.started, state.ended = "done", 1000.0, 1030.0
    found = forecast(states)
    assert found is not None
    assert not found.least
    assert found.seconds == pytest.approx(65, abs=2)


def test_stages_to_come_take_the_mean_of_their_kind_and_share_what_runs(shelf: Shelf) -> None:
    states = running(shelf, "axes.prior=[ce, tail]", "rl=null")
    evaluate = [state for state in states if state.node.kind == "evaluate"]
    evaluate[0].state, evaluate[0].started, evaluate[0].ended = "done", 1000.0, 1030.0
    found = forecast(states)
    assert found is not None
    # 65 s of the pre-training that runs, 125 s of the other, 30 s of its evaluation: one after another.
    assert not found.least
    assert found.seconds == pytest.approx(65 + 125 + 30, abs=4)


def test_another_machines_clock_that_is_ahead_adds_no_time(shelf: Shelf) -> None:
    states = running(shelf, "axes.prior=[ce]")
    for state in states:
        state.progress = {**state.progress, "time": time.time() + 3600, "since": {"step": 0, "time": time.time() + 3540}}
        state.progress = state.progress if state.state == "running" else {}
    found = forecast(states)
    assert found is not None
    assert found.seconds == pytest.approx(65, abs=2)


def test_only_what_is_over_has_a_duration(shelf: Shelf) -> None:
    state = next(state for state in running(shelf, "axes.prior=[ce]") if state.node.kind == "corpus")
    printed = Console(file=io.StringIO(), width=200)
    view = PlainView(printed)
    view.changed(state, [state])
    state.state, state.reason = "waiting", "killed; again in 5 s"
    view.changed(state, [state])
    done, waiting = printed.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert done.endswith("done in 10s")
    assert waiting.endswith("waiting: killed; again in 5 s")


def test_a_sweep_that_is_done_has_no_time_left(shelf: Shelf) -> None:
    states = running(shelf, "axes.prior=[ce]")
    for state in states:
        state.state = "reused"
    assert forecast(states) is None


@pytest.mark.parametrize("console", [terminal.console, terminal.errors], ids=["stdout", "stderr"])
def test_brackets_of_a_name_are_no_markup(console: Console) -> None:
    table = terminal.plain_table("setting", wrapped=())
    table.add_row("precision[power]")
    with console.capture() as captured:
        console.print("sweep of precision[power]")
        console.print(table)
    assert captured.get().count("precision[power]") == 2


def test_no_cell_of_a_block_is_broken_over_lines() -> None:
    cells = [Text(f"pass@{k} +.1{k} [-.019, +.138]") for k in range(5)]
    lines = [line.plain for line in _filled(cells, 60)]
    assert lines == [f"{cells[0]}  {cells[1]}", f"{cells[2]}  {cells[3]}", str(cells[4])]
