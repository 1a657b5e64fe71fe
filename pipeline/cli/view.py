"""What a user sees while stages run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.run.state import StageState
from pipeline.store.progress import describe, describe_pace, duration

_PLAIN_SECONDS = 15.0
_STYLES = {
    "done": "green", "reused": "green", "running": "cyan", "elsewhere": "cyan", "queued": "dim",
    "failed": "bold red", "blocked": "yellow", "cancelled": "yellow",
}  # fmt: skip
_SHOWN_ROWS = 24


class PlainView:
    """One line per event, and one per running stage every 15 seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last = time.time()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        finished = sum(s.state in ("done", "reused") for s in states)
        took = f" in {duration(stage.ended - stage.started)}" if stage.ended else ""
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
        self._started = time.time()
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        if stage.state == "failed":
            self.console.print(f"[bold red]failed[/] {stage.node.name}: ", Text(stage.reason), sep="")
            self.console.print(Text(f"       log: {stage.log}"))
        elif stage.state == "done":
            self.console.print(f"[green]done[/]   {stage.node.name}  [dim]{duration(stage.ended - stage.started)}[/]")
        self.tick(states)

    def note(self, text: str) -> None:
        self.console.print(Text(text))

    def tick(self, states: list[StageState]) -> None:
        self._live.update(self._render(states))

    def _render(self, states: list[StageState]) -> Group:
        counts = Counter(state.state for state in states)
        finished = counts["done"] + counts["reused"]
        summary = ", ".join(f"{number} {name}" for name, number in counts.items())
        header = Text(f"{finished}/{len(states)} stages  ({summary})  {duration(time.time() - self._started)}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("stage", "", "progress", "rate", "left"):
            table.add_column(title, style="none", header_style="dim", no_wrap=True)
        for state in [s for s in states if s.state in ("running", "elsewhere", "failed", "queued")][:_SHOWN_ROWS]:
            rate, left = describe_pace(state.progress)
            total = state.progress.get("total") or 0
            bar = ProgressBar(total=total, completed=state.progress.get("step", 0), width=16) if total else Text("")
            table.add_row(
                Text(state.node.name, style=_STYLES.get(state.state, "")),
                bar,
                Text(state.reason or describe(state.progress)),
                Text(rate),
                Text(left.removesuffix(" left")),
            )
        return Group(header, table)


def choose_view(console: Console) -> PlainView | LiveView:
    return LiveView(console) if console.is_terminal else PlainView(console)
