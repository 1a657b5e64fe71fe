"""What the scheduler asks of the place where stages run.

To add a place, write a subclass in its own module, list it in `backends.py`, and add its name to `ClusterConfig.kind`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.config.cluster import ClusterConfig
from pipeline.run.retries import Cause
from pipeline.run.state import StageState
from pipeline.store.folders import Home, StageFolder


@dataclass(frozen=True)
class Command:
    """The command that the backend works for."""

    home: Home
    sweep: str
    cluster: ClusterConfig
    jobs: int
    """Stages at a time, where this machine runs them."""
    commit: str
    package: str = "stages"
    """Holds the programs of the stages, a module for each kind, with the contract of `stages.contract`."""


@dataclass(frozen=True)
class Seen:
    """What a backend sees of a stage: it waits there, runs, is run by another command, has ended, or is to be asked again."""

    state: Literal["queued", "running", "elsewhere", "ended", "later"]
    reason: str = ""
    """Why it waits, who else runs it, or why it ended without a record."""
    cause: Cause = "bug"
    """Of an end without a record."""
    log: Path | None = None
    """Where to look, if the attempt has left no log of its own."""


@dataclass(frozen=True)
class Job:
    """A stage that is at work without a command that watches it."""

    id: str
    waiting: bool
    reason: str
    sweep: str
    """Whose command submitted it."""


class Backend(ABC):
    """One place where stages run, for one command."""

    chains: ClassVar[bool]
    """Whether it takes a stage whose parents are still at work, and holds it back itself until they are done."""
    stopping: ClassVar[str]
    """What is said when the first Ctrl-C ends stages, and what a second one does."""
    no_room = ""
    """What is said when stages wait for room, if that is not plain to see."""
    detached = False
    """Whether the command may return once all is handed over."""

    def __init__(self, command: Command) -> None:
        self.command = command

    def begin(self, states: Sequence[StageState]) -> None:
        """Called once, before anything else. Raises `PriorlabError` if stages cannot run here at all."""

    @contextlib.contextmanager
    def handover(self) -> Iterator[None]:
        """Held around `found` and a round of `start`."""
        yield

    def found(self, states: Sequence[StageState]) -> Iterator[tuple[StageState, Seen]]:
        """Stages that are at work already, parents first; read one by one, so that each sees what came of its parents."""
        return iter(())

    @property
    def full(self) -> bool:
        """Whether `start` would return None whatever the stage."""
        return False

    @abstractmethod
    def start(self, state: StageState) -> Seen | None:
        """Start a stage, or take it into a queue; None if there is no room now.

        `Seen("later")` if it waits for something else, which holds back no other stage.

        Raises `PriorlabError` or `OSError` if it cannot start here, ever.
        """

    @abstractmethod
    def poll(self, active: Sequence[StageState]) -> Iterator[tuple[StageState, Seen]]:
        """What is new of the stages that were started or found; read one by one, parents first."""

    def withdraw(self, states: Sequence[StageState]) -> None:
        """Take stages back that wait in the queue."""

    @abstractmethod
    def interrupt(self, active: Sequence[StageState], *, kill: bool) -> list[StageState]:
        """Ask stages to end; with `kill`, kill them. Returns those that will end; the command leaves the others running."""

    def close(self) -> None:
        """Called when the command has nothing more to run."""

    @classmethod
    def jobs(cls, folders: Iterable[StageFolder], *, strict: bool = False) -> dict[StageFolder, Job]:
        """Stages at work here without a command. Without an answer: no jobs, or `PriorlabError` if `strict`."""
        return {}

    @classmethod
    def cancel(cls, folders: Sequence[StageFolder]) -> list[StageFolder]:
        """End the stages' jobs, whoever started them. Returns the stages that had one. Raises `PriorlabError` without an answer."""
        return []
