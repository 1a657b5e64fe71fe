"""Time lost to saves and failures: the best interval is the best, and rare failures cost what a simulation says."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.costs.interruptions import Interruptions

CHECKPOINT = 3.6e12  # bytes: half an hour at 2 GB/s


def lost(rates: Interruptions, interval: float, hours: float = 1000.0, devices: int = 1024) -> float:
    return sum(rates.lost(hours, interval, CHECKPOINT, devices))


def test_saving_more_or_less_often_than_best_loses_more() -> None:
    rates = Interruptions()
    best = rates.best_interval(CHECKPOINT, 1024)
    assert lost(rates, best) < min(lost(rates, best * 1.3), lost(rates, best / 1.3))


def test_without_failures_only_saving_costs() -> None:
    saving, failures = Interruptions(mtbf_hours=1e12).lost(100, 10, CHECKPOINT, 8)
    assert saving == pytest.approx(10 * 0.5)
    assert failures == pytest.approx(0, abs=1e-3)


def test_a_fleet_that_fails_before_it_can_save_never_ends() -> None:
    assert lost(Interruptions(mtbf_hours=1), 10) == float("inf")


def test_it_is_what_a_simulation_loses() -> None:
    """Failures at random moments, each throwing the run back to its last save; 300 runs of 1,000 hours on 1,024 devices."""
    rates, interval, hours = Interruptions(), 5.0, 1000.0
    rng = np.random.default_rng(0)
    write, mean = rates.saving(CHECKPOINT), rates.between_failures(1024)
    wall = []
    for _ in range(300):
        done = now = 0.0
        failure = rng.exponential(mean)
        while done < hours:
            part = min(interval, hours - done) + write
            if now + part <= failure:
                now, done = now + part, done + part - write
            else:
                now = failure + rates.restart_hours
                failure = now + rng.exponential(mean)
        wall.append(now)
    assert np.mean(wall) - hours == pytest.approx(lost(rates, interval), rel=0.1)
