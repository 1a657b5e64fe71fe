"""A third backend, whole: stages wait in a queue in memory, and end as they are told to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.run.backend import Backend, Seen
from pipeline.run.state import StageState
from tests.unit.stores import Shelf


class ToyBackend(Backend):
    chains = True
    stopping = "stopping"
    fates: dict[str, list[Seen]] = {}  # noqa: RUF012 (set by each test)
    """What comes of a kind of stage, try by try; one that has none left is done."""
    taken: list[str] = []  # noqa: RUF012
    withdrawn: list[str] = []  # noqa: RUF012
    closed: list[bool] = []  # noqa: RUF012

    def start(self, state: StageState) -> Seen:
        self.taken.append(state.node.kind)
        return Seen("queued", "waits its turn")

    def poll(self, active: Sequence[StageState]) -> Iterator[tuple[StageState, Seen]]:
        for state in active:
            if state.state == "queued" and all(parent.state == "done" for parent in state.parents):
                yield state, Seen("running")
            elif state.state == "running":
                if not self.fates.get(state.node.kind):
                    Shelf(self.command.home).done(state.node)
                yield state, self.fates[state.node.kind].pop(0) if self.fates.get(state.node.kind) else Seen("ended")

    def withdraw(self, states: Sequence[StageState]) -> None:
        self.withdrawn += [state.node.kind for state in states]

    def close(self) -> None:
        self.closed.append(True)

    def interrupt(self, active: Sequence[StageState], *, kill: bool) -> list[StageState]:
        return []
