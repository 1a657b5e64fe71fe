"""How much two training runs of one setting differ, estimated over all settings that are compared.

Two or three seeds hardly show their spread; five settings of as many seeds show it well, if it is the same in all. Seeds are paired
(the same data order and initialisation in every setting), so a table of settings by seeds has a part that all settings share, which
cancels in differences, and a part of each run. Runs that are missing are left out of the least squares. A test for settings that
spread more than others comes first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.intervals import CONFIDENCE, DRAWS, SEED, Floats, Spread

_ROUNDING = 1e-9


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
    """From each setting's mean per seed, shaped (settings, seeds), NaN where a run is missing; over so many problems.

    None where there is nothing to pool (one setting, or one seed each), or where the settings differ in their spread.
    """
    left, freedom = residuals(means)
    if freedom < 1 or not _alike(left, ~np.isnan(means)):
        return None
    square = float((left**2).sum()) / freedom
    of_seeds = np.nanmean(means - np.nanmean(means, axis=1, keepdims=True), axis=0)
    shared = max(0.0, float(of_seeds.var(ddof=1)) - square / len(means))
    return SeedSpread(
        Spread(problems * shared, len(of_seeds) - 1), Spread(problems * square, freedom), Spread(2 * problems * square, freedom)
    )


def residuals(means: Floats) -> tuple[Floats, int]:
    """What neither the setting nor the seed explains, 0 where a run is missing, and its degrees of freedom."""
    there = ~np.isnan(means)
    projection, freedom = _projection(there.tobytes(), *there.shape)
    left = np.zeros(means.shape)
    left[there] = projection @ means[there]
    return left, freedom


@functools.cache
def _projection(there: bytes, settings: int, seeds: int) -> tuple[Floats, int]:
    """The projection of the finished runs onto what settings and seeds leave unexplained, and its rank."""
    rows, columns = np.nonzero(np.frombuffer(there, dtype=bool).reshape(settings, seeds))
    design = np.concatenate([np.eye(settings)[rows], np.eye(seeds)[columns]], axis=1)
    explained = design @ np.linalg.pinv(design)
    return np.eye(len(rows)) - explained, len(rows) - int(np.linalg.matrix_rank(design))


def _alike(left: Floats, there: NDArray[np.bool_]) -> bool:
    """Whether no setting has too large a share of all squares (Cochran, 1941), at 5%. Of two settings, both always have half."""
    squares = (left**2).sum(axis=1)
    return (
        squares.sum() == 0
        or len(left) < 3
        or squares.max() / squares.sum() <= _largest_share(there.tobytes(), *there.shape) + _ROUNDING
    )


@functools.cache
def _largest_share(there: bytes, settings: int, seeds: int) -> float:
    """The share of the squares that one of so many settings of equal spread exceeds in 5% of sweeps."""
    projection, _ = _projection(there, settings, seeds)
    rows = np.nonzero(np.frombuffer(there, dtype=bool).reshape(settings, seeds))[0]
    squares = (np.random.default_rng(SEED).standard_normal((DRAWS, len(rows))) @ projection) ** 2 @ np.eye(settings)[rows]
    return float(np.quantile(squares.max(axis=1) / squares.sum(axis=1), CONFIDENCE))
