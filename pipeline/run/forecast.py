"""When a sweep will be done, from what its stages have taken so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from pipeline.errors import PriorlabError
from pipeline.run.state import FINISHED, LOST, StageState
from pipeline.store.progress import seconds_left


class Forecast(NamedTuple):
    """Seconds until the last stage ends; a lower bound (`least`) while a kind of stage that is still to come has not been timed."""

    seconds: float
    least: bool


def forecast(states: Sequence[StageState]) -> Forecast | None:
    """None while nothing can be said.

    A stage to come takes the mean of its kind. As many run side by side as do now, and a chain cannot be faster than its stages.
    """
    typical = _typical_seconds(states)
    open_ = [state for state in states if state.state not in FINISHED + LOST]
    if not open_:
        return None
    left: dict[str, float | None] = {state.node.fingerprint: _left(state, typical.get(state.node.kind)) for state in open_}
    known = [seconds for seconds in left.values() if seconds is not None]
    if not known:
        return None
    ends: dict[str, float] = {}
    for state in states:  # parents come first
        before = max((ends[parent.node.fingerprint] for parent in state.parents), default=0.0)
        ends[state.node.fingerprint] = before + (left.get(state.node.fingerprint) or 0.0)
    side_by_side = max(1, sum(state.state == "running" for state in states))
    seconds = max(max(ends.values()), sum(known) / side_by_side)
    return Forecast(seconds, len(known) < len(left)) if seconds >= 1 else None


def _left(state: StageState, typical: float | None) -> float | None:
    if state.state != "running":
        return typical
    reported = seconds_left(state.progress)
    if reported is None:
        return None if typical is None else max(0.0, typical - (time.monotonic() - state.started))
    return max(0.0, reported - max(0.0, time.time() - state.progress["time"]))  # another machine's clock may be ahead


def _typical_seconds(states: Sequence[StageState]) -> dict[str, float]:
    """By kind, the mean of what stages took in this command; else what one took that ran before, or is taking now."""
    took: dict[str, list[float]] = {}
    for state in states:
        if state.state == "done" and state.seconds is not None:
            took.setdefault(state.node.kind, []).append(state.seconds)
    found = {kind: sum(seconds) / len(seconds) for kind, seconds in took.items()}
    for state in states:
        kind = state.node.kind
        if kind in found:
            continue
        if state.state == "reused":
            with suppress(PriorlabError):
                found[kind] = (state.folder.record() or {}).get("provenance", {}).get("seconds", 0.0)
        elif state.state == "running" and (left := seconds_left(state.progress)) is not None:
            found[kind] = time.monotonic() - state.started + left
    return found
