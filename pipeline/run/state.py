"""What is known of each stage while a command runs, and whom the scheduler tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.experiment.graph import StageNode
from pipeline.store.folders import StageFolder

State = Literal["waiting", "queued", "running", "elsewhere", "reused", "done", "failed", "cancelled", "blocked"]
FINISHED = ("reused", "done")
LOST = ("failed", "cancelled", "blocked")
AT_WORK = ("queued", "running", "elsewhere")


@dataclass(eq=False)
class StageState:
    """One stage in this run, as the live view and the end report show it."""

    node: StageNode
    folder: StageFolder
    parents: list[StageState] = field(default_factory=list, repr=False)
    children: list[StageState] = field(default_factory=list, repr=False)
    state: State = "waiting"
    reason: str = ""
    started: float = 0.0
    """By `time.monotonic`, which setting the clock does not change; 0 while unknown, e.g. if a job starts between two polls."""
    ended: float = 0.0
    """Likewise; 0 until the newest attempt has ended."""
    not_before: float = 0.0
    """When it may be started again after a failure."""
    alone: bool = False
    """It ran out of memory beside others."""
    progress: dict[str, Any] = field(default_factory=dict)
    log: Path | None = None

    @property
    def seconds(self) -> float | None:
        """What the newest attempt took, once it has ended; None if that is not known."""
        return self.ended - self.started if self.started and self.ended else None


class View(Protocol):
    """What the scheduler reports to."""

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        """A stage has entered another state."""

    def note(self, text: str) -> None:
        """Something about the whole run."""

    def tick(self, states: list[StageState]) -> None:
        """Called several times a second while stages run."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    states: list[StageState]
    interrupted: bool

    @property
    def left(self) -> int:
        """Jobs that go on without this process."""
        return sum(state.state in ("queued", "running") for state in self.states)

    @property
    def failed(self) -> list[StageState]:
        return [state for state in self.states if state.state == "failed"]

    @property
    def cancelled(self) -> list[StageState]:
        return [state for state in self.states if state.state == "cancelled"]

    @property
    def complete(self) -> bool:
        return all(state.state in FINISHED for state in self.states)
