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
_AT_ONCE = 100


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
    runs = _runs(there.tobytes(), *there.shape)
    left = np.zeros(means.shape)
    left[there] = runs.unexplained(means[there])
    return left, runs.freedom


class _Runs:
    """The runs present in a table of settings by seeds, in the table's order. Even thousands of settings have few seeds each, so the
    settings are eliminated first, and the system is solved for the seeds.
    """

    def __init__(self, there: NDArray[np.bool_]) -> None:
        from scipy.sparse import block_diag, csr_array, diags_array
        from scipy.sparse.csgraph import connected_components

        (rows, columns), one_each = np.nonzero(there), np.ones(int(there.sum()))
        runs = np.arange(len(one_each))
        self.of_setting = csr_array((one_each, (runs, rows)), shape=(len(runs), there.shape[0]))
        self._of_seed = csr_array((one_each, (runs, columns)), shape=(len(runs), there.shape[1]))
        self._per_setting = np.maximum(1, there.sum(axis=1))
        shared = self.of_setting.T @ self._of_seed
        normal = csr_array(diags_array(there.sum(axis=0).astype(float)) - shared.T @ diags_array(1 / self._per_setting) @ shared)
        parts, part_of = connected_components(normal, directed=False)
        order = np.argsort(part_of, kind="stable")  # seeds of settings that nothing links come apart
        blocks = [
            np.linalg.pinv(normal[members][:, members].toarray(), hermitian=True)
            for members in np.split(order, np.flatnonzero(np.diff(part_of[order])) + 1)
        ]
        back = np.argsort(order)
        self._inverse = csr_array(block_diag(blocks, format="csr"))[back][:, back]
        seen = [int(there.any(axis=axis).sum()) for axis in (0, 1)]  # seeds, settings
        linked = parts - (there.shape[1] - seen[0])  # each part has a mean that settings and seeds could both explain
        self.freedom = len(runs) - (sum(seen) - linked)

    def unexplained(self, values: Floats) -> Floats:
        """The residuals of values, (..., runs), by least squares on settings and seeds."""
        seeds = (self._without_settings(values) @ self._of_seed) @ self._inverse
        return self._without_settings(values - seeds @ self._of_seed.T)

    def _without_settings(self, values: Floats) -> Floats:
        return values - ((values @ self.of_setting) / self._per_setting) @ self.of_setting.T


@functools.cache
def _runs(there: bytes, settings: int, seeds: int) -> _Runs:
    return _Runs(np.frombuffer(there, dtype=bool).reshape(settings, seeds))


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
    runs = _runs(there, settings, seeds)
    rng = np.random.default_rng(SEED)
    shares = []
    for _ in range(DRAWS // _AT_ONCE):
        drawn = runs.unexplained(rng.standard_normal((_AT_ONCE, runs.of_setting.shape[0])))
        squares = drawn**2 @ runs.of_setting
        shares.append(squares.max(axis=1) / squares.sum(axis=1))
    return float(np.quantile(np.concatenate(shares), CONFIDENCE))
