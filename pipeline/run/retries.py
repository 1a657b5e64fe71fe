"""Why a stage's process ended without a record, and whether to start it again.

A cause is told by the exit code, which survives where no message can be written, or by a backend that knows more. What the user must
fix (a bad key, a corrupt file, a full disk, diverged training) is not retried unless the config says so.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, field

from pipeline.config.cluster import Retries
from pipeline.errors import DIVERGED_EXIT, MEMORY_EXIT, NO_SPACE_EXIT, REFUSED_EXIT, STOPPED_EXIT

Cause = str  # a field of Retries, or "refused"
_BY_EXIT = {
    REFUSED_EXIT: "refused",
    NO_SPACE_EXIT: "no_space",
    MEMORY_EXIT: "out_of_memory",
    DIVERGED_EXIT: "diverged",
    STOPPED_EXIT: "preempted",
    -signal.SIGTERM: "preempted",
    -signal.SIGKILL: "out_of_memory",  # the kernel's way, and an administrator's
}


def cause_of_exit(code: int) -> Cause:
    """Why a stage's process ended, by its exit code as `subprocess.Popen.returncode` gives it."""
    return _BY_EXIT.get(code, "bug")


@dataclass
class Attempts:
    """What one command has tried already, by stage and cause."""

    policy: Retries
    _used: Counter[tuple[str, Cause]] = field(default_factory=Counter)

    def next_delay(self, stage: str, cause: Cause) -> float | None:
        """Seconds to wait before the next attempt, which this call counts; None if the stage has failed for good."""
        used = self._used[stage, cause]
        if used >= getattr(self.policy, cause, 0):
            return None
        self._used[stage, cause] += 1
        return min(self.policy.first_delay_seconds * 2**used, self.policy.longest_delay_seconds)

    def words(self, stage: str, cause: Cause, delay: float) -> str:
        return f"{cause.replace('_', ' ')}: again in {delay:.0f} s (retry {self._used[stage, cause]} of {getattr(self.policy, cause)})"
