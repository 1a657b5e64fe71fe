"""Time that a long stage loses beside its work: to saving, and to failures that throw away what was not saved."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interruptions:
    """How often devices fail, and what a failure and a save cost. docs/costs.md has the sources."""

    mtbf_hours: float = 50_000.0
    """Mean time between failures per device."""
    restart_hours: float = 0.25
    """From a failure until training goes on: noticing, queueing, loading, compiling."""
    storage: float = 2e9
    """Bytes per second that all nodes together write."""

    def between_failures(self, devices: int) -> float:
        """Mean hours until one of the devices fails."""
        return self.mtbf_hours / devices

    def saving(self, checkpoint: float) -> float:
        """Hours that writing a step checkpoint of so many bytes takes, during which nothing is trained."""
        return checkpoint / self.storage / 3600

    def best_interval(self, checkpoint: float, devices: int) -> float:
        """Hours of training between saves that lose the least (Young 1974; Daly 2006, first order)."""
        return math.sqrt(2 * self.saving(checkpoint) * self.between_failures(devices))

    def lost(self, hours: float, interval: float, checkpoint: float, devices: int) -> tuple[float, float]:
        """Hours lost to saving, and expected to be lost to failures, in training `hours` with a save every `interval` hours.

        A failure costs a restart and half an interval; more failures come while that is made up for.
        """
        saving = hours / interval * self.saving(checkpoint)
        share = (self.restart_hours + interval / 2) / self.between_failures(devices)
        return saving, (hours + saving) * (share / (1 - share) if share < 1 else math.inf)
