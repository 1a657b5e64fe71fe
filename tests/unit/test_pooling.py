"""Pooling runs over settings: the residuals of any table, with runs missing, are those of plain least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compare.pooling import pooled_spread, residuals


@given(count=st.integers(1, 8), seeds=st.integers(1, 7), missing=st.sampled_from([0.0, 0.3, 0.6]), draw=st.integers(0, 2**16))
def test_residuals_are_those_of_least_squares_on_settings_and_seeds(count: int, seeds: int, missing: float, draw: int) -> None:
    rng = np.random.default_rng(draw)
    table = rng.normal(size=(count, seeds))
    table[rng.random(table.shape) < missing] = np.nan
    there = ~np.isnan(table)
    rows, columns = np.nonzero(there)
    design = np.concatenate([np.eye(count)[rows], np.eye(seeds)[columns]], axis=1)
    expected = np.zeros(table.shape)
    if len(rows):
        expected[there] = table[there] - design @ np.linalg.lstsq(design, table[there], rcond=None)[0]
    left, freedom = residuals(table)
    np.testing.assert_allclose(left, expected, atol=1e-9)
    assert freedom == len(rows) - (np.linalg.matrix_rank(design) if len(rows) else 0)


def test_a_sweep_of_thousands_of_settings_is_pooled() -> None:
    """In pairs that nothing links: a dense solution would take minutes and gigabytes."""
    rng = np.random.default_rng(0)
    table = np.full((2000, 2000), np.nan)
    for row in range(0, 2000, 2):
        table[row : row + 2, row : row + 2] = rng.normal(scale=0.02, size=(2, 2))
    spread = pooled_spread(table, problems=100)
    assert spread is not None
    assert spread.own.freedom == 1000
    assert spread.own.square / 100 == pytest.approx(0.02**2, rel=0.2)
