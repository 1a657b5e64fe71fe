"""How much two training runs of one setting differ, estimated over all settings that are compared.

Two or three seeds hardly show their spread; five settings of as many seeds show it well, if it is the same in all. Seeds are paired
(the same data order and initialisation in every setting), so a table of settings by seeds has a part that all settings share, which
cancels in differences, and a part of each run. A test for settings that spread more than others comes first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from pipeline.compare.intervals import CONFIDENCE, Floats, Spread

_DRAWS = 4000
_SEED = 20251222


@dataclass(frozen=True)
class SeedSpread:
    """The mean squares over seeds of settings that are paired by seed."""

    shared: Spread
    """Of a setting's mean: the part that all settings have in common."""
    own: Spread
    """Of a setting's mean: the part of its own runs."""
    difference: Spread
    """Of the difference of two settings, in which the shared part cancels."""


def pooled_spread(means: Floats, problems: int) -> SeedSpread | None:
    """From each setting's mean per seed, shaped (settings, seeds), over so many problems.

    None where there is nothing to pool (one setting, or one seed), or where the settings differ in their spread.
    """
    settings, seeds = means.shape
    if settings < 2 or seeds < 2:
        return None
    left = residuals(means)
    if not _alike(left):
        return None
    square, freedom = float((left**2).sum()), (settings - 1) * (seeds - 1)
    return SeedSpread(
        Spread(problems * float(means.mean(axis=0).var(ddof=1)), seeds - 1),
        Spread(problems * square / (settings * (seeds - 1)), freedom),
        Spread(2 * problems * square / freedom, freedom),
    )


def residuals(means: Floats) -> Floats:
    """What neither the setting nor the seed explains; settings and seeds are the last two dimensions."""
    rows, columns = means.mean(axis=-1, keepdims=True), means.mean(axis=-2, keepdims=True)
    left: Floats = means - rows - columns + means.mean(axis=(-2, -1), keepdims=True)
    return left


def _alike(left: Floats) -> bool:
    """Whether no setting has too large a share of all squares (Cochran, 1941), at 5%.

    Of two settings, both always have half.
    """
    total = float((left**2).sum())
    return total == 0 or len(left) < 3 or float((left**2).sum(axis=1).max()) / total <= _largest_share(*left.shape)


@functools.cache
def _largest_share(settings: int, seeds: int) -> float:
    """The share of the squares that one of so many settings of equal spread exceeds in 5% of sweeps."""
    drawn = np.random.default_rng(_SEED).standard_normal((_DRAWS, settings, seeds))
    squares = (residuals(drawn) ** 2).sum(axis=-1)
    return float(np.quantile(squares.max(axis=-1) / squares.sum(axis=-1), CONFIDENCE))
