"""What a user sees while stages run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.run.forecast import forecast
from pipeline.run.state import StageState, View
from pipeline.store.progress import counted, describe, describe_pace, duration, metrics

_PLAIN_SECONDS = 15.0
_STYLES = {
    "done": "green", "reused": "green", "running": "cyan", "elsewhere": "cyan", "queued": "dim",
    "failed": "bold red", "blocked": "yellow", "cancelled": "yellow",
}  # fmt: skip
_SHOWN_ROWS = 24
_FORECAST_SECONDS = 2.0


class PlainView:
    """One line per event, and one per running stage every 15 seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last = time.time()

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        finished = sum(s.state in ("done", "reused") for s in states)
        over = stage.state in ("done", "failed", "cancelled")
        took = f" in {duration(stage.seconds)}" if over and stage.seconds is not None else ""
        reason = f": {stage.reason}" if stage.reason else ""
        self._print(f"[{finished}/{len(states)}] {stage.node.name} {stage.state}{took}{reason}")
        if stage.state == "failed" and stage.log is not None:
            self._print(f"      log: {stage.log}")

    def note(self, text: str) -> None:
        self._print(text)

    def tick(self, states: list[StageState]) -> None:
        if time.time() - self._last < _PLAIN_SECONDS:
            return
        self._last = time.time()
        found = forecast(states)
        if found is not None:
            self._print(f"      {'at least' if found.least else 'about'} {duration(found.seconds)} left in total")
        for state in states:
            if state.state == "running" and describe(state.progress):
                pace = describe_pace(state.progress)
                self._print("  ".join(filter(None, [f"      {state.node.name}: {describe(state.progress)}", *pace])))

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """A table that redraws itself: totals, what runs, what failed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()
        self._foretold = (0.0, "")  # when, and the words
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        if stage.state == "failed":
            self.console.print(Text.assemble(("failed", "bold red"), f" {stage.node.name}: {stage.reason}"))
            if stage.log is not None:
                self.console.print(Text(f"       log: {stage.log}"))
        elif stage.state == "done":
            took = "" if stage.seconds is None else duration(stage.seconds)
            self.console.print(Text.assemble(("done", "green"), f"   {stage.node.name}  ", (took, "dim")))
        self._foretold = (0.0, "")
        self.tick(states)

    def note(self, text: str) -> None:
        self.console.print(Text(text))

    def tick(self, states: list[StageState]) -> None:
        self._live.update(self._render(states))

    def _render(self, states: list[StageState]) -> Group:
        """Step, rate and time left are never cut: names and metrics give way on a narrow terminal."""
        counts = Counter(state.state for state in states)
        finished = counts["done"] + counts["reused"]
        others = ", ".join(f"{number} {name}" for name, number in counts.items() if name not in ("done", "reused", "waiting"))
        clock = f"{duration(time.monotonic() - self._started)}{self._left(states)}"
        header = Text("  ".join(filter(None, [f"{finished}/{len(states)} stages", clock, others])), no_wrap=True, overflow="ellipsis")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title, gives_way in (("stage", True), ("progress", False), ("rate", False), ("left", False), ("", True)):
            table.add_column(title, header_style="dim", no_wrap=not gives_way)
        shown = [state for state in states if state.state in ("running", "elsewhere", "failed", "queued")][:_SHOWN_ROWS]
        if not shown and counts["waiting"]:
            why = next((state.reason for state in states if state.state == "waiting" and state.reason), "loading libraries")
            return Group(header, Text(why, style="dim", no_wrap=True, overflow="ellipsis"))
        for state in shown:
            rate, left = describe_pace(state.progress)
            told = Text(state.reason or metrics(state.progress), no_wrap=True, overflow="ellipsis")
            name = Text(f"{state.node.kind}/{state.node.slug}", style=_STYLES.get(state.state, ""), no_wrap=True, overflow="ellipsis")
            table.add_row(name, counted(state.progress), rate, left.removesuffix(" left"), told)
        return Group(header, table)

    def _left(self, states: list[StageState]) -> str:
        now = time.time()
        if now - self._foretold[0] > _FORECAST_SECONDS:
            found = forecast(states)
            words = "" if found is None else f", {'at least' if found.least else 'about'} {duration(found.seconds)} left"
            self._foretold = now, words
        return self._foretold[1]


def choose_view(console: Console) -> AbstractContextManager[View]:
    return LiveView(console) if console.is_terminal else nullcontext(PlainView(console))
